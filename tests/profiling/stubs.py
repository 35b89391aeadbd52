"""What tests of measurements share: tiny models in files, interpreters that die or hang, and calls of the command
line.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.cli import main
from tests import models
from tests.cli.test_cli import Ended

SHORT = ("--seconds", "0.1", "--processes", "1")
RELU = "g (float[N,4] x) => (float[N,4] z) { z = Relu(x) }"
TWO = "g (float[N,4] x) => (float[N,4] z, float[N,4] t) { z = Relu(x)  t = Tanh(x) }"
WIDE = "g (float[N,4] x) => (float[N,8] y) { y = Concat <axis = 1> (x, x) }"
RANDOM = "g (float[N,4] x) => (float[N,4] y) { r = RandomNormalLike(x)  y = Add(x, r) }"
WORDS = "g (float[N,4] x) => (string[N,4] y) { y = Cast <to = 8> (x) }"
CUSTOM = '<ir_version: 9, opset_import: ["" : 17, "own" : 1]> g (float[N,4] x) => (float[N,4] y) { y = own.Bogus(x) }'
_STUB = """#!{python}
import json, os, runpy, signal, sys, time

class Requests:
    blocks, model = 0, ""

    def __iter__(self):
        for line in sys.__stdin__:
            request = json.loads(line)
            self.model = request.get("model", self.model)
            self.blocks += "rate" in request  # only what is timed has it, warm-up and memory have not
            if self.blocks > {blocks} and {model!r} in self.model:
                {end}
            yield line

sys.stdin, sys.argv = Requests(), sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
HANGS = "time.sleep(600)"


def saved(file: Path, text: str, **weights: np.ndarray) -> Path:
    """`file`, which holds the model that ONNX `text` describes, unchecked, since the tests want invalid ones too."""
    if not text.lstrip().startswith("<"):
        text = '<ir_version: 9, opset_import: ["" : 17]>' + text
    made = onnx.parser.parse_model(text)
    made.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    file.write_bytes(made.SerializeToString())
    return file


def dense(file: Path) -> Path:
    """`file`, which holds one Gemm from x [N, 4] to y [N, 4]."""
    file.write_bytes(models.dense())
    return file


def interpreter(file: Path, end: str, *, blocks: int, model: str) -> Path:
    """An interpreter that runs the worker, and does `end` after `blocks` timed blocks of a model whose path holds
    `model`.
    """
    file.write_text(_STUB.format(python=sys.executable, end=end, blocks=blocks, model=model), encoding="utf-8")
    file.chmod(0o755)
    return file


def called(*argv: str | Path) -> Ended:
    """A call of the command line in this process, also for fixtures that outlive a test."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([str(a) for a in argv])
    return Ended(ended.value.code, out.getvalue(), err.getvalue())
