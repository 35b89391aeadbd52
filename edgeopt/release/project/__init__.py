"""The project file: what is built, measured and required."""
