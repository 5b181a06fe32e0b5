"""The command: one module per sub-command, heavy imports inside commands."""
