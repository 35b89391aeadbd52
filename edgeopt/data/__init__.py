"""Samples for calibration and checks: `open_data` opens a source of samples that can be read lazily and repeatedly.

A source is a folder of images, .npz/.npy files, ONNX `test_data_set_*` folders, audio files, .jsonl/.csv/.txt text with
a tokenizer, or `package.module:function` that yields feeds. A sample is a (name, reader) pair; it is decoded only when
it is read.
"""

from edgeopt.data.reading import Data, read
from edgeopt.data.screen import Look, look, oddities
from edgeopt.data.source import open_data, readable, split
from edgeopt.data.spec import Feed, InputSpec, Sample, Samples, specs
from edgeopt.options.reading import Reading

__all__ = [
    "Data",
    "Feed",
    "InputSpec",
    "Look",
    "Reading",
    "Sample",
    "Samples",
    "look",
    "oddities",
    "open_data",
    "read",
    "readable",
    "specs",
    "split",
]
