"""Passes that find nothing to do give their argument back: a copy of a large graph takes as long as much of what is
done with it.
"""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from edgeopt.graph.form import canonical
from edgeopt.passes.embedding import quantize_embeddings
from edgeopt.passes.fold_affine import fold_affine
from edgeopt.passes.gated import fuse_hardswish
from edgeopt.passes.shield import shield
from edgeopt.passes.tie import tied
from edgeopt.passes.weights import spread
from tests import tiny

RELUS = "g (float[N,4] x) => (float[N,4] y) { a = Relu(x)  y = Add(a, x) }"


@pytest.mark.parametrize("run", [quantize_embeddings, fold_affine, fuse_hardswish, shield, tied, spread])
def test_a_pass_that_finds_nothing_gives_the_model_itself(run: Callable[[ir.Model], ir.Model]) -> None:
    model = canonical(tiny.model(RELUS))
    assert run(model) is model
