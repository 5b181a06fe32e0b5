"""Tests of `penstock.domain`."""
