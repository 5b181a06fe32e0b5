"""PROCESS: the runners nobody asks for, each safe to run twice."""
