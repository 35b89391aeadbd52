"""Arithmetic for quantization and measurement in NumPy: grids, observers, ranges, intervals and scores."""
