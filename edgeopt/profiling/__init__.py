"""Latency, memory, size and placement measurements: `profile`, `compare` and the self-check."""
