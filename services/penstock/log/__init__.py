"""PROCESS: LogService."""
