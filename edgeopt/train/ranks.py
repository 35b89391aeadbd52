"""Data-parallel training: the processes that `torchrun` starts give the result of one process that accumulates over as
many batches.

Rank r of W takes batches r, r + W, ... of an epoch; gradients are summed over the ranks before every step. A sum of two
numbers does not depend on their order, so two ranks give the same bits as one process with twice the `--accumulate`.
Rank 0 evaluates and writes, and broadcasts its decisions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module

import torch
from torch import Tensor, distributed

from edgeopt.errors import EdgeoptError, UsageError

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_WAIT = timedelta(hours=2)  # rank 0 may evaluate for a long time while the others wait


@dataclass(frozen=True)
class Ranks:
    """The rank of this process."""

    rank: int = 0
    count: int = 1
    """Number of processes."""
    local: int = 1
    """Number of processes on this machine."""

    @property
    def first(self) -> bool:
        """Whether this process evaluates, reports and writes."""
        return self.rank == 0

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum every gradient over the ranks; a rank without a batch adds zeros. Parameters without a gradient on any
        rank keep none.
        """
        if self.count == 1:
            return
        parameters = list(parameters)
        there = torch.stack([torch.tensor(float(p.grad is not None)) for p in parameters]).to(parameters[0].device)
        flat = torch.cat(
            [
                there,
                *(
                    torch.zeros(p.numel(), device=p.device) if p.grad is None else p.grad.reshape(-1)
                    for p in parameters
                ),
            ]
        )
        self._together(lambda: distributed.all_reduce(flat))
        sums = flat[len(parameters) :].split([p.numel() for p in parameters])
        for p, g, ranks_with in zip(parameters, sums, flat[: len(parameters)].tolist(), strict=True):
            p.grad = g.view_as(p).clone() if ranks_with else None

    def told(self, values: Iterable[float]) -> list[float]:
        """`values` of rank 0, on every rank."""
        given = torch.tensor(list(values), dtype=torch.float64)
        if self.count > 1:
            given = given.to(self._device)
            self._together(lambda: distributed.broadcast(given, 0))
        return [float(x) for x in given.cpu()]

    def check_same(self, identity: str) -> None:
        """Refuse to continue if a process has another job or other samples than rank 0; `identity` is a hex digest.

        Raises:
            EdgeoptError: on every rank.
        """
        if self.count == 1:
            return
        mine = [float(int(identity[i : i + 8], 16)) for i in range(0, len(identity), 8)]
        apart = self.total([float(self.told(mine) != mine)])[0]
        if apart:
            raise EdgeoptError(
                f"rank {self.rank} of {self.count}: {apart:.0f} processes have other models, samples or options than"
                " the first; give all of them the same files"
            )

    def total(self, values: Iterable[float]) -> list[float]:
        """Sums over the ranks."""
        given = torch.tensor(list(values), dtype=torch.float64)
        if self.count > 1:
            given = given.to(self._device)
            self._together(lambda: distributed.all_reduce(given))
        return [float(x) for x in given.cpu()]

    def sent(self, content: bytes | None) -> bytes | None:
        """The bytes that rank 0 has, or None if it has none."""
        if self.count == 1:
            return content
        size = int(self.told([-1 if content is None else len(content)])[0])
        if size < 0:
            return None
        data = torch.zeros(size, dtype=torch.uint8)
        if self.first and content:
            data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        data = data.to(self._device)
        self._together(lambda: distributed.broadcast(data, 0))
        return bytes(data.cpu().numpy().tobytes())

    @property
    def _device(self) -> str:
        return f"cuda:{torch.cuda.current_device()}" if distributed.get_backend() == "nccl" else "cpu"

    def _together(self, collective: object) -> None:
        assert callable(collective)
        try:
            collective()
        except RuntimeError as e:
            raise EdgeoptError(
                f"rank {self.rank} of {self.count}: another process of this run ended or cannot be reached"
                f" ({str(e).splitlines()[0][:160]}); go on from the last checkpoint with --resume"
            ) from e


@contextmanager
def ranks(device: str) -> Iterator[Ranks]:
    """The processes of this run, by the variables that `torchrun` sets; a single one without them.

    Raises:
        UsageError: the variables are incomplete.
        EdgeoptError: the other processes cannot be reached.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        yield Ranks()
        return
    missing = [v for v in _VARIABLES if v not in os.environ]
    if missing or not size.isdecimal():
        raise UsageError(
            f"WORLD_SIZE={size} without {', '.join(missing) or 'a number'}: start the processes with torchrun"
        )
    numbers = {v: os.environ.get(v, "0") for v in ("RANK", "LOCAL_RANK")}
    for name, text in numbers.items():
        if not text.isdecimal() or int(text) >= int(size):
            raise UsageError(f"{name}={text}: a number below WORLD_SIZE={size}")
    rank, local = int(numbers["RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # its default arguments capture the process group at import: imported later, by the optimizer, they would keep ours
    # and its threads alive until the interpreter exits, which then sometimes aborts
    import_module("torch.distributed.nn.functional")
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(int(numbers["LOCAL_RANK"]))
    try:
        distributed.init_process_group("nccl" if cuda else "gloo", timeout=_WAIT)
    except (RuntimeError, ValueError) as e:
        raise EdgeoptError(
            f"rank {rank} of {size}: the other processes cannot be reached ({str(e).splitlines()[0][:160]})"
        ) from e
    try:
        yield Ranks(rank, int(size), local)
    finally:
        distributed.destroy_process_group()
