"""Tests of the flow-run process."""
