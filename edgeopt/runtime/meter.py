"""Who times models that are being made: this machine, in sessions of this process, or a device, in workers there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import onnx_ir as ir

from edgeopt.errors import LostError, UsageError
from edgeopt.files import temporary_folder
from edgeopt.graph.serialization import write
from edgeopt.hardware.host import cpu_name
from edgeopt.numbers.ends import Ends
from edgeopt.runtime import costs
from edgeopt.runtime.costs import Events
from edgeopt.runtime.elsewhere import Opens, Ran, opened, with_provider, with_web
from edgeopt.runtime.measure import PairedLatency, interleaved, paired
from edgeopt.runtime.process import Place, worker
from edgeopt.runtime.providers import WEB_PROVIDERS, parse
from edgeopt.runtime.session import Feed, Session, open_session

T = TypeVar("T")
_LIMIT_S = 600.0
_ROUNDS = 12  # of a profile: each costs a question to the device


@dataclass(frozen=True)
class Timed:
    """A model to time. file: the model or its file; feed: with floats where the file may take integers; session: where
    it is open here already.
    """

    file: ir.Model | Path
    feed: Feed
    session: Session | None = None


class Meter(Protocol):
    """Times models where they will run."""

    @property
    def host(self) -> str:
        """What determines times there, in words."""
        ...

    @property
    def profiles(self) -> bool:
        """Whether it tells the times of kernels."""
        ...

    def interleaved(
        self, models: Mapping[str, Timed], reference: str, *, seconds: float, levels: Sequence[float] = ()
    ) -> dict[str, PairedLatency]:
        """Latency of each model beside that of `reference`; see `edgeopt.runtime.measure`."""
        ...

    def profiled(self, models: Sequence[ir.Model], feed: Feed) -> list[Events]:
        """Times of the kernels of models run in turn; see `edgeopt.runtime.costs`."""
        ...


@dataclass(frozen=True)
class HereMeter:
    """This machine."""

    profiles: bool = True

    @property
    def host(self) -> str:
        """See `Meter`."""
        return costs.here()

    def interleaved(
        self, models: Mapping[str, Timed], reference: str, *, seconds: float, levels: Sequence[float] = ()
    ) -> dict[str, PairedLatency]:
        """See `Meter`."""
        sessions = {name: m.session or open_session(m.file) for name, m in models.items()}
        feeds = {name: s.ends.feed(models[name].feed) for name, s in sessions.items()}
        plain = {name: replace(s, ends=Ends()) for name, s in sessions.items()}
        return interleaved(plain, reference, feeds, seconds=seconds, levels=levels)

    def profiled(self, models: Sequence[ir.Model], feed: Feed) -> list[Events]:
        """See `Meter`."""
        return costs.profiled(models, feed)


@dataclass(frozen=True)
class DeviceMeter:
    """A device."""

    place: Place
    opens: Opens
    host: str

    @property
    def profiles(self) -> bool:
        """See `Meter`."""
        return not self.place.web

    def interleaved(
        self, models: Mapping[str, Timed], reference: str, *, seconds: float, levels: Sequence[float] = ()
    ) -> dict[str, PairedLatency]:
        """See `Meter`.

        Raises:
            LostError: the device was lost and did not come back. WorkerError: it refuses a model.
        """
        return self._patiently(lambda: self._interleaved(models, reference, seconds, levels))

    def _interleaved(
        self, models: Mapping[str, Timed], reference: str, seconds: float, levels: Sequence[float]
    ) -> dict[str, PairedLatency]:
        with temporary_folder() as folder, contextlib.ExitStack() as stack:
            blocks = {}
            for i, (name, m) in enumerate(models.items()):
                there = stack.enter_context(
                    opened(_file(m.file, folder / f"{i}.onnx"), [m.feed], self.place, self.opens)
                )
                blocks[name] = there.warm() if self.place.web else there.block
            return paired(blocks, reference, seconds, levels)

    def profiled(self, models: Sequence[ir.Model], feed: Feed) -> list[Events]:
        """See `Meter`."""
        return self._patiently(lambda: self._profiled(models, feed))

    def _profiled(self, models: Sequence[ir.Model], feed: Feed) -> list[Events]:
        with temporary_folder() as folder, contextlib.ExitStack() as stack:
            running = []
            for i, model in enumerate(models):
                file, prefix = _file(model, folder / f"{i}.onnx"), self.place.named(folder / f"trace{i}")
                running.append(stack.enter_context(opened(file, [feed], self.place, self.opens, profile=prefix)))
            start = time.monotonic()
            for _ in range(_ROUNDS):
                for there in running:
                    there.block(1)
                if time.monotonic() - start > costs.LONG_S:
                    break
            found = []
            for i, there in enumerate(running):
                trace = folder / f"{i}.json"
                self.place.taken(there.worker.ask("trace")["path"], trace)
                found.append(costs.medians(trace))
            return found

    def ran(self, file: Path, feeds: Sequence[Feed]) -> Ran:
        """How `file` runs there, with its outputs for `feeds`.

        Raises:
            LostError: the device was lost and did not come back. WorkerError: it refuses the model.
        """
        return self._patiently(lambda: self._ran(file, feeds))

    def _ran(self, file: Path, feeds: Sequence[Feed]) -> Ran:
        with opened(file, feeds, self.place, self.opens) as there:
            runtime = f"{there.ran.runtime}, on {self.place.name}"
            return replace(there.ran, runtime=runtime, outputs=there.outputs(len(feeds)))

    def _patiently(self, action: Callable[[], T]) -> T:
        """`action`, once more if the device was lost and is back."""
        try:
            return action()
        except LostError:
            if not self.place.back():
                raise
            return action()


def _file(model: ir.Model | Path, file: Path) -> Path:
    if isinstance(model, Path):
        return model
    write(model, file)
    return file


def meter_of(place: Place, provider: str | None = None) -> DeviceMeter:
    """The meter of a device, which is reached and greeted.

    Raises:
        UsageError: no such provider. WorkerError: it cannot be reached, or lacks what is needed.
    """
    told = place.machine()
    with worker(place, _LIMIT_S) as w:
        hello = w.greet()
    opens: Opens
    if place.web and provider is not None and provider not in WEB_PROVIDERS:
        raise UsageError(f"device {place.name}: provider {provider!r}: one of {', '.join(WEB_PROVIDERS)}")
    if place.web:
        opens, by = with_web(provider or WEB_PROVIDERS[0]), provider or WEB_PROVIDERS[0]
    else:
        wanted = parse(provider or "cpu")
        opens, by = with_provider(wanted), wanted.label
    name = cpu_name(told["texts"].get("cpuinfo", ""), told["texts"].get("board", told["processor"]))
    return DeviceMeter(place, opens, f"{name}, onnxruntime {hello.get('onnxruntime')}, {by}, 1 thread")
