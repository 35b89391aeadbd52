"""Gates and baselines: the verdict on a run."""
