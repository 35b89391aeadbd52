"""All options, each declared once: the library, the command line, the project file, its schema and the docs use these
models.
"""

from edgeopt.options.declare import Flag, Options, takes
from edgeopt.options.reading import PRESETS, Preprocess, Reading

__all__ = ["PRESETS", "Flag", "Options", "Preprocess", "Reading", "takes"]
