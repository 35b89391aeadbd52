"""Checks that two stored results were measured under the same conditions."""

from __future__ import annotations

from collections.abc import Iterator

from edgeopt.errors import ComparabilityError
from edgeopt.profiling.results import Measured, Results

LOCAL = "local"
_ENVIRONMENT = ("cpu", "features", "cores", "governor", "system")
_SETTING = (
    "onnxruntime", "provider", "provider_options", "threads", "session", "level", "fixed_dims", "shapes", "rate",
)  # fmt: skip


def refuse_different(a: Results, b: Results, pairs: list[tuple[Measured, Measured]]) -> None:
    """Refuse results of different machines, runtimes or settings.

    Raises:
        ComparabilityError: lists every difference.
    """
    found = list(_differences(a, b, pairs))
    if found:
        raise ComparabilityError(
            "not comparable: " + "; ".join(found) + "; measure both models in one run: edgeopt compare a.onnx b.onnx"
        )


def _differences(a: Results, b: Results, pairs: list[tuple[Measured, Measured]]) -> Iterator[str]:
    devices = {(m.setting.device, n.setting.device) for m, n in pairs}
    for p, q in sorted(devices):
        here, there = (r.environment if name == LOCAL else r.devices.get(name) for r, name in ((a, p), (b, q)))
        if here is None or there is None:
            label = next(m.setting.label for m, n in pairs if (m.setting.device, n.setting.device) == (p, q))
            yield f"{label}: device {p if here is None else q}, whose environment is not known"
            continue
        for name in _ENVIRONMENT:
            x, y = getattr(here, name), getattr(there, name)
            if x != y:
                yield f"{name} {_short(x)} and {_short(y)}"
    for m, n in pairs:
        for name in _SETTING:
            x, y = getattr(m.setting, name), getattr(n.setting, name)
            if x != y:
                yield f"{m.setting.label}: {name} {_short(x)} and {_short(y)}"


def _short(x: object) -> str:
    return ",".join(map(str, x)) if isinstance(x, tuple) else str(x)
