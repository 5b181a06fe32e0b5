"""Tests of `penstock.storage`, on both databases."""
