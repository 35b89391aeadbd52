"""Memory of a fresh process, phase by phase: what is known to be needed shows up where it is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.errors import WorkerError
from edgeopt.profiling.arms import Arm
from edgeopt.profiling.inputs import write_feeds
from edgeopt.profiling.memory import memory
from edgeopt.profiling.results import Memory, Phase
from edgeopt.runtime.providers import parse
from tests import tiny
from tests.models import normal

MIB = 1 << 20
PHASES = ["onnxruntime loaded", "session created", "first inference", "10 more"]
# two values of 32 MiB live at a time; the weights are 32 MiB
TEXT = """g (float[1,2048] x) => (float[1,1] y) {
    a = MatMul(x, w)
    b = Expand(a, big)
    c = Exp(b)
    d = ReduceSum <keepdims = 0> (c)
    y = Reshape(d, one)
}"""


def arm(folder: Path) -> tuple[Arm, Path]:
    made = tiny.proto(TEXT, w=normal(2048, 4096), big=np.int64([2048, 4096]), one=np.int64([1, 1]))
    onnx.save(made, folder / "m.onnx")
    write_feeds([{"x": normal(1, 2048)}], folder / "f.npz")
    return Arm(folder / "m.onnx"), folder / "f.npz"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Memory:
    return memory(*arm(tmp_path_factory.mktemp("memory")), allow_fallback=False)


@pytest.fixture(params=["arena", "no_arena"])
def phases(request: pytest.FixtureRequest, found: Memory) -> tuple[Phase, ...]:
    return tuple(getattr(found, request.param))


def test_the_phases_are_told_in_order(phases: tuple[Phase, ...]) -> None:
    assert [p.name for p in phases] == PHASES


def test_the_peak_is_never_below_what_is_there_at_its_end(phases: tuple[Phase, ...]) -> None:
    assert all(p.peak_bytes >= p.rss_bytes > 0 for p in phases)


def test_private_pages_are_part_of_the_share_and_the_share_of_the_whole(phases: tuple[Phase, ...]) -> None:
    for p in phases:
        if p.pss_bytes is None or p.private_dirty_bytes is None or p.private_clean_bytes is None:
            pytest.skip("this kernel does not tell")
        # each is rounded to 1 KiB, and the kernel counts the resident set in batches of up to 64 pages a processor
        assert p.private_dirty_bytes + p.private_clean_bytes <= p.pss_bytes + 2048
        assert p.pss_bytes <= p.rss_bytes + MIB


def test_the_weights_arrive_with_the_session(phases: tuple[Phase, ...]) -> None:
    assert phases[1].rss_bytes - phases[0].rss_bytes >= 32 * MIB


def test_two_activations_at_a_time_are_at_the_peak_of_the_first_inference(phases: tuple[Phase, ...]) -> None:
    assert phases[2].peak_bytes - phases[1].rss_bytes >= 64 * MIB


def test_without_the_arena_activations_are_given_back_and_with_it_they_are_kept(found: Memory) -> None:
    kept, returned = (p[2].rss_bytes - p[1].rss_bytes for p in (found.arena, found.no_arena))
    assert kept >= 64 * MIB and returned < 32 * MIB


def test_where_the_peak_counter_can_be_reset_it_is_that_of_the_phase(found: Memory) -> None:
    if not found.peak_per_phase:
        pytest.skip("this kernel does not let a process reset its peak")
    # the session needs its 32 MiB of weights a few times while it is made, and no activations: the load is not in them
    first, loaded = found.no_arena[0], found.no_arena[1]
    assert first.peak_bytes < loaded.peak_bytes
    assert all(
        p.peak_bytes - before.rss_bytes >= 0 for before, p in zip(found.no_arena, found.no_arena[1:], strict=False)
    )


def test_more_runs_need_no_more_memory_than_the_block_that_onnx_runtime_plans_after_the_first(found: Memory) -> None:
    kept, returned = (p[3].rss_bytes - p[2].rss_bytes for p in (found.arena, found.no_arena))
    # the plan holds both activations beside what the arena has, and a third would be at 96; 4 MiB are for pages touched
    # for the first time
    assert kept < 80 * MIB and returned < 4 * MIB


def test_a_provider_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    made, feeds = arm(tmp_path)
    with pytest.raises(WorkerError, match="CUDAExecutionProvider is not in this interpreter's onnxruntime"):
        memory(Arm(made.model, parse("cuda")), feeds, allow_fallback=False)
