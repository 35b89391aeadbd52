"""Waveforms: mono float32 in -1 ... 1, at the model's rate, cut or padded if the model has a fixed length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.data.spec import Feed, InputSpec, Sample, Samples
from edgeopt.errors import DataError, UsageError, extra
from edgeopt.options.reading import Reading

SUFFIXES = frozenset({".wav", ".flac", ".ogg"})
_LONGEST = 160_000  # audio samples, for models that accept any length


def samples(files: Sequence[Path], inputs: Sequence[InputSpec], reading: Reading) -> Samples:
    """A sample for each audio file; notes say rates, lengths and channels.

    Raises:
        UsageError: the extra `audio` is not installed, or the files have several rates and none is given.
        DataError: the model has more than one input.
    """
    library = _soundfile()
    if len(inputs) != 1:
        raise DataError(
            f"a waveform fills one input; this model has {', '.join(s.name for s in inputs)}: "
            "give its feeds as .npz or package.module:function"
        )
    facts = [_fact(library, file) for file in files]
    known = [f for f in facts if f is not None]
    rates = Counter(f.samplerate for f in known)
    if len(rates) > 1 and reading.sample_rate is None:
        counts = ", ".join(f"{n} of {rate} Hz" for rate, n in rates.most_common())
        raise UsageError(f"{reading.data_option}: sound of several rates ({counts}); give --sample-rate, the model's")
    found: list[Sample] = [(str(f), partial(read, f, inputs[0], reading)) for f in files]
    return Samples(found, "sound", notes=tuple(_told(known, rates, reading.sample_rate)))


def _told(facts: Sequence[Any], rates: Counter[int], wanted: int | None) -> Iterator[str]:
    if facts:
        lengths = [f.frames / f.samplerate for f in facts]
        heard = ", ".join(f"{rate} Hz" for rate in rates)
        resampled = f", resampled to {wanted} Hz" if wanted is not None and set(rates) != {wanted} else ""
        yield f"sound: {heard}{resampled}; {min(lengths):.2f} ... {max(lengths):.2f} s"
    several = sum(f.channels > 1 for f in facts)
    if several:
        yield f"{several} file{'s have' if several > 1 else ' has'} several channels, which are averaged"


def _soundfile() -> Any:
    try:
        import soundfile
    except ImportError as e:
        raise UsageError(f"reading sound needs the extra: {extra('audio')}") from e
    return soundfile


def _fact(library: Any, file: Path) -> Any:
    """The header of an audio file; None if it is unreadable, which is reported when the sample is read."""
    try:
        return library.info(file)
    except (RuntimeError, OSError, ValueError):
        return None


def read(path: Path, spec: InputSpec, reading: Reading) -> Feed:
    """The feed [1, n] or [n] of one audio file.

    Raises:
        DataError: the file is unreadable or too large.
    """
    library = _soundfile()
    try:
        header = library.info(path)
        size = 4 * header.frames * header.channels
        if size > reading.most_bytes:
            raise DataError(f"{path}: {size / 1e6:.0f} MB of sound; a sample may take {reading.most_bytes / 1e6:.0f}")
        wave, rate = library.read(path, dtype="float32", always_2d=True)
    except (RuntimeError, OSError, ValueError) as e:
        raise DataError(f"{path}: not a readable sound file ({e})") from e
    if not wave.size:
        raise DataError(f"{path}: no sound in it")
    mono = wave.mean(axis=1)
    if reading.sample_rate is not None and rate != reading.sample_rate:
        mono = _resampled(mono, rate, reading.sample_rate)
        if not mono.size:
            raise DataError(f"{path}: too short to be resampled to {reading.sample_rate} Hz")
    length = spec.fixed(-1) or min(mono.size, _LONGEST)
    fitted = np.zeros(length, np.float32)
    fitted[: min(length, mono.size)] = mono[:length]
    rank = len(spec.shape) if spec.shape is not None else 2
    return {spec.name: fitted.reshape([1] * (rank - 1) + [length]).astype(spec.dtype)}


def _resampled(mono: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    try:
        import soxr
    except ImportError as e:
        raise UsageError(f"--sample-rate needs the extra: {extra('audio')}") from e
    return np.asarray(soxr.resample(mono, rate, wanted), np.float32)
