"""Samples for calibration and checks: `open_data` opens a source of samples that can be read lazily and repeatedly.

A source is a folder of images, .npz/.npy files, ONNX `test_data_set_*` folders, audio files, .jsonl/.csv/.txt text with
a tokenizer, or `package.module:function` that yields feeds. A sample is a (name, reader) pair; it is decoded only when
it is read.
"""

from edgeopt.data.made_up import random_samples
from edgeopt.data.reading import RANDOM, Data, read
from edgeopt.data.screen import Look, look, oddities
from edgeopt.data.source import open_data, readable, split
from edgeopt.data.spec import Feed, InputSpec, Sample, Samples, specs

__all__ = [
    "RANDOM",
    "Data",
    "Feed",
    "InputSpec",
    "Look",
    "Sample",
    "Samples",
    "look",
    "oddities",
    "open_data",
    "random_samples",
    "read",
    "readable",
    "specs",
    "split",
]
