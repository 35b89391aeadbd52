"""What a run needs, checked before it trains: peers that fit, a device that is there, samples for every network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt import distill
from edgeopt.errors import DataError, UsageError
from tests import tiny
from tests.train import toys

ONE = {"epochs": 1, "batch_size": 16}


def on_disk(folder: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, folder / "peer.onnx")
    return folder / "peer.onnx"


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        (toys.perceptron(3, classes=5), r"'y': the student gives \[1, 3\], the teacher \[1, 5\]"),
        (tiny.proto(toys.BRANCHED.replace("y", "p").replace("z", "q"), a=toys.normal(0, 4, 8), b=toys.normal(1, 8, 3), c=toys.normal(2, 8, 2)), "outputs y and p, q"),
    ],
    ids=["other classes", "other outputs"],
)  # fmt: skip
def test_a_further_peer_that_does_not_fit_is_refused(peer: onnx.ModelProto, message: str, tmp_path: Path) -> None:
    data, peers = toys.samples(40, labels=True), (on_disk(tmp_path, peer),)
    with pytest.raises(UsageError, match=message):
        distill(toys.perceptron(), data, teacher=toys.perceptron(7), kind="online", peers=peers, **ONE)


def test_a_further_peer_that_lacks_one_of_the_outputs_is_refused(tmp_path: Path) -> None:
    data, peers = toys.samples(40, labels=True), (on_disk(tmp_path, toys.perceptron(3)),)
    with pytest.raises(UsageError, match="--peer: one has no output that goes with 'z'"):
        distill(toys.branched(), data, teacher=toys.branched(7), kind="online", peers=peers, **ONE)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match=f"--device {device}: "):
        distill(toys.perceptron(), toys.samples(20), teacher=toys.perceptron(7), device=device, **ONE)


TYPED = "g (float[N,4] x, float[N,3] types) => (float[N,3] y) { h = MatMul(x, a)  r = Relu(h)  s = MatMul(r, b)  y = Add(s, types) }"


def typed() -> onnx.ModelProto:
    """The perceptron of seed 7, whose answers are moved by a second input."""
    return tiny.proto(TYPED, a=toys.normal(7, 4, 8), b=toys.normal(8, 8, 3))


def test_an_input_that_only_the_teacher_takes_comes_from_the_samples() -> None:
    feeds = toys.samples()
    still, moved = ([{**f, "types": np.float32([[t, 0, 0]])} for f in feeds] for t in (0, 5))
    plain = distill(toys.perceptron(), feeds, teacher=toys.perceptron(7), **toys.QUICK)
    zero, other = (distill(toys.perceptron(), d, teacher=typed(), **toys.QUICK) for d in (still, moved))
    assert plain.improved and toys.same_bytes(zero.model, plain.model)  # x + 0 is x
    assert other.improved and other.before < plain.before  # the answers are others


def test_an_input_that_only_the_teacher_takes_and_no_sample_has_is_named() -> None:
    with pytest.raises(DataError, match="types"):
        distill(toys.perceptron(), toys.samples(20), teacher=typed(), **ONE)
