"""Convert text to token ids with a Hugging Face `tokenizer.json`: one text for each sample, padded only if the model
has a fixed length, with the tokenizer's padding side and id.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.data.foreign import foreign
from edgeopt.data.spec import Feed, InputSpec, Sample, Samples, refuse_many
from edgeopt.errors import DataError, UsageError, extra, suggestion
from edgeopt.files import json_of, text_of

SUFFIXES = frozenset({".jsonl", ".csv", ".tsv", ".txt"})
_ABOUT = re.compile(r"licen[cs]e|copying|notice|readme|changelog|vocab|merges|requirements", re.IGNORECASE)
_NAMES = (
    "text", "sentence", "content", "review", "document", "utterance", "question", "query", "premise", "sentence1",
    "comment", "message", "tweet", "body", "title", "description", "headline", "abstract", "prompt", "instruction",
)  # fmt: skip
_LONGEST = 128  # tokens, for models that accept any length
_LONGEST_LINE = 1 << 20  # characters
_LOOKED_AT = 50  # rows used to find the column of text
_SEPARATORS = (",", ";", "\t", "|")
_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>", "<|endoftext|>", "</s>")  # the last two only if there is no other


def is_about(file: Path) -> bool:
    """Whether a .txt file is not a sample but accompanies the samples: a licence, a vocabulary, a readme."""
    return file.suffix.lower() == ".txt" and _ABOUT.fullmatch(file.stem) is not None


def samples(files: list[Path], tokenizer: Path, inputs: Sequence[InputSpec], column: str | None = None) -> Samples:
    """A sample for each line of .txt, object of .jsonl and row of .csv.

    column: the field or column of the text, by name or, of .csv, by number from 1; None: found by name and content.

    Raises:
        UsageError: the extra `text` is missing, the tokenizer is unreadable, there is no such column, or the model has
          an input that a tokenizer does not produce.
    """
    check(inputs)
    encoder = load(tokenizer)
    padding = _padding(encoder)
    encoder.no_padding()
    encoder.enable_truncation(inputs[0].fixed(-1) or _LONGEST)
    found: list[Sample] = []
    notes: list[str] = []
    problems: dict[str, str] = {}
    for file in files:
        texts = _texts(file, column)
        notes += texts.notes
        problems |= {f"{file}:{i}": str(line) for i, line in texts.lines if isinstance(line, DataError)}
        encode = partial(_encode, encoder=encoder, padding=padding, inputs=inputs)
        found += [(f"{file}:{i}", partial(_sample, line, f"{file}:{i}", encode)) for i, line in texts.lines]
    refuse_many(problems, len(found))
    if any(s.fixed(-1) for s in inputs):
        notes.append(f"text: padded on the {padding['direction']} with id {padding['pad_id']} ({padding['pad_token']})")
    return Samples(found, "text", notes=tuple(notes))


def check(inputs: Sequence[InputSpec]) -> None:
    """Refuse inputs that a tokenizer does not produce.

    Raises:
        UsageError: there is one; the message lists the inputs.
    """
    known = {"input_ids", "attention_mask", "token_type_ids"}
    if not inputs or any(s.name not in known for s in inputs):
        raise UsageError(
            f"a tokenizer fills {', '.join(sorted(known))}; this model has {', '.join(s.name for s in inputs)}: "
            "give its feeds as .npz"
        )


def load(tokenizer: Path) -> Any:
    """The tokenizer in a `tokenizer.json`.

    Raises:
        UsageError: the extra `text` is missing, or the file is not one.
    """
    try:
        import tokenizers
    except ImportError as e:
        raise UsageError(f"reading text needs the extra: {extra('text')}") from e
    try:
        text = text_of(tokenizer)
    except (OSError, ValueError) as e:
        raise UsageError(f"--tokenizer {tokenizer}: cannot be read ({e})") from e
    with foreign(f"--tokenizer {tokenizer}: not a tokenizer.json of Hugging Face tokenizers"):
        return tokenizers.Tokenizer.from_str(text)


def _padding(encoder: Any) -> Mapping[str, Any]:
    """The tokenizer's padding; without one, the first known padding token in its vocabulary, on the right."""
    said = encoder.padding
    if said is not None:
        return {k: said[k] for k in ("direction", "pad_id", "pad_type_id", "pad_token")}
    found = [(encoder.token_to_id(token), token) for token in _PADS]
    pad_id, token = next(((i, token) for i, token in found if i is not None), (0, encoder.id_to_token(0) or ""))
    return {"direction": "right", "pad_id": pad_id, "pad_type_id": 0, "pad_token": token}


@dataclass(frozen=True)
class _Texts:
    """The texts of a file with their line or row numbers; an error in place of a text that cannot be read."""

    lines: list[tuple[int, str | DataError]]
    notes: tuple[str, ...] = ()


def _texts(file: Path, column: str | None = None) -> _Texts:
    suffix = file.suffix.lower()
    try:
        if suffix == ".txt":
            return _Texts([(i, line) for i, line in _lines(file) if isinstance(line, DataError) or line.strip()])
        return _of_json(file, column) if suffix == ".jsonl" else _of_csv(file, column)
    except (OSError, ValueError, csv.Error) as e:
        raise DataError(f"{file}: not readable as UTF-8 {suffix[1:]} ({e})") from e


def _lines(file: Path) -> Iterator[tuple[int, str | DataError]]:
    """(number, line) of a file; an overlong line is an error and is not read as a whole."""
    with file.open(encoding="utf-8-sig") as stream:
        for i in range(1, 1 << 62):
            line = stream.readline(_LONGEST_LINE)
            if not line:
                return
            if len(line) < _LONGEST_LINE or line.endswith("\n"):
                yield i, line.removesuffix("\n")
                continue
            while line and not line.endswith("\n"):
                line = stream.readline(_LONGEST_LINE)
            yield i, DataError(f"{file}:{i}: a line of more than {_LONGEST_LINE} characters")


def _of_json(file: Path, column: str | None) -> _Texts:
    found: list[tuple[int, Any]] = []
    for i, line in _lines(file):
        if isinstance(line, DataError):
            found.append((i, line))
        elif line.strip():
            try:
                found.append((i, json_of(line)))
            except ValueError as e:
                found.append((i, DataError(f"{file}:{i}: not JSON ({e})")))
    everything = [item for _, item in found if isinstance(item, dict)]
    rows = everything if column is not None else everything[:_LOOKED_AT]
    fields = list(dict.fromkeys(k for row in rows for k in row))
    if column is not None and column not in fields:
        raise UsageError(f"--column {column}: no such field in {file}{suggestion(column, fields)}")
    best = _best([(k, [v for row in rows if isinstance(v := row.get(k), str)]) for k in fields])
    wanted = column or (None if best is None else fields[best])
    notes = () if wanted is None or fields == [wanted] else (f"text: field {wanted!r} of {file.name}",)
    return _Texts([(i, _string(item, wanted, f"{file}:{i}", strict=column is not None)) for i, item in found], notes)


def _string(item: Any, field: str | None, where: str, *, strict: bool) -> str | DataError:
    if isinstance(item, str | DataError):
        return item
    if isinstance(item, dict):
        other = None if strict else next((v for v in item.values() if isinstance(v, str)), None)
        value = item.get(field, other)
        if isinstance(value, str):
            return value
    return DataError(f"{where}: no text in it; expected a string or an object with a field {field or 'text'!r}")


def _of_csv(file: Path, column: str | None) -> _Texts:
    def lines() -> Iterator[str]:
        for _, line in _lines(file):
            if isinstance(line, DataError):
                raise ValueError(str(line))
            yield f"{line}\n"

    head = [line for line, _ in zip(lines(), range(_LOOKED_AT), strict=False)]
    tabs = file.suffix.lower() == ".tsv"
    separator = "\t" if tabs else max(_SEPARATORS, key=lambda s: _columns(head, s)) if head else ","
    rows = [row for row in csv.reader(lines(), delimiter=separator, quoting=_quoting(lines(), tabs)) if row]
    width = max((len(row) for row in rows), default=0)
    below = [[row[i] for row in rows[1 : _LOOKED_AT + 1] if len(row) > i] for i in range(width)]
    named = bool(rows) and _has_header(rows[0], below, column)
    names = rows[0] + [""] * (width - len(rows[0])) if named else [str(i + 1) for i in range(width)]
    columns = list(zip(names, below, strict=True))
    if column is not None and column not in names and not (column.isdigit() and 1 <= int(column) <= width):
        raise UsageError(f"--column {column}: no such column in {file}{suggestion(column, names)}")
    whole = columns if named else [(n, [*rows[0][i : i + 1], *cells]) for i, (n, cells) in enumerate(columns)]
    at = _best(whole)
    if column is not None:
        at = names.index(column) if column in names else int(column) - 1
    if at is None:
        return _Texts([])
    wanted = names[at] or str(at + 1)
    notes = () if width == 1 else (f"text: column {wanted!r} of {file.name}{'' if named else ', without a header'}",)
    return _Texts([(i, row[at]) for i, row in enumerate(rows[named:], 1) if len(row) > at and row[at]], notes)


def _quoting(lines: Iterator[str], tabs: bool) -> Any:
    """csv's quoting mode: quotes in a .tsv are literal if all rows have as many columns and not all quotes are closed
    within their cell.
    """
    if not tabs:
        return csv.QUOTE_MINIMAL
    rows = [row for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    opened = [c for row in rows for c in row if c.startswith('"')]
    even = len({len(row) for row in rows}) == 1
    closed = all(len(c) > 1 and c.endswith('"') for c in opened)
    return csv.QUOTE_NONE if even and not closed else csv.QUOTE_MINIMAL


def _columns(lines: Sequence[str], separator: str) -> tuple[bool, int]:
    """(whether all lines have the same number of columns above 1, the smallest number) if split by `separator`."""
    try:
        widths = {len(row) for row in csv.reader(lines, delimiter=separator) if row}
    except csv.Error:
        return False, 0
    return len(widths) == 1 and max(widths) > 1, min(widths, default=0)


def _has_header(first: Sequence[str], below: Sequence[Sequence[str]], column: str | None) -> bool:
    """Whether the first row names the columns: a known name, a name above numbers, or a single word above texts."""
    if (column in first and not str(column).isdigit()) or any(cell.strip().lower() in _NAMES for cell in first):
        return True
    if any(_number(cell) for cell in first):
        return False
    pairs = list(zip(first, below, strict=False))
    numbers = any(cells and all(_number(c) for c in cells) for _, cells in pairs)
    words = any(
        re.fullmatch(r"[a-z][a-z0-9_-]*", cell.strip())
        and cells
        and 2 * sum(" " in c.strip() for c in cells) >= len(cells)
        for cell, cells in pairs
    )
    return numbers or words


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _best(columns: Sequence[tuple[str, Sequence[str]]]) -> int | None:
    """Index of the text column: one with a known name, else the one with the most letters; None if there is no text."""
    filled = [i for i, (_, cells) in enumerate(columns) if any(cells)]
    called = {columns[i][0].strip().lower(): i for i in reversed(filled)}
    known = next((called[name] for name in _NAMES if name in called), None)
    letters = {i: sum(c.isalpha() + c.isspace() for cell in columns[i][1] for c in cell) for i in filled}
    most = max((i for i in filled if letters[i]), key=letters.__getitem__, default=None)
    return most if known is None else known


def _sample(line: str | DataError, where: str, encode: Callable[[str], Feed]) -> Feed:
    if isinstance(line, DataError):
        raise line
    with foreign(f"{where}: no text", DataError):  # e.g. a lone surrogate or an unknown token
        return encode(line)


def _encode(line: str, encoder: Any, padding: Mapping[str, Any], inputs: Sequence[InputSpec]) -> Feed:
    feed = {}
    for spec in inputs:
        encoding, length = encoder.encode(line), spec.fixed(-1)
        if length is not None:
            if len(encoding.ids) > length:
                raise DataError(f"input {spec.name!r} holds {length} tokens, fewer than the tokenizer's special ones")
            encoding.pad(length, **padding)
        columns = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        feed[spec.name] = np.asarray(columns[spec.name], spec.dtype)[None]
    return feed
