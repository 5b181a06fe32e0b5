"""Measurements beside a reference that is taken in the same run; nothing here is a test."""
