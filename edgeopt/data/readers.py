"""Samples from Python objects: arrays, feeds, torch datasets and data loaders, Hugging Face datasets, and onnxruntime's
`CalibrationDataReader`.

A sample is a mapping from input names to arrays, an array for a model with one input, or a tuple of arrays in the order
of the inputs; one additional last item, as in `(x, y)`, is a label and is ignored. Tensors become arrays, float64
becomes the input's float type, an item of a dataset without a batch axis gets one, and a batch is split if the model's
batch size is fixed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgeopt.data.foreign import foreign
from edgeopt.data.spec import LABEL, Feed, InputSpec, Sample
from edgeopt.errors import DataError

T_co = TypeVar("T_co", covariant=True)


@runtime_checkable
class Reader(Protocol):
    """The interface of onnxruntime's `CalibrationDataReader`."""

    def get_next(self) -> Any:
        """The next feed, None after the last one."""


@runtime_checkable
class Dataset(Protocol[T_co]):
    """A torch or Hugging Face dataset: samples are accessed by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> T_co: ...


InMemory: TypeAlias = NDArray[Any] | Iterable[Any] | Dataset[Any] | Reader


@dataclass
class Readers:
    """Makes samples for a model's `inputs` from Python objects."""

    inputs: Sequence[InputSpec]
    name: str = "sample"
    """Prefix of sample names."""
    count: int | None = None
    """Largest number of items taken from an iterator."""
    seed: int = 0
    """Seed for the order of a sequence, an array or a dataset."""
    optional: Sequence[InputSpec] = ()
    """Inputs with a default, which only mappings can give, by name."""
    notes: list[str] = field(default_factory=list)
    """Conversions of the samples that the user should know about."""

    def samples(self, data: InMemory) -> list[Sample]:
        """The samples of `data`.

        Raises:
            DataError: it contains no samples, or an item that cannot be converted to a feed.
        """
        if isinstance(data, np.ndarray):
            return self._rows(data)
        if isinstance(data, Reader):
            data = iter(data.get_next, None)
        if not isinstance(data, Sequence | Mapping) and isinstance(data, Dataset):
            return self._indexed(data)
        if not isinstance(data, Iterable) or isinstance(data, Mapping):
            raise DataError(f"{self.name}: samples are a path, an array, or something that yields feeds, not {data!r}")
        if not isinstance(data, Sequence):
            items = enumerate(itertools.islice(data, self.count))
            return [sample for i, item in items for sample in self._taken_apart(f"{self.name}[{i}]", item)]
        found = [sample for i, item in enumerate(data) for sample in self._taken_apart(f"{self.name}[{i}]", item)]
        return [found[i] for i in self._order(len(found))]

    def _order(self, count: int) -> list[int]:
        """A fixed random order: what is in memory is often sorted by class, or by time."""
        return [int(i) for i in np.random.default_rng(self.seed).permutation(count)]

    def _rows(self, data: NDArray[Any]) -> list[Sample]:
        """Samples along axis 0, or a single sample if `data` has one dimension less than the input."""
        if len(self.inputs) != 1:
            raise DataError(f"{self.name}: an array is for a model with one input; this one has {self._names}")
        spec = self.inputs[0]
        if spec.shape is not None and data.ndim == len(spec.shape) - 1:
            data = data[None]
        step = spec.fixed(0) or 1
        if not data.ndim or len(data) < step:
            raise DataError(
                f"{self.name}: an array of shape {list(data.shape)} holds no samples for input {spec.name!r}"
            )
        data = self._cast(data, spec)
        rows = range(0, len(data) - step + 1, step)
        return [
            (f"{self.name}[{rows[k]}]", partial(_slice, {spec.name: data}, rows[k], step))
            for k in self._order(len(rows))
        ]

    def _indexed(self, data: Dataset[Any]) -> list[Sample]:
        """Samples of a dataset, read lazily."""
        if len(data) == 0:
            raise DataError(f"{self.name}: a {type(data).__name__} without samples")
        self._item(data, 0)  # finds errors that affect all samples before the work begins
        return [(f"{self.name}[{i}]", partial(self._item, data, i)) for i in self._order(len(data))]

    def _item(self, data: Dataset[Any], index: int) -> Feed:
        with foreign(f"{self.name}[{index}]", DataError):
            row = data[index]
        feed = self._feed(f"{self.name}[{index}]", self._columns(row))
        return {n: x if s is None else _with_batch(x, s) for n, x in feed.items() for s in [self._known.get(n)]}

    def _columns(self, row: object) -> object:
        """`row` without the columns that are not inputs or labels."""
        if isinstance(row, Mapping) and {s.name for s in self.inputs} <= row.keys():
            return {k: v for k, v in row.items() if k == LABEL or k in self._known}
        return row

    def _taken_apart(self, where: str, item: object) -> list[Sample]:
        """`item` as one sample, or split into several if the model's batch size is fixed."""
        feed = self._feed(where, item)
        fixed = next((n for s in self.inputs if (n := s.fixed(0)) is not None and s.name in feed), None)
        lengths = {len(x) for x in feed.values() if x.ndim}
        if fixed is None or len(lengths) != 1 or (length := lengths.pop()) <= fixed or length % fixed:
            return [(where, partial(dict, feed))]
        if any(s.fixed(0) != fixed for s in self.inputs):
            return [(where, partial(dict, feed))]
        return [(f"{where}[{i}]", partial(_slice, feed, i, fixed)) for i in range(0, length, fixed)]

    def _feed(self, where: str, item: object) -> Feed:
        if isinstance(item, Mapping):
            return self._of_mapping(where, item)
        values = [item] if not isinstance(item, tuple | list) else list(item)
        if not 0 <= len(values) - len(self.inputs) <= 1 or not all(_is_array(v) for v in values[: len(self.inputs)]):
            raise DataError(
                f"{where}: a sample is a mapping from input names to arrays, or arrays in the order of the inputs "
                f"({self._names}), got {_kind(item)}"
            )
        return {s.name: self._array(v, s, where) for s, v in zip(self.inputs, values, strict=False)}

    def _of_mapping(self, where: str, item: Mapping[Any, Any]) -> Feed:
        known = self._known
        if any(k in known and hasattr(v, "getbands") for k, v in item.items()):
            raise DataError(
                f"{where}: a picture is no array yet: give a folder of images, or arrays as the model reads"
            )
        return {str(k): self._array(v, known.get(str(k)), where) for k, v in item.items()}

    def _array(self, value: Any, spec: InputSpec | None, where: str) -> NDArray[Any]:
        name = "" if spec is None else f" {spec.name!r}"
        try:
            found = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        except (ValueError, TypeError) as e:
            raise DataError(f"{where}: input{name} is no array ({e})") from e
        if spec is None:
            return found
        return self._cast(found, spec)

    def _cast(self, found: NDArray[Any], spec: InputSpec) -> NDArray[Any]:
        """Convert float64 (NumPy's type for Python floats) to the input's float type."""
        if found.dtype != np.float64 or spec.dtype not in (np.float32, np.float16):
            return found
        line = f"input {spec.name!r}: float64 samples become {spec.dtype.name}"
        if line not in self.notes:
            self.notes.append(line)
        return found.astype(spec.dtype)

    @property
    def _known(self) -> Mapping[str, InputSpec]:
        return {s.name: s for s in (*self.inputs, *self.optional)}

    @property
    def _names(self) -> str:
        return ", ".join(s.name for s in self.inputs)


def _with_batch(x: NDArray[Any], spec: InputSpec) -> NDArray[Any]:
    """`x`, an item of a dataset, with a batch axis added if the input has one more axis."""
    missing = spec.shape is not None and x.ndim == len(spec.shape) - 1 and spec.fixed(0) in (1, None)
    return x[None] if missing else x


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray | np.generic) or hasattr(value, "detach") or hasattr(value, "__array__")


def _kind(item: object) -> str:
    if isinstance(item, tuple | list):
        return f"{type(item).__name__} of {', '.join(type(v).__name__ for v in item[:4])}"
    return type(item).__name__


def _slice(feed: Feed, start: int, step: int) -> Feed:
    return {n: np.ascontiguousarray(x[start : start + step]) for n, x in feed.items()}
