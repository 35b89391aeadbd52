"""`edgeopt init`: a commented project file that runs unchanged."""

from __future__ import annotations

import math
from pathlib import Path

from edgeopt import graph

_TEMPLATE = """\
# What edgeopt run builds, measures and demands of {model}. Every key is described by: edgeopt schema project
name = {name}
model = {model}

[data]
path = {data}               # images (folders are searched), .npz, .npy, .wav, text, or package.module:function
samples = 128               # of these calibrate; up to 32 others judge, unless eval names samples of its own
# eval = "held_out/"
# preprocess = "imagenet"   # or unit, signed, raw255; a preprocess.toml beside the samples; else it is found out

# A variant is a file to ship: steps in order, from the model, or from another variant with from = "name".
[variants.int8]
steps = [{{ step = "quantize" }}]                    # effort = "fast" | "normal" | "high", target = "cpu-arm64" ...

[variants.fp16]
steps = [{{ step = "fp16" }}]

[variants.weights]
steps = [{{ step = "weights", bits = 8 }}]

[profile]
preset = "quick"            # pr and release look longer; --preset on the command line goes before
providers = ["cpu"]
threads = [1]

[accuracy]
# labels = true             # the data's folders are classes: accuracy.top1 and accuracy.top5 can be gated
# eval = "package.module:function"    # a metric of your own, accuracy.eval: f(run) -> number, higher is better

# Bounds with units. warn never fails a build; max_regression is against: edgeopt baseline save
[gates."*"]
size.file = {{ max = {size} }}
accuracy.close = {{ min = "100 %" }}         # outputs close to float, each by what it is: classes, boxes, a signal ...

[gates.int8]
# latency.p50 = {{ max = "15 ms", warn = "12 ms", max_regression = "5 %" }}
# speedup = {{ min = "1.2 x" }}
# accuracy.agreement = {{ min = "85 %" }}   # a share with its interval: "95 %" takes 73 samples that agree

[policy]
inconclusive = "warn"       # a measurement that cannot tell: pass, warn or fail (exit code 4)
no_baseline = "warn"        # exit code 5 with fail

[output]
folder = "build/edgeopt"
html = true
ort = false                 # also write .ort files for ONNX Runtime's minimal builds
"""


def starter(model: str, name: str, data: str, size_bytes: int) -> str:
    """The text of a project file for `model` with samples at `data`; its size gate allows 5 % over `size_bytes`."""
    megabytes = max(1, math.ceil(size_bytes * 1.05 / 1e4)) / 100
    return _TEMPLATE.format(model=_quoted(model), name=_quoted(name), data=_quoted(data), size=f'"{megabytes:.2f} MB"')


def weight_bytes(model: Path) -> int:
    """The size of the weights of a model in bytes."""
    return graph.size_bytes(graph.load(model))


def _quoted(text: str) -> str:
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text)
    return f'"{escaped}"'
