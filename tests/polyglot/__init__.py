"""Clients in other languages, made from protos/ alone, against real services: `python -m tests.polyglot`."""
