"""A model's inputs as they will be: sizes for free dimensions, for targets that take fixed shapes only or where the
user gives them; pixels for a prepared image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeopt import graph
from edgeopt.data import Data, Feed, read, specs
from edgeopt.data.made_up import shapes
from edgeopt.data.spec import needed
from edgeopt.errors import DataError, UsageError
from edgeopt.hardware import target as targets
from edgeopt.numbers.ends import IMAGE
from edgeopt.options.quantize import Quantize
from edgeopt.passes.from_image import from_image
from edgeopt.runtime.norm import norm_distance
from edgeopt.runtime.session import as_given

_TRIED = 50  # samples


def with_inputs(source: ir.Model, data: Data, options: Quantize, note: Callable[[str], None]) -> tuple[ir.Model, Data]:
    """(the model with the inputs that the file will have, by options and target; the data, to be read again)."""
    if options.dims or targets.load(options.target).demands.shapes == "fixed":
        source, data = at_fixed_shapes(source, data, options, note)
    if options.input_image is not None:
        source = of_pixels(source, data, options, note)
    return source, data


def at_fixed_shapes(
    source: ir.Model, data: Data, options: Quantize, note: Callable[[str], None]
) -> tuple[ir.Model, Data]:
    """(the model with a size for every dimension of its inputs: as `dims` say, else as the first sample has it; the
    data, to be read again).
    """
    model = graph.canonical(source)
    shapes(model, options.dims, guess=True)  # refuses names that no input has
    source = graph.at_shapes(source, _sizes(model, options.dims, {}))
    model = graph.canonical(source)
    if graph.fixed(model) or targets.load(options.target).demands.shapes == "any":
        return source, data
    samples = read(data, specs(model), options, as_given(source, model).run, norm_distance(model)).samples
    if not isinstance(data, str | Path):  # which may be read once only
        data = [reader() for _, reader in samples]
    found = _sizes(model, {}, next((x for s in samples[:_TRIED] if (x := _fitting(s[1], model)) is not None), {}))
    sizes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in found.items())
    note(
        f"{targets.load(options.target).name} takes fixed shapes only: {sizes}, as in the first sample; "
        "--dim gives others"
    )
    return graph.at_shapes(source, found), data


def of_pixels(source: ir.Model, data: Data, options: Quantize, note: Callable[[str], None]) -> ir.Model:
    """The model with the pixels of an image as its input, which its metadata tell to whoever reads samples for it.

    Raises:
        UsageError: the samples are no images, or the input takes none that are prepared.
    """
    model = graph.canonical(source)
    given = read(data, specs(model), options, as_given(source, model).run, norm_distance(model))
    recipe = given.resolved
    if recipe is None:
        raise UsageError("--input-image: the samples are no images, so nothing tells how an image was prepared")
    (spec,) = needed(specs(model))
    if not np.issubdtype(spec.dtype, np.floating):
        raise UsageError(f"--input-image: input {spec.name!r} is {spec.dtype} already")
    if any(v.name == spec.name for v in model.graph.outputs):
        raise UsageError(f"--input-image: input {spec.name!r} is an output too, and would become another")
    color = "gray" if recipe.color == "gray" else "rgb"
    note(f"the file takes pixels, uint8 [N, H, W, C], {color}, and prepares them as images were: {recipe.describe()}")
    found = from_image(model, spec.name, **recipe.model_dump(include={"layout", "color", "scale", "mean", "std"}))
    found.metadata_props[f"{IMAGE}{spec.name}"] = color
    return found


def _fitting(reader: Callable[[], Feed], model: ir.Model) -> Feed | None:
    """A sample that can be read and has the ranks of the inputs."""
    try:
        feed = reader()
    except DataError:
        return None
    ranks = {str(v.name): len(v.shape) for v in model.graph.inputs if v.shape is not None}
    return feed if all(feed[n].ndim == rank for n, rank in ranks.items() if n in feed) else None


def _sizes(model: ir.Model, dims: Mapping[str, int], feed: Feed) -> dict[str, list[int | ir.SymbolicDim]]:
    """The shape of every input whose rank is known: each dimension by `dims`, else as in `feed`, else as it is."""
    found = {}
    for value in model.graph.inputs:
        name, shape = str(value.name), list(value.shape or ())
        for i, d in enumerate(shape):
            if not isinstance(d, int):
                seen = feed[name].shape[i] if name in feed else d
                shape[i] = dims.get(f"{name}.{i}", dims.get(str(d.value), seen))
        if shape:
            found[name] = shape
    return found
