"""The first samples of a user's data as feeds that fit a model."""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.data import Data, Feed, Reading, read, readable, specs
from edgeopt.data.spec import check_feed, without_label
from edgeopt.errors import DataError
from edgeopt.runtime.norm import norm_distance
from edgeopt.runtime.session import open_session


def feeds_of(
    model: ir.Model, data: Data, options: Reading, count: int, *, judged: bool = False
) -> tuple[list[tuple[str, Feed]], tuple[str, ...]]:
    """(the first `count` samples of `data`, without labels, notes for the user); `judged`: see `edgeopt.data.read`.

    Raises:
        DataError: none can be read, or one does not fit the inputs of `model`.
    """
    found = read(data, specs(model), options, open_session(model).run, norm_distance(model), judged=judged)
    feeds, problems = readable(found.samples[:count])
    if not feeds:
        raise DataError(f"{options.data_option} {data}: no sample can be read: {next(iter(problems.values()), '')}")
    for name, feed in feeds:
        check_feed(feed, model, name)
    return [(name, without_label(feed, model)) for name, feed in feeds], found.notes
