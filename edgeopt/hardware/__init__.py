"""The machine a model is for, and the machine we are on."""
