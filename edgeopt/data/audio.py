"""Waveforms: mono float32 in -1 ... 1, cut or padded if the model has a fixed length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeopt.data.spec import Feed, InputSpec
from edgeopt.errors import DataError, UsageError

_LONGEST = 160_000  # audio samples, for models that accept any length


def read(path: Path, inputs: Sequence[InputSpec]) -> Feed:
    """The feed [1, n] or [n] of one .wav file.

    Raises:
        UsageError: the extra `audio` is not installed. DataError: the file is unreadable, or the model has more than
          one input.
    """
    try:
        import soundfile
    except ImportError as e:
        raise UsageError("reading .wav needs the extra: pip install 'edgeopt[audio]'") from e
    if len(inputs) != 1:
        raise DataError(
            f"a waveform fills one input; this model has {', '.join(s.name for s in inputs)}: "
            "give its feeds as .npz or package.module:function"
        )
    spec = inputs[0]
    try:
        wave, _ = soundfile.read(path, dtype="float32", always_2d=True)
    except (RuntimeError, OSError, ValueError) as e:
        raise DataError(f"{path}: not a readable .wav ({e})") from e
    if not wave.size:
        raise DataError(f"{path}: no sound in it")
    mono = wave.mean(axis=1)
    length = spec.fixed(-1) or min(mono.size, _LONGEST)
    fitted = np.zeros(length, np.float32)
    fitted[: min(length, mono.size)] = mono[:length]
    rank = len(spec.shape) if spec.shape is not None else 2
    return {spec.name: fitted.reshape([1] * (rank - 1) + [length]).astype(spec.dtype)}
