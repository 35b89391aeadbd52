"""Gates and baselines: what a run is worth."""
