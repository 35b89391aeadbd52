"""Facts about this machine, and what threads and memory are given."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from edgeopt.hardware.host import threads


def test_threads_finish_their_work() -> None:
    with threads(2) as pool:
        found = [pool.submit(pow, i, 2) for i in range(50)]
    assert [f.result() for f in found] == [i * i for i in range(50)]


def test_ctrl_c_does_not_wait_for_what_is_still_to_do() -> None:
    go, done = threading.Event(), list[int]()

    def work(i: int) -> None:
        go.wait(10)
        done.append(i)

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), threads(2) as pool:
        for i in range(100):
            pool.submit(work, i)
        raise KeyboardInterrupt
    assert time.monotonic() - start < 5
    go.set()
    time.sleep(0.2)
    assert len(done) <= 2


MEMORY = """
import numpy as np
from edgeopt.hardware.host import at_most
try:
    with at_most(64 << 20):
        np.ones(1 << 30, np.uint8)
except MemoryError:
    print("refused", np.ones(1 << 28, np.uint8).size == 1 << 28)
"""


def test_more_memory_than_allowed_is_an_error_and_later_it_is_not() -> None:
    # in a process of its own: what a heap has left free of earlier tests may be used
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", "True"]
