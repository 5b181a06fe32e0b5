"""Rows in, domain values out: SQLAlchemy Core, plain functions on a transaction."""
