"""What the tasks are made of: the model folder, a float runner, the photos and the text of WordNet."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

Feed = dict[str, np.ndarray]
Runner = Callable[[Feed], list[np.ndarray]]  # runs a model, outputs in graph order

MODELS = Path(os.environ.get("EDGEOPT_MODELS", Path(__file__).resolve().parent.parent / "models"))
PHOTOS = tuple(sorted(MODELS.glob("photos*/*.[jp][pn]g")))
SCORED_PHOTOS = tuple(sorted(MODELS.glob("photos/*.jpg")))[::2]
CALIBRATION_PHOTOS = tuple(photo for photo in PHOTOS if photo not in SCORED_PHOTOS)
SCORE_SEED, CALIBRATION_SEED = 0, 1


def float_runner(model: Path) -> Runner:
    """Runs the file `model` in onnxruntime, on one CPU thread."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda feed: list(session.run(None, feed))


@functools.cache
def synsets(part: str) -> tuple[tuple[str, str], ...]:
    """(lemmas joined by commas, definition) of the synsets of `part` ("noun", "verb") with several lemmas and a unique
    definition.
    """
    found: dict[str, list[str]] = {}
    for line in (MODELS / "wordnet" / f"data.{part}").read_text("ascii").splitlines():
        if line.startswith("  "):  # the licence
            continue
        record, _, gloss = line.partition(" | ")
        fields = record.split()
        lemmas = [lemma.replace("_", " ") for lemma in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
        found.setdefault(gloss.split(";")[0].strip(), []).append(", ".join(lemmas))
    return tuple((names[0], gloss) for gloss, names in found.items() if gloss and len(names) == 1 and "," in names[0])
