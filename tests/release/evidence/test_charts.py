"""Pictures: well-formed whatever the names and figures, as many marks as there are things to show, and all inside
the frame.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from edgeopt.pictures import ticks
from edgeopt.release.document import Layer, LayerHistogram, Run
from edgeopt.release.evidence import charts
from tests.release.documents import full, histogram, layers, traced
from tests.release.runs import around, run, variant

FIGURES = st.floats(-1e9, 1e9, allow_subnormal=False)
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cn", "Cs"]), max_size=60)


def drawn(svg: str) -> ET.Element:
    """The picture, with every coordinate a finite number."""
    root = ET.fromstring(svg)
    for node in root.iter():
        for name, value in node.attrib.items():
            if name in ("x", "y", "cx", "cy", "r", "width", "height", "d", "points", "viewBox", "transform"):
                assert not re.search(r"nan|inf", value), (node.tag, name, value)
    assert root.get("role") == "img" and root.get("aria-label") == root.findtext("title")
    return root


def inside(root: ET.Element) -> None:
    """All circles and bars are within the frame."""
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    for node in root.iter():
        if node.tag == "circle":
            assert 0 <= float(node.get("cx", "")) <= width and 0 <= float(node.get("cy", "")) <= height
        if node.tag == "rect":
            assert float(node.get("x", "")) >= 0 and float(node.get("height", "")) >= 0
            assert float(node.get("x", "")) + float(node.get("width", "")) <= width + 1


def of(root: ET.Element, tag: str, kind: str = "") -> list[ET.Element]:
    return [n for n in root.iter(tag) if kind in (n.get("class") or "").split() or not kind]


# ticks


@example(low=-1e308, high=1e308)
@example(low=0.0, high=5e-324)
@example(low=1e16, high=1e16 + 2)
@given(low=st.floats(allow_nan=False, allow_infinity=False), high=st.floats(allow_nan=False, allow_infinity=False))
def test_ticks_of_any_range_are_few_and_within_it(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 10
    if high > low:
        slack = 1e-9 * max(abs(low), abs(high))
        assert all(low - slack <= t <= high + slack for t in found)
        assert all(a < b for a, b in itertools.pairwise(found))


@given(low=FIGURES, span=st.floats(1e-6, 1e9), count=st.integers(2, 8))
def test_ticks_stand_at_one_two_or_five_times_a_power_of_ten(low: float, span: float, count: int) -> None:
    assume(span > 1e-6 * abs(low))
    found = ticks(low, low + span, count)
    assert count / 2.6 - 1 <= len(found) <= count + 1
    if len(found) > 1:
        step = (found[-1] - found[0]) / (len(found) - 1)
        assert min(abs(step / 10 ** math.floor(math.log10(step) + 1e-6) - m) for m in (1, 2, 5, 10)) < 1e-3


def test_labels_of_ticks_differ_where_the_figures_are_close_together() -> None:
    runs = [run(variant(metrics={"size.file": 18_693_144.0 + i})) for i in range(4)]
    told = [t.text for t in of(drawn(charts.trend(runs, "size.file")), "text", "tick")]
    assert len(told) == len(set(told))


# latency against accuracy


def field(*points: tuple[float, float, float]) -> Run:
    """A run with a variant for each (latency, accuracy, size)."""
    return run(
        *(
            variant(
                f"v{i}",
                {"latency.p50": around(ms, 0.1)},
                metrics={"latency.p50": ms, "accuracy.top1": share, "size.download": size},
            )
            for i, (ms, share, size) in enumerate(points)
        )
    )


@given(st.lists(st.tuples(st.floats(1e-3, 1e5), st.floats(-1e3, 1e3), st.floats(1, 1e10)), min_size=2, max_size=6))
def test_every_variant_has_a_bubble_and_a_whisker_inside_the_frame(points: list[tuple[float, float, float]]) -> None:
    root = drawn(charts.tradeoff(field(*points), "accuracy.top1"))
    inside(root)
    assert len(of(root, "circle", "bubble")) == len(of(root, "path", "whisker")) == len(points)


def test_faster_is_further_left_better_is_higher_and_the_area_of_a_bubble_grows_with_the_size() -> None:
    small, large = of(drawn(charts.tradeoff(field((5, 0.9, 1e6), (9, 0.8, 4e6)), "accuracy.top1")), "circle", "bubble")
    assert float(small.get("cx", "")) < float(large.get("cx", ""))
    assert float(small.get("cy", "")) < float(large.get("cy", ""))
    assert float(small.get("r", "")) < float(large.get("r", ""))


def test_of_agreement_the_float_model_has_all_and_of_top1_what_was_measured() -> None:
    found = full("int8")
    for metric, want in (("accuracy.agreement", 2), ("accuracy.top1", 0)):
        svg = charts.tradeoff(found, metric)
        assert (len(of(drawn(svg), "circle", "bubble")) if svg else 0) == want


def test_a_latency_without_an_interval_is_drawn_too() -> None:
    found = run(*(variant(n, metrics={"latency.p50": 5.0, "accuracy.top1": 0.5}) for n in "ab"))
    assert len(of(drawn(charts.tradeoff(found, "accuracy.top1")), "circle", "bubble")) == 2


# layers and their values


@given(st.lists(st.tuples(NAMES, st.floats(-200, 200)), max_size=30))
def test_layers_are_bars_in_the_order_given_and_a_bad_one_is_marked(rows: list[tuple[str, float]]) -> None:
    found = [Layer(name=n, op="Conv", sqnr_db=db) for n, db in rows]
    svg = charts.layers(found)
    if not rows:
        assert svg == ""
        return
    root = drawn(svg)
    inside(root)
    bars = of(root, "rect", "bar")
    assert len(bars) == min(20, len(rows))
    assert len(of(root, "rect", "bad")) == sum(db < 10 for _, db in rows[:20])
    assert [t.text for t in root.iter("text")][1::2] == [f"{db:.1f} dB" for _, db in rows[:20]]
    widths = [float(b.get("width", "")) for b in bars]
    for (_, a), wide in zip(rows, widths, strict=False):
        assert all(wide <= w + 0.1 for (_, b), w in zip(rows, widths, strict=False) if b >= a)


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=50), st.floats(-1e30, 1e30), st.floats(0, 1e30))
def test_a_histogram_has_a_bar_for_each_bin_inside_the_frame(counts: list[int], low: float, span: float) -> None:
    edges = tuple(low + span * i / len(counts) for i in range(len(counts) + 1))
    root = drawn(
        charts.histogram(
            Layer(
                name="x", op="Add", sqnr_db=1.0, histogram=LayerHistogram(edges=edges, counts=tuple(counts), clip=None)
            )
        )
    )
    inside(root)
    assert len(of(root, "rect", "bar")) == len(counts) and not of(root, "rect", "bad")


def test_what_lies_outside_the_grid_is_marked_and_the_range_is_a_line_where_it_is_in_the_picture() -> None:
    h = LayerHistogram(edges=(0.0, 1.0, 2.0, 3.0), counts=(1, 2, 3), clip=(-1.0, 2.0))
    root = drawn(charts.histogram(Layer(name="x", op="Add", sqnr_db=1.0, histogram=h)))
    assert [("bad" in (r.get("class") or "")) for r in of(root, "rect", "bar")] == [False, False, True]
    assert len(of(root, "path", "clip")) == 1


def test_bins_of_tiny_values_that_the_grid_clips_are_marked_as_well() -> None:
    h = LayerHistogram(edges=(0.0, 1e-10, 2e-10), counts=(5, 5), clip=(0.0, 1e-10))
    root = drawn(charts.histogram(Layer(name="x", op="Add", sqnr_db=1.0, histogram=h)))
    assert [("bad" in (r.get("class") or "")) for r in of(root, "rect", "bar")] == [False, True]


def test_a_layer_without_values_has_no_picture() -> None:
    for h in (
        None,
        LayerHistogram(edges=(), counts=(), clip=None),
        LayerHistogram(edges=(0.0,), counts=(), clip=(0.0, 1.0)),
    ):
        assert charts.histogram(Layer(name="x", op="Add", sqnr_db=1.0, histogram=h)) == ""


# times and trends


def test_times_are_bars_by_operator_with_what_is_left_unexplained() -> None:
    ops = traced(5).ops
    assert ops is not None
    root = drawn(charts.times(ops))
    inside(root)
    assert [r.get("class") for r in of(root, "rect")] == ["bar integer", "bar float", "bar qdq", "bar none"]
    assert not of(drawn(charts.times(ops.model_copy(update={"unexplained_ms": -1.0}))), "rect", "none")


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_variant_has_a_curve_and_its_name_in_the_same_colour(count: int) -> None:
    found = [(f"v{i}", traced(3)) for i in range(count)]
    for svg in (charts.ecdf(found), charts.series(found)):
        root = drawn(svg)
        keys = of(root, "text", "key")
        assert [k.text for k in keys] == [n for n, _ in found]
        marks = {(n.get("class") or "").split()[1] for n in [*of(root, "polyline"), *of(root, "circle")]}
        assert {(k.get("class") or "").split()[1] for k in keys} == marks
        inside(root)


def test_colours_of_seven_variants_are_seven() -> None:
    keys = of(drawn(charts.ecdf([(f"v{i}", traced(3)) for i in range(7)])), "text", "key")
    assert len({k.get("class") for k in keys}) == 7


def test_a_distribution_climbs_to_all_and_contended_blocks_are_open() -> None:
    m = traced(3)
    (curve,) = of(drawn(charts.ecdf([("a", m)])), "polyline")
    ys = [float(p.split(",")[1]) for p in (curve.get("points") or "").split()]
    assert ys == sorted(ys, reverse=True) and ys[-1] == 20
    dots = of(drawn(charts.series([("a", m)])), "circle")
    assert m.latency is not None
    assert sum("open" in (d.get("class") or "") for d in dots) == sum(b.contended for b in m.latency.blocks)


def test_without_a_latency_there_is_no_curve() -> None:
    m = traced(3).model_copy(update={"latency": None})
    assert charts.ecdf([]) == charts.series([]) == charts.ecdf([("a", m)]) == charts.series([("a", m)]) == ""


@given(st.lists(st.lists(FIGURES | st.none(), min_size=2, max_size=2), min_size=1, max_size=6))
def test_a_trend_has_a_dot_for_each_figure_inside_the_frame(rows: Sequence[Sequence[float | None]]) -> None:
    runs = [
        run(*(variant(n, metrics={} if x is None else {"accuracy.eval": x}) for n, x in zip("ab", row, strict=True)))
        for row in rows
    ]
    values = [x for row in rows for x in row if x is not None]
    svg = charts.trend(runs, "accuracy.eval")
    if len(runs) < 2 or not values:
        assert svg == ""
        return
    root = drawn(svg)
    inside(root)
    assert len(of(root, "circle", "dot")) == len(values)


@given(NAMES)
def test_any_name_is_text_in_a_well_formed_picture(name: str) -> None:
    found = full("a")
    odd = found.model_copy(update={"variants": tuple(v.model_copy(update={"name": name}) for v in found.variants)})
    for svg in (
        charts.tradeoff(odd, "accuracy.agreement"),
        charts.ecdf([(name, traced(2))]),
        charts.series([(name, traced(2))]),
        charts.trend([odd, odd], "size.file"),
        charts.layers(layers(2, name)),
        charts.histogram(Layer(name=name, op=name, sqnr_db=1.0, histogram=histogram())),
    ):
        if svg:
            drawn(svg)
