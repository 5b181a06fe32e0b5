"""The flows and the data file that quickstart uses."""
