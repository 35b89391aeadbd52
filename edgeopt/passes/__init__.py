"""Steps on the graph alone."""
