"""Devices on which models that are being made are timed, and answer at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from edgeopt.errors import LostError, WorkerError
from edgeopt.hardware import target as targets
from edgeopt.hardware.host import proc_field
from edgeopt.hardware.target import Target
from edgeopt.numbers.scores import compare, lowest_sqnr_db
from edgeopt.numbers.words import decibels
from edgeopt.options.devices import DeviceTable, tables
from edgeopt.quantization.judge import too_far
from edgeopt.quantization.prepare import Task
from edgeopt.runtime.devices import visited, written
from edgeopt.runtime.meter import DeviceMeter, meter_of
from edgeopt.runtime.process import Here, Place
from edgeopt.runtime.session import open_session, run_all

Chosen = str | Path | Target  # how a target is named in options
_SAMPLES = 8
_WEB_TARGET = "wasm"


@contextlib.contextmanager
def device(name: str | None, target: Chosen) -> Iterator[tuple[DeviceMeter | None, Chosen]]:
    """(the meter of the device `name`, the target: that of the device where `target` names the host); no meter for this
    machine.

    Raises:
        UsageError: no such device. WorkerError: it cannot be reached, or lacks what is needed.
    """
    if name is None:
        yield None, target
        return
    file, found = written([name])
    known = tables(found, file)
    with visited([name], known) as places:
        place, table = places[name], known.get(name)
        if place == Here():
            yield None, target
            return
        own = _target(place, table) if target == "host" else target
        yield meter_of(place, None if table is None else table.provider), own


def _target(place: Place, table: DeviceTable | None) -> str:
    if table is not None and table.target is not None:
        return table.target
    told = place.machine()
    flags = proc_field(told["texts"].get("cpuinfo", ""), "flags", "Features").split()
    return _WEB_TARGET if place.web else targets.of_machine(str(told["system"]).rpartition(" ")[2], frozenset(flags))


def answers(task: Task, file: Path, meter: DeviceMeter, name: str) -> tuple[str, tuple[str, ...]]:
    """(how the answers of `file` on the device differ from those here and from float, in words; what is wrong)."""
    held = task.held[:_SAMPLES]
    here = run_all(open_session(file), held)
    try:
        there = meter.ran(file, [feed for _, feed in held])
    except LostError:
        raise
    except WorkerError as e:
        return f"{name}: it does not run there", (f"{name}: {e}",)
    names = [str(v.name) for v in task.source.graph.outputs]
    same = lowest_sqnr_db(compare(names, here, there.outputs))
    near = compare(names, run_all(task.float_session, held), there.outputs, {} if task.selection else task.kinds)
    told = f"answers on {name} as here: {decibels(same)}, against float there: {decibels(lowest_sqnr_db(near))}"
    return f"{told} ({there.runtime})", tuple(f"{name}: output {o.output}: {x}" for o in near for x in too_far(o))
