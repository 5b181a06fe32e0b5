"""Tests of the contract: its style, its history, and what was generated from it."""
