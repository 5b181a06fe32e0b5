"""Tests of `penstock.runtime`."""
