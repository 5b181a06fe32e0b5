"""Real processes on a real database: what a user starts, and what a user sees."""
