"""`simplify(model) -> Simplified`: fewer nodes with the same outputs, checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgeopt import graph
from edgeopt.data import Feed
from edgeopt.data.made_up import feed_for
from edgeopt.errors import DataError, ValidityError
from edgeopt.files import check_place, staged, temporary_folder
from edgeopt.files.cloud import anywhere
from edgeopt.numbers.scores import OutputReport, compare, lowest_sqnr_db
from edgeopt.options import takes
from edgeopt.options.models import Simplify
from edgeopt.passes import simplifying as passes
from edgeopt.passes.narrow import own_pads
from edgeopt.passes.tie import tied
from edgeopt.runtime.feeds import feeds_of
from edgeopt.runtime.measure import PairedLatency, interleaved
from edgeopt.runtime.probe import shapes
from edgeopt.runtime.session import as_given, finite, open_session, run_all, try_loops
from edgeopt.runtime.transformer import fuse

# float32 rounding in a deep network gives about 100 dB; fused transformers approximate erf and tanh differently
MIN_SQNR_DB = 70.0
_SAMPLES = 4


@dataclass(frozen=True)
class Simplified:
    """The simplified model and measurements. nodes, size_bytes: (before, after)."""

    model: ir.Model
    path: Path | None
    nodes: tuple[int, int]
    size_bytes: tuple[int, int]
    errors: tuple[OutputReport, ...]
    latency: PairedLatency

    @property
    def worst_sqnr_db(self) -> float:
        """The lowest SQNR of all outputs compared with the original model, in dB."""
        return lowest_sqnr_db(self.errors)


@takes(Simplify)
@anywhere
def simplify(model: graph.Source, options: Simplify) -> Simplified:
    """Fold and fuse nodes of `model`; check on samples, or on generated inputs, that the outputs are the same.

    Raises:
        UsageError: the output exists, or a name is wrong. ModelError: a pass failed. ValidityError: outputs differ;
          nothing was written.
    """
    path, transformer = options.output, options.transformer
    if path is not None:
        check_place(path, options.force, (options.data,))
    given = graph.load(model)
    source = graph.canonical(given)
    # the transformer fusions match the patterns written by exporters, so they run first
    fused = source if transformer is None else fuse(source, transformer, backend=options.backend)
    result = tied(fused if transformer is not None else passes.simplify(source))
    feeds = _feeds(source, options)
    try_loops(source, feeds[0][1])
    result = own_pads(result, shapes(result, feeds[0][1]))
    with temporary_folder() as folder, staged(path or folder / "model.onnx") as stage:
        final = stage / (path.name if path is not None else "model.onnx")
        graph.write(result, final)
        before, after = open_session(source), open_session(final)
        errors = tuple(compare(after.outputs, run_all(before, feeds), run_all(after, feeds)))
        for e in errors:
            if e.sqnr_db < MIN_SQNR_DB:
                raise ValidityError(
                    f"output {e.output!r} differs from the model before: SQNR {e.sqnr_db:.1f} dB; nothing was written"
                )
        sessions = {"before": as_given(given, source), "after": after}
        latency = interleaved(sessions, "before", dict.fromkeys(sessions, feeds[0][1]), seconds=0.5)["after"]
        size = final.stat().st_size
    nodes = (sum(1 for _ in source.graph.all_nodes()), sum(1 for _ in result.graph.all_nodes()))
    before_size = Path(model).stat().st_size if isinstance(model, str | Path) else graph.size_bytes(source)
    return Simplified(result, path, nodes, (before_size, size), errors, latency)


def _feeds(model: ir.Model, options: Simplify) -> list[tuple[str, Feed]]:
    if options.data is None:
        return [("made up", feed_for(model, options.dims))]
    feeds, _ = feeds_of(model, options.data, options, _SAMPLES)
    for name, feed in feeds:
        if not finite(feed.values()):
            raise DataError(f"sample {name} is not finite, so it shows nothing; mend or remove it")
    return feeds
