"""Tests of the queue process."""
