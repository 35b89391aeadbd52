"""Measurements that can be trusted: `profile`, `compare` and the self-check."""
