"""Makes the cases of a measurement: each arm with its loaded model, its feeds in a file, and the placement found in a
first run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt import graph
from edgeopt.data import Feed, made_up, specs
from edgeopt.data.ends import ends
from edgeopt.data.spec import check_feed
from edgeopt.errors import EdgeoptError, LostError, ModelError, WorkerError
from edgeopt.files import is_text, sha256
from edgeopt.listener import Listener
from edgeopt.options.profile import Profile
from edgeopt.profiling import inputs
from edgeopt.profiling.arms import Arm
from edgeopt.profiling.latency import Timing
from edgeopt.profiling.live import Live, live
from edgeopt.profiling.placement import TRACED_RUNS, Trace, ops, placement, read_trace, refuse_fallback
from edgeopt.profiling.results import Ops, Placement
from edgeopt.runtime.feeds import feeds_of
from edgeopt.runtime.process import Here
from edgeopt.runtime.session import finite, try_loops
from edgeopt.runtime.tensor_file import NPZ

_TRACE_S = 1.0


@dataclass
class Case:
    """An arm with its model and inputs, and the results of its first run."""

    timing: Timing
    """The latency measurement of the arm."""
    model: ir.Model
    sha256: str
    feeds: Sequence[Feed]
    """What goes in, in floats where the file takes integers on a grid."""
    told: str
    """Where the inputs came from, in words."""
    placement: Placement | None = None
    ops: Ops | None = None
    trace: Trace | None = None
    output_names: tuple[str, ...] = ()
    outputs: list[list[NDArray[Any]]] | None = None
    """Values by feed and output, if they are kept."""
    deterministic: bool = True

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Input shapes of the first feed."""
        return {k: x.shape for k, x in self.feeds[0].items()}

    @property
    def arm(self) -> Arm:
        """The setting to measure."""
        return self.timing.arm


def cases(wanted: Sequence[Arm], options: Profile, folder: Path, listener: Listener) -> list[Case]:
    """A case for every arm; feeds are written to `folder`.

    Raises:
        ModelError, UsageError, DataError: a model, a dimension or the data cannot be used.
    """
    if unreadable := [arm.model for arm in wanted if not is_text(arm.model)]:
        raise ModelError(f"{unreadable[0]}: its name is no UTF-8 text, which ONNX Runtime cannot open; rename it")
    models = {arm.model: graph.canonical(graph.load(arm.model)) for arm in wanted}
    digests = {path: sha256(path, *graph.external_files(model)) for path, model in models.items()}
    found = []
    read: dict[object, tuple[list[Feed], str]] = {}
    for i, arm in enumerate(wanted):
        model, path = models[arm.model], folder / f"feeds{i}{arm.place.wire.suffix}"
        # models with the same inputs get the same values, even if preprocessing is guessed from the model
        key = tuple(map(repr, specs(model))), tuple(arm.dims.items()), arm.batch
        if key not in read:
            try:
                feeds, told = _feeds(model, arm, options)
            except EdgeoptError as e:
                raise type(e)(f"{arm.model}: {e}") if len(models) > 1 else e from e
            if not finite(x for feed in feeds for x in feed.values()):
                told += "; some values are not finite"
            try_loops(model, feeds[0])
            read[key] = feeds, told
            listener.note(f"{arm.label}: {told}")
        feeds, told = read[key]
        own = [ends(model).feed(feed) for feed in feeds]
        for wire in {NPZ, arm.place.wire}:  # sizes are found on this machine
            inputs.write_feeds(own, path.with_suffix(wire.suffix), wire)
        fixed = _fixed(model, feeds[0]) if options.freeze_dims else {}
        timing = Timing(replace(arm, fixed=fixed), path)
        found.append(Case(timing, model, digests[arm.model], feeds, told))
    return found


def _feeds(model: ir.Model, arm: Arm, options: Profile) -> tuple[list[Feed], str]:
    if options.data is None:
        given = inputs.read_arrays(options.inputs, model)
        feed, told = made_up.generated(model, made_up.shapes(model, arm.dims, arm.batch, given), given)
        check_feed(feed, model, "--input" if given else "generated input")
        return [feed], "; ".join([*told, *(f"{k}: {options.inputs[k]}" for k in given)]) or "no inputs"
    feeds, notes = feeds_of(model, options.data, options, options.samples)
    return [feed for _, feed in feeds], "; ".join([f"{len(feeds)} samples of {options.data}", *notes])


def _fixed(model: ir.Model, feed: Feed) -> dict[str, int]:
    """Sizes of the free named dimensions."""
    return {
        str(d.value): feed[str(v.name)].shape[i]
        for v in model.graph.inputs
        for i, d in enumerate(v.shape or ())
        if not isinstance(d, int) and d.value
    }


def first_run(case: Case, options: Profile, folder: Path, *, keep_outputs: bool) -> None:
    """Load and run `case` once with assignment and trace enabled, in a process of its own that may crash; a failure
    becomes the case's error. Where its device is lost, and back in time, it is tried once more.
    """
    try:
        _first_run(case, options, folder, keep_outputs=keep_outputs)
    except LostError as e:
        if not case.arm.place.back():
            case.timing.error = str(e)
            return
        case.timing.dropped.append(str(e))
        try:
            _first_run(case, options, folder, keep_outputs=keep_outputs)
        except LostError as again:
            case.timing.error = str(again)


def _first_run(case: Case, options: Profile, folder: Path, *, keep_outputs: bool) -> None:
    t = case.timing
    try:
        place = t.arm.place
        how: dict[str, Any] = {} if place.web else {"assignment": True, "profile": place.named(folder / "trace")}
        with live(t.arm, **how) as started:
            started.worker.ask("feed", path=place.given(t.feeds))
            t.hello = started.hello
            case.output_names = tuple(started.opened["outputs"])
            if not place.web:
                _trace(case, started, folder / "trace.json")
            case.deterministic = started.worker.ask("repeats")["deterministic"]
            if keep_outputs:
                _outputs(case, started, folder / f"outputs{place.wire.suffix}")
        if not options.allow_fallback and case.placement is not None:
            refuse_fallback(case.placement)
    except LostError:
        raise
    except WorkerError as e:
        made_up = (
            options.data is None
            and len(options.inputs) < len(case.shapes)
            and case.output_names
            and case.placement is None
            and isinstance(t.arm.place, Here)
        )
        t.error = f"{e}" + ("; its inputs were made up: give real ones with --input or --data" if made_up else "")


def _trace(case: Case, started: Live, file: Path) -> None:
    first = started.worker.ask("block", runs=2)["times"]
    runs = int(min(TRACED_RUNS, max(1, _TRACE_S * 1e9 / max(1, first[1]))))
    started.worker.ask("block", runs=runs)
    place = started.worker.place
    place.taken(started.worker.ask("trace")["path"], file)
    try:
        trace = read_trace(file)
    except WorkerError as e:
        if isinstance(place, Here):
            raise
        raise WorkerError(f"device {place.name}: its trace is broken, as by a full disk ({e})") from e
    case.trace = trace
    case.ops = ops(trace)
    case.placement = placement(case.arm.provider.name, started.opened["assignment"], trace)


def _outputs(case: Case, started: Live, path: Path) -> None:
    place = started.worker.place
    started.worker.ask("outputs", path=place.named(path))
    place.taken(place.named(path), path)
    found = place.wire.read(path)
    count = 1 + max((int(k.split("/", 1)[0]) for k in found), default=-1)
    names = [n for n in case.output_names if f"0/{n}" in found]
    case.output_names = tuple(names)
    own = ends(case.model)
    case.outputs = [own.floats(names, [found[f"{i}/{n}"] for n in names]) for i in range(count)]
