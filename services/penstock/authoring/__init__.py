"""LIBRARY: what a flow's own code imports."""
