"""`--max-ram` is kept by a whole run, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.graph import write
from tests import tiny

LIMIT = 200_000_000
INTERPRETER = 300_000_000  # Python, its libraries, and the model
CODE = """
import re, sys
from pathlib import Path
import edgeopt
edgeopt.quantize(sys.argv[1], sys.argv[2], output=sys.argv[3], max_ram=int(sys.argv[4]), measure=False, costs="table")
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def long_chain(layers: int, size: int) -> ir.Model:
    """A model all of whose values together take much more than the limit, and a run of which takes little."""
    lines = [f"v{i + 1} = Conv(r{i}, w{i})  r{i + 1} = Relu(v{i + 1})" for i in range(layers)]
    shape = f"1,8,{size},{size}"
    rng = np.random.default_rng(0)
    weights = {f"w{i}": (rng.standard_normal((8, 8, 1, 1)) / 2).astype(np.float32) for i in range(layers)}
    text = f"{' '.join(lines)} y = GlobalAveragePool(r{layers})"
    return tiny.model(f"g (float[{shape}] r0) => (float[1,8,1,1] y) {{ {text} }}", **weights)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak")
@pytest.mark.parametrize(("layers", "size"), [(300, 160), (20, 640)], ids=["many", "large"])
def test_a_model_of_many_or_large_values_is_quantized_within_max_ram(layers: int, size: int, tmp_path: Path) -> None:
    assert 2 * layers * 4 * 8 * size**2 > LIMIT + 30_000_000
    write(long_chain(layers, size), tmp_path / "m.onnx")
    (tmp_path / "calib").mkdir()
    for i in range(8):
        x = np.random.default_rng(i).standard_normal((1, 8, size, size)).astype(np.float32)
        np.savez(tmp_path / "calib" / f"{i}.npz", r0=x)
    arguments = [tmp_path / "m.onnx", tmp_path / "calib", tmp_path / "q.onnx", LIMIT]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 <= LIMIT + INTERPRETER
