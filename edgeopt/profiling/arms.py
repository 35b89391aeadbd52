"""The arms of a measurement (settings to measure) and its presets (for how long)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from edgeopt.errors import UsageError
from edgeopt.graph.serialization import external_files, load
from edgeopt.options.devices import DeviceTable, tables
from edgeopt.options.profile import Profile
from edgeopt.runtime.devices import written
from edgeopt.runtime.environments import python_with
from edgeopt.runtime.process import Here, Place
from edgeopt.runtime.providers import CPU, WEB_PROVIDERS, Requested, installed, parse


@dataclass(frozen=True)
class Preset:
    """How long and how precisely to measure."""

    processes: int
    """The most processes to repeat the measurement in."""
    seconds: float
    """Timing of one arm, over all processes."""
    precision: float
    """Relative half-width of the 95 % interval at which no further process is started, after three at least."""
    warm_up_s: float
    """The longest warm-up of an arm in a process."""
    block_s: float = 0.02
    """Duration of a block of inferences."""
    sustained_s: float = 0.0
    """Duration of a sustained run; 0: none."""


PRESETS = {
    "quick": Preset(processes=2, seconds=3.0, precision=0.02, warm_up_s=1.5),
    "pr": Preset(processes=5, seconds=15.0, precision=0.01, warm_up_s=3.0),
    "release": Preset(processes=10, seconds=120.0, precision=0.005, warm_up_s=10.0),
    "sustained": Preset(processes=1, seconds=0.0, precision=0.01, warm_up_s=0.0, block_s=1.0, sustained_s=600.0),
}


@dataclass(frozen=True)
class Arm:
    """One setting to measure."""

    model: Path
    provider: Requested = field(default_factory=partial(Requested, CPU))
    threads: int = 1
    batch: int | None = None
    """See `made_up.shapes`, as for `dims`."""
    dims: Mapping[str, int] = field(default_factory=dict)
    session: Mapping[str, str] = field(default_factory=dict)
    level: str = "all"
    fixed: Mapping[str, int] = field(default_factory=dict)
    """Named dimensions that are fixed in the session."""
    rate: float = 0.0
    """Inferences per second; 0: back to back."""
    place: Place = field(default_factory=Here)
    """Where it runs, and with which interpreter."""
    timeout_s: float = 120.0
    """Limit for one answer of the worker."""
    label: str = ""


def _unique(found: Sequence[Arm]) -> list[Arm]:
    """The same arms with unique labels: repeated ones are numbered."""
    used: set[str] = set()
    given = {arm.label for arm in found}
    named = []
    for arm in found:
        numbered = (f"{arm.label} #{i}" for i in itertools.count(2))
        label = arm.label if arm.label not in used else next(x for x in numbered if x not in used | given)
        used.add(label)
        named.append(replace(arm, label=label))
    return named


def _names(models: Sequence[Path]) -> dict[Path, str]:
    """A short name for each model: the file's stem, or its path where two files share the stem."""
    stems = [m.stem for m in set(models)]
    return {m: m.stem if stems.count(m.stem) == 1 else str(m) for m in models}


def looking(options: Profile) -> Preset:
    """The preset of `options` with the separately given seconds, processes and sustained time."""
    chosen = PRESETS[options.preset]
    if options.seconds is not None:
        chosen = replace(chosen, seconds=options.seconds)
    if options.processes is not None:
        chosen = replace(chosen, processes=options.processes)
    if options.sustained_s is not None:
        long = PRESETS["sustained"]
        chosen = replace(long, sustained_s=options.sustained_s, block_s=min(long.block_s, options.sustained_s / 20))
    return chosen


def files_read(options: Profile, models: Sequence[Path]) -> tuple[Path, ...]:
    """The files that a measurement of `models` reads."""
    data = [] if options.data is None else [Path(options.data)]
    beside = [f for m in models if m.is_file() for f in external_files(load(m))]
    tokenizer = [] if options.tokenizer is None else [options.tokenizer]
    return (*models, *beside, *options.inputs.values(), *data, *tokenizer)


def described(names: Sequence[str], known: Mapping[str, DeviceTable] | None = None) -> Mapping[str, DeviceTable]:
    """The devices by name: `known` ones, else those of the project file in the current folder, if one is named."""
    if known is not None:
        return known
    file, found = written(names)
    return tables(found, file)


def wanted(options: Profile, models: Sequence[Path], places: Mapping[str, Place] | None = None) -> list[Arm]:
    """The arms of every combination that `options` ask for, labelled by the settings in which they differ; places: by
    the names of `options.devices`.
    """
    places = {options.devices[0]: Here(options.python)} if places is None else places
    batches, dims = tuple(dict.fromkeys(options.batch)) or (None,), options.dims
    own = described(options.devices, options.known)
    settings = [(place, *how) for name, place in places.items() for how in _settings(options, place, own.get(name))]
    providers, threads = {p.label for _, p, _ in settings}, {n for _, _, n in settings}
    sized = [dict(zip(dims, sizes, strict=True)) for sizes in itertools.product(*dims.values())]
    names = _names(models)
    found = []
    for model, (place, provider, n), batch, sizes in itertools.product(models, settings, batches, sized):
        varying = [names[model]] if len(models) > 1 else []
        varying += [place.name] if len(places) > 1 else []
        varying += [provider.label] if len(providers) > 1 else []
        varying += [f"threads={n}"] if len(threads) > 1 else []
        varying += [f"batch={batch}"] if len(batches) > 1 else []
        varying += [f"{k}={sizes[k]}" for k in dims if len(dims[k]) > 1]
        label = " ".join(varying) or names[model]
        arm = Arm(model, provider, n, batch, sizes, options.session, options.level, rate=options.rate, label=label)
        if place == Here():
            known = None if installed(provider) else python_with(provider.name)
            if known is not None:  # with its options, if the user gives none
                place = Here(known[0])
                arm = replace(arm, provider=provider if provider.options else known[1])
        found.append(replace(arm, place=place, timeout_s=options.timeout_s))
    return _unique(found)


def _provider(text: str, place: Place, options: Profile) -> Requested:
    if not place.web:
        return parse(text, options.plugins)
    if text not in WEB_PROVIDERS:
        known = ", ".join(WEB_PROVIDERS)
        raise UsageError(f"--provider {text}: {place.name} has onnxruntime-web, whose providers are {known}")
    return Requested(text)


def _settings(options: Profile, place: Place, own: DeviceTable | None) -> Iterator[tuple[Requested, int]]:
    """(provider, threads) of every combination on a device; what the project file says of it comes before defaults."""
    given = options.model_fields_set
    providers = (own.provider,) if own and own.provider and "providers" not in given else options.providers
    threads = (own.threads,) if own and own.threads and "threads" not in given else options.threads
    if place.web:
        every = tuple(name for text in providers for name in text.split(","))
        providers = WEB_PROVIDERS[:1] if providers == ("cpu",) else every
    parsed = {repr(p): p for p in (_provider(text, place, options) for text in providers)}
    return itertools.product(parsed.values(), dict.fromkeys(threads))
