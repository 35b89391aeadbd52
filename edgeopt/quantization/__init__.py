"""From a float model and samples to a checked file: state, steps, recipes, the judge and the search."""
