"""Convert text to token ids with a Hugging Face `tokenizer.json`: one text for each sample, padded only if the model
has a fixed length.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.data.spec import Feed, InputSpec, Sample
from edgeopt.errors import DataError, UsageError

_LONGEST = 128


def samples(files: list[Path], tokenizer: Path, inputs: Sequence[InputSpec]) -> list[Sample]:
    """A sample for each line of .txt, object of .jsonl (field `text`, or the first string) and row of .csv (column
    `text`, or the first column).

    Raises:
        UsageError: the extra `text` is missing, the tokenizer is unreadable, or the model has an input that a tokenizer
          does not produce.
    """
    try:
        import tokenizers
    except ImportError as e:
        raise UsageError("reading text needs the extra: pip install 'edgeopt[text]'") from e
    known = {"input_ids", "attention_mask", "token_type_ids"}
    if not inputs or any(s.name not in known for s in inputs):
        raise UsageError(
            f"a tokenizer fills {', '.join(sorted(known))}; this model has {', '.join(s.name for s in inputs)}: "
            "give its feeds as .npz"
        )
    try:
        encoder = tokenizers.Tokenizer.from_str(_description(tokenizer))
    except Exception as e:
        raise UsageError(f"--tokenizer {tokenizer}: not a tokenizer.json of Hugging Face tokenizers ({e})") from e
    encoder.no_padding()
    encoder.enable_truncation(inputs[0].fixed(-1) or _LONGEST)
    return [(f"{f}:{i}", partial(_encode, line, encoder, inputs)) for f in files for i, line in enumerate(_texts(f), 1)]


def _description(tokenizer: Path) -> str:
    try:
        return tokenizer.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise UsageError(f"--tokenizer {tokenizer}: cannot be read ({e})") from e


def _texts(file: Path) -> list[str]:
    try:
        content = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".txt":
            return [line for line in content.split("\n") if line.strip()]
        if file.suffix.lower() == ".csv":
            rows = csv.DictReader(io.StringIO(content, newline=""))
            column = "text" if "text" in (rows.fieldnames or ()) else next(iter(rows.fieldnames or ()), None)
            return [row[column] for row in rows if column and row[column]]
        lines = [(i, line) for i, line in enumerate(content.split("\n"), 1) if line.strip()]
        return [_string(json.loads(line), f"{file}:{i}") for i, line in lines]
    except (OSError, ValueError, RecursionError, csv.Error) as e:
        raise DataError(f"{file}: not readable as UTF-8 {file.suffix.lower()[1:]} ({e})") from e


def _string(item: Any, where: str) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        value = item.get("text", next((v for v in item.values() if isinstance(v, str)), None))
        if isinstance(value, str):
            return value
    raise DataError(f"{where}: no text in it; expected a string or an object with a field 'text'")


def _encode(line: str, encoder: Any, inputs: Sequence[InputSpec]) -> Feed:
    encoding = encoder.encode(line)
    columns = {
        "input_ids": encoding.ids,
        "attention_mask": encoding.attention_mask,
        "token_type_ids": encoding.type_ids,
    }
    feed = {}
    for spec in inputs:
        ids = np.asarray(columns[spec.name], spec.dtype)[None]
        length = spec.fixed(-1)
        if length is not None and ids.shape[1] > length:
            raise DataError(f"input {spec.name!r} holds {length} tokens, fewer than the tokenizer's special ones")
        feed[spec.name] = ids if length is None else np.pad(ids, ((0, 0), (0, length - ids.shape[1])))
    return feed
