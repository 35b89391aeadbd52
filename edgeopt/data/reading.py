"""Read samples: from files, functions or arrays to feeds that fit a model's inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.data.guess import Guess, guess
from edgeopt.data.images import image_input, load_toml, resolve
from edgeopt.data.listing import exists, files_of
from edgeopt.data.made_up import random_samples
from edgeopt.data.readers import InMemory, Readers
from edgeopt.data.source import HELD_OUT, kind_of, open_data, readable
from edgeopt.data.spec import Feed, InputSpec, Samples, needed, optional
from edgeopt.errors import UsageError
from edgeopt.hardware.host import cores, threads
from edgeopt.numbers.scores import Outputs, class_scores
from edgeopt.options.reading import PRESETS, Preprocess, Reading

RANDOM = "random"
Data = str | Path | InMemory
Run = Callable[[Feed], Outputs]
Distance = Callable[[Sequence[Feed]], float]
_GUESS_SAMPLES = (12, 48)  # looked at; more if fewer do not decide
_RANDOM = 256  # samples, if not told: as many as asked for are held in memory
_SPARE = 8  # random samples in addition to the calibration samples


def read(
    data: Data,
    inputs: Sequence[InputSpec],
    reading: Reading,
    run: Run,
    distance: Distance | None = None,
    *,
    judged: bool = True,
) -> Samples:
    """The samples of `data` for a model's `inputs`; a missing input with a default gets the default.

    run: runs the float model; distance: of feeds from what it was trained with (`runtime.norm`). Both are used to guess
    the preprocessing of images if it is not given. judged: whether what is done depends on how images were prepared;
    timing and comparing two forms of one model do not.

    Raises:
        UsageError: nothing tells the preprocessing of images, and it matters. UsageError, DataError: see
          `edgeopt.data.source.open_data`.
    """
    found = _read(data, inputs, reading, run, distance, judged)
    defaults = {s.name: s.default for s in optional(inputs) if s.default is not None}
    if not defaults:
        return found
    return replace(found, samples=[(name, partial(_completed, reader, defaults)) for name, reader in found.samples])


def _completed(reader: Callable[[], Feed], defaults: Feed) -> Feed:
    return {**defaults, **reader()}


def _read(
    data: Data, inputs: Sequence[InputSpec], reading: Reading, run: Run, distance: Distance | None, judged: bool
) -> Samples:
    if not isinstance(data, str | Path):
        readers = Readers(
            needed(inputs), count=reading.samples + HELD_OUT, seed=reading.sample_seed, optional=optional(inputs)
        )
        return Samples(readers.samples(data), "arrays in memory", notes=tuple(readers.notes))
    if data == RANDOM:
        warning = "random data: ranges and figures mean nothing for real inputs; use it to try the tool only"
        count = reading.samples if "samples" in reading.model_fields_set else min(reading.samples, _RANDOM)
        return Samples(random_samples(inputs, count + _SPARE), RANDOM, notes=(warning,))
    spec = image_input(needed(inputs))
    if spec is None or not _has_images(Path(data), inputs, reading):
        return open_data(data, inputs, reading)
    guessed = partial(_guess, Path(data), inputs, reading, run, distance)
    recipe, told = _recipe(Path(data), reading, guessed, spec, judged)
    resolved = resolve(recipe, spec)
    found = open_data(data, inputs, reading.model_copy(update={"preprocess": resolved}))
    notes = (*told, f"images: {resolved.describe()}", *found.notes)
    return replace(found, recipe=resolved.describe(), resolved=resolved, notes=notes)


def _has_images(path: Path, inputs: Sequence[InputSpec], reading: Reading) -> bool:
    return exists(path) and kind_of(files_of(path, reading.data_option)[0], needed(inputs)) == "images"


def _recipe(
    path: Path, reading: Reading, guessed: Callable[[], Guess], spec: InputSpec, judged: bool
) -> tuple[Preprocess, list[str]]:
    """(recipe, notes for the user); fields given by the user take precedence over the preset, this over
    `preprocess.toml`, and this over a guess with the float model. Of pixels only the size is told.
    """
    said = reading.preprocess
    base, notes = PRESETS[said] if isinstance(said, str) else said, list[str]()
    beside = next((f for f in (path / "preprocess.toml", path.parent / "preprocess.toml") if f.is_file()), None)
    if base is None and beside is not None:
        base, notes = load_toml(beside), [f"preprocessing: from {beside}"]
    if spec.pixels:
        raw = {"scale": 1.0, "mean": (0.0,), "std": (1.0,), "layout": "NHWC", "color": spec.pixels}
        return Preprocess.model_validate({**_merged(base or Preprocess(), reading).image_fields(), **raw}), notes
    if base is None and not {"scale", "mean", "std"} & reading.model_fields_set:
        found = guessed()
        if not found.clear and judged:
            known = "|".join(PRESETS)
            raise UsageError(f"{found.describe()}: say --preprocess {known} or --mean and --std, as in its training")
        base, notes = PRESETS[found.preset], [found.describe() + ("" if found.clear else f": took '{found.preset}'")]
    return _merged(base or PRESETS["unit"], reading), notes


def _merged(base: Preprocess, reading: Reading) -> Preprocess:
    """`base` with the fields that the user gave; mean and std are reordered if that swaps red and blue."""
    fields, given = base.image_fields(), reading.image_fields(only_given=True)
    turned = {given.get("color", base.color), base.color or "rgb"} == {"rgb", "bgr"}
    if turned:
        fields |= {"mean": base.mean[::-1], "std": base.std[::-1]}
    return Preprocess.model_validate({**fields, **given})


def _guess(path: Path, inputs: Sequence[InputSpec], reading: Reading, run: Run, distance: Distance | None) -> Guess:
    fewer = _looked(path, inputs, reading, run, distance, _GUESS_SAMPLES[0])
    return fewer if fewer.clear else _looked(path, inputs, reading, run, distance, _GUESS_SAMPLES[1])


def _looked(
    path: Path, inputs: Sequence[InputSpec], reading: Reading, run: Run, distance: Distance | None, count: int
) -> Guess:
    spec = image_input(needed(inputs))
    assert spec is not None
    answers: dict[str, NDArray[Any] | None] = {}
    distances: dict[str, float] = {}
    for name, preset in PRESETS.items():
        recipe = resolve(_merged(preset, reading), spec)
        samples = open_data(path, inputs, reading.model_copy(update={"preprocess": recipe})).samples
        feeds, _ = readable(samples[:count], total=len(samples))
        if distance is not None:
            distances[name] = distance([feed for _, feed in feeds])
        with threads(cores()) as pool:
            outputs = list(pool.map(run, [feed for _, feed in feeds]))
        scores = [[y[0] for y in of_sample if y.ndim == 2 and class_scores([y])] for of_sample in outputs]
        alike = scores and all(scores) and len({s[0].shape for s in scores}) == 1
        answers[name] = np.stack([s[0] for s in scores]) if alike else None
    return guess(answers, "imagenet" if spec.fixed(1) != 1 and spec.fixed(3) != 1 else "unit", distances)
