"""Arithmetic of quantization and measurement: grids, observers, ranges, intervals, scores; NumPy only."""
