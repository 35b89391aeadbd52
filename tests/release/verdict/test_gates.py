"""Gates on made-up runs: every outcome, every policy, every exit code, and laws of bounds and regressions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.profiling.results import Range
from edgeopt.release.document import GateResult, Run
from edgeopt.release.project.file import Project
from edgeopt.release.project.metrics import METRICS
from edgeopt.release.project.quantities import shown
from edgeopt.release.verdict.gates import EXIT, Against, judge
from tests.release.runs import around, measured, project, run, variant

P50 = "latency.p50"
SPREAD = st.floats(0, 0.5)
POSITIVE = st.floats(0.01, 1e4)


def judged(found: Project, made: Run, against: Against | None = None) -> GateResult:
    """The one gate."""
    (gate,) = judge(found, made, against or Against()).gates
    return gate


def latency(ms: float, share: float = 0.1) -> Run:
    """A run whose variant takes `ms`, with an interval."""
    return run(variant(metrics={P50: ms}, intervals={P50: around(ms, share)}))


# bounds


@pytest.mark.parametrize(
    ("limit", "outcome"),
    [(8.9, "fail"), (9.0, "inconclusive"), (10.0, "inconclusive"), (10.99, "inconclusive"), (11.1, "pass")],
)
def test_an_upper_bound_is_passed_above_the_interval_failed_below_and_unclear_inside(
    limit: float, outcome: str
) -> None:
    assert judged(project(f'latency.p50 = {{ max = "{limit} ms" }}'), latency(10)).outcome == outcome


@pytest.mark.parametrize(
    ("limit", "outcome"), [(0.89, "pass"), (1.0, "inconclusive"), (1.09, "inconclusive"), (1.12, "fail")]
)
def test_a_lower_bound_is_the_other_way_round(limit: float, outcome: str) -> None:
    made = run(variant(metrics={"speedup": 1.0}, intervals={"speedup": around(1.0, 0.1)}))
    assert judged(project(f"speedup = {{ min = {limit} }}"), made).outcome == outcome


@pytest.mark.parametrize(("limit", "outcome"), [(5, "pass"), (5.1, "fail")])
def test_a_figure_without_an_interval_is_what_it_is_and_the_bound_itself_is_allowed(limit: float, outcome: str) -> None:
    made = run(variant(metrics={"quant.sqnr": 5.0}))
    assert judged(project(f"quant.sqnr = {{ min = {limit} }}"), made).outcome == outcome


@pytest.mark.parametrize(("limit", "outcome"), [(8, "warn"), (10, "warn"), (12, "pass")])
def test_a_warning_never_fails_and_is_given_where_the_bound_is_not_surely_kept(limit: float, outcome: str) -> None:
    made = judge(project(f'latency.p50 = {{ warn = "{limit} ms" }}'), latency(10), Against())
    assert made.gates[0].outcome == outcome and made.exit_code == 0 and made.verdict == outcome


@pytest.mark.parametrize("gate", ["accuracy.eval = { warn = 1 }", 'latency.p50 = { warn = "1 ms" }'])
def test_a_warning_of_what_was_not_measured_is_a_warning(gate: str) -> None:
    made = judge(project(gate), run(variant()), Against())
    assert made.gates[0].outcome == "warn" and "not measured" in made.gates[0].message and made.exit_code == 0


@pytest.mark.parametrize(
    "gate", ["accuracy.eval = { min = 1 }", 'latency.p50 = { max = "1 ms" }', "ep.coverage = { min = 1 }"]
)
@pytest.mark.parametrize("clock", [False, True])
def test_a_gate_on_what_was_not_measured_fails_but_only_warns_of_times_where_no_clock_was_asked(
    gate: str, clock: bool
) -> None:
    made = judge(project(gate), run(variant(), profile=measured("model", "a") if clock else None), Against())
    assert made.gates[0].outcome == "not measured" and "not measured" in made.gates[0].message
    assert made.exit_code == (1 if clock or gate.startswith("accuracy") else 0)


def test_a_policy_that_lets_pass_what_was_not_measured_lets_times_pass_too() -> None:
    found = project('latency.p50 = { max = "1 ms" }', 'not_measured = "pass"')
    assert judge(found, run(variant()), Against()).verdict == "pass"


def test_a_gate_on_a_variant_that_the_run_does_not_have_is_not_passed_over() -> None:
    more = '[variants.b]\nsteps = [{ step = "fp16" }]\n[gates.b]\nsize.file = { max = "1 B" }'
    made = judge(project(more=more), run(variant()), Against())
    assert made.exit_code != 0 and any(g.variant == "b" for g in made.gates)


def test_star_gates_are_for_all_variants_but_float_and_a_gate_of_the_variant_goes_before() -> None:
    more = (
        '[variants.b]\nsteps = [{ step = "fp16" }]\n[gates."*"]\nsize.file = { max = "5 B"'
        ' }\n[gates.float]\nsize.download = { max = "9 B" }'
    )
    found = project('size.file = { max = "7 B" }', more=more)
    made = run(
        variant("float", metrics={"size.file": 9.0, "size.download": 9.0}),
        variant(metrics={"size.file": 6.0}),
        variant("b", metrics={"size.file": 6.0}),
    )
    outcomes = {(g.variant, g.metric): g.outcome for g in judge(found, made, Against()).gates}
    assert outcomes == {("float", "size.download"): "pass", ("a", "size.file"): "pass", ("b", "size.file"): "fail"}


@given(value=POSITIVE, share=SPREAD, limit=POSITIVE, looser=st.floats(1, 10), name=st.sampled_from(sorted(METRICS)))
def test_a_looser_bound_never_turns_pass_into_fail(
    value: float, share: float, limit: float, looser: float, name: str
) -> None:
    row = METRICS[name]
    bound, factor = ("min", 1 / looser) if row.higher else ("max", looser)
    unit = {"bytes": "B", "ms": "ms"}.get(row.kind, "")
    order = ("fail", "inconclusive", "pass")
    made = run(variant(metrics={name: value}, intervals={name: around(value, share)}))
    ranks = [
        order.index(judged(project(f'"{name}" = {{ {bound} = "{x!r} {unit}" }}'), made).outcome)
        for x in (limit, limit * factor)
    ]
    assert ranks[0] <= ranks[1]


@given(value=POSITIVE, share=SPREAD, limit=POSITIVE, narrower=st.floats(0, 1))
def test_a_narrower_interval_never_turns_a_clear_outcome_round(
    value: float, share: float, limit: float, narrower: float
) -> None:
    found = project(f'latency.p50 = {{ max = "{limit!r} ms" }}')
    wide, narrow = (judged(found, latency(value, s)).outcome for s in (share, share * narrower))
    assert wide in (narrow, "inconclusive")


@given(value=st.floats(0, 1), before=st.floats(0, 1), drop=st.floats(0, 1), looser=st.floats(0, 1))
def test_a_larger_drop_is_allowed_where_a_smaller_one_is(
    value: float, before: float, drop: float, looser: float
) -> None:
    made = run(variant("float", metrics={"accuracy.top1": before}), variant(metrics={"accuracy.top1": value}))
    tight, loose = (
        judged(project(f"accuracy.top1 = {{ max_drop = {d!r} }}"), made).outcome for d in (drop, drop + looser)
    )
    assert tight == ("pass" if before - value <= drop + 1e-9 else "fail") or math.isclose(
        before - value, drop, abs_tol=1e-9
    )
    assert (tight, loose) != ("pass", "fail")


def test_agreement_drops_from_one_since_float_agrees_with_itself() -> None:
    made = run(variant(metrics={"accuracy.agreement": 0.96}))
    assert judged(project('accuracy.agreement = { max_drop = "5 pp" }'), made).outcome == "pass"
    assert judged(project('accuracy.agreement = { max_drop = "3 pp" }'), made).outcome == "fail"
    top1 = run(variant(metrics={"accuracy.top1": 0.96}))
    assert judged(project('accuracy.top1 = { max_drop = "3 pp" }'), top1).outcome == "not measured"


# regressions


def old(**more: Any) -> Against:
    """A baseline whose variant a has metrics."""
    return Against(run(variant(**more)))


def test_without_a_baseline_a_regression_cannot_be_judged() -> None:
    found = project('size.file = { max_regression = "5 %" }')
    made = run(variant(metrics={"size.file": 1.0}))
    assert judged(found, made).outcome == "no baseline"
    assert judged(found, made, Against(run())).outcome == "no baseline"
    assert judged(found, made, old(metrics={"size.download": 1.0})).outcome == "no baseline"


@pytest.mark.parametrize(("now", "outcome"), [(90, "pass"), (100, "pass"), (105, "pass"), (106, "fail")])
def test_a_size_regresses_by_growing(now: float, outcome: str) -> None:
    found = project('size.file = { max_regression = "5 %" }')
    assert judged(found, run(variant(metrics={"size.file": now})), old(metrics={"size.file": 100.0})).outcome == outcome


@pytest.mark.parametrize(
    ("now", "outcome"), [(1.0, "pass"), (0.9, "pass"), (0.89, "pass"), (0.84, "fail"), (0.1, "fail"), (0.0, "fail")]
)
def test_an_accuracy_regresses_by_falling(now: float, outcome: str) -> None:
    found = project('accuracy.top1 = { max_regression = "5 %" }')
    made = run(variant(metrics={"accuracy.top1": now}))
    assert judged(found, made, old(metrics={"accuracy.top1": 0.9})).outcome == outcome


def test_a_fall_by_less_than_the_allowed_share_of_the_baseline_is_no_regression() -> None:
    found = project('accuracy.top1 = { max_regression = "50 %" }')
    made = run(variant(metrics={"accuracy.top1": 0.6}))  # a quarter below 0.8, which is 33 % of 0.6
    assert (
        judged(
            project('accuracy.top1 = { max_regression = "30 %" }'), made, old(metrics={"accuracy.top1": 0.8})
        ).outcome
        == "pass"
    )
    assert (
        judged(found, run(variant(metrics={"accuracy.top1": 0.3})), old(metrics={"accuracy.top1": 0.8})).outcome
        == "fail"
    )


HIGHER = ("quant.sqnr", "quant.min_layer_sqnr", "accuracy.cosine", "accuracy.eval")


@given(
    name=st.sampled_from(HIGHER), before=st.floats(-100, 100), worse=st.floats(0.5, 100), allowed=st.floats(0, 0.001)
)
def test_a_figure_that_may_be_negative_regresses_by_falling_too(
    name: str, before: float, worse: float, allowed: float
) -> None:
    found = project(f"{name} = {{ max_regression = {allowed!r} }}")
    worse += abs(before) * 0.01
    assert judged(found, run(variant(metrics={name: before - worse})), old(metrics={name: before})).outcome == "fail"


@given(name=st.sampled_from(HIGHER), before=st.floats(-100, 100), better=st.floats(0, 100))
def test_a_figure_that_may_be_negative_and_rises_does_not_regress(name: str, before: float, better: float) -> None:
    found = project(f"{name} = {{ max_regression = 0.05 }}")
    assert judged(found, run(variant(metrics={name: before + better})), old(metrics={name: before})).outcome == "pass"


@given(name=st.sampled_from(sorted(METRICS)), value=st.floats(0, 1e6))
def test_what_stayed_as_it_was_has_not_regressed(name: str, value: float) -> None:
    found = project(f'"{name}" = {{ max_regression = "0 %" }}')
    assert judged(found, run(variant(metrics={name: value})), old(metrics={name: value})).outcome == "pass"


@given(
    name=st.sampled_from(sorted(METRICS)),
    before=POSITIVE,
    now=POSITIVE,
    allowed=st.floats(0, 2),
    looser=st.floats(0, 2),
)
def test_a_looser_regression_bound_never_turns_pass_into_fail(
    name: str, before: float, now: float, allowed: float, looser: float
) -> None:
    made, stand = run(variant(metrics={name: now})), old(metrics={name: before})
    tight, loose = (
        judged(project(f'"{name}" = {{ max_regression = {x!r} }}'), made, stand).outcome
        for x in (allowed, allowed + looser)
    )
    assert (tight, loose) in (("pass", "pass"), ("fail", "pass"), ("fail", "fail"))


@pytest.mark.parametrize(("now", "outcome"), [(10.0, "pass"), (10.5, "inconclusive"), (12.0, "fail")])
def test_stored_latencies_are_compared_with_both_intervals(now: float, outcome: str) -> None:
    found = project('latency.p50 = { max_regression = "5 %" }')
    stand = old(metrics={P50: 10.0}, intervals={P50: around(10.0, 0.02)})
    gate = judged(found, latency(now, 0.02), stand)
    assert gate.outcome == outcome and "stored" in gate.message


def test_a_ratio_measured_side_by_side_goes_before_stored_figures_and_needs_no_same_machine() -> None:
    found = project('latency.p50 = { max_regression = "5 %" }')
    stored = run(variant(metrics={P50: 5.0}, intervals={P50: around(5.0, 0.01)}))
    for ratio, outcome in ((1.0, "pass"), (1.05, "inconclusive"), (1.2, "fail")):
        for refused in ({}, {"": "another CPU"}):
            gate = judged(found, latency(10), Against(stored, {"a": {P50: around(ratio, 0.02)}}, refused))
            assert gate.outcome == outcome and "side by side" in gate.message


def test_a_ratio_measured_again_is_of_the_median_and_of_no_other_figure() -> None:
    found = project('latency.p90 = { max_regression = "5 %" }')
    stand = Against(run(variant(metrics={"latency.p90": 10.0})), {"a": {P50: around(1.0, 0.01)}})
    assert judged(found, run(variant(metrics={"latency.p90": 20.0})), stand).outcome == "fail"


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_baseline_of_another_machine_matters_to_what_a_clock_or_the_machine_decides_and_to_nothing_else(
    name: str,
) -> None:
    found = project(f'"{name}" = {{ max_regression = "5 %" }}')
    stand = Against(run(variant(metrics={name: 1.0})), None, {"": "cpu x and y"})
    gate = judged(found, run(variant(metrics={name: 1.0})), stand)
    clocked = name.split(".")[0] in ("latency", "cold", "memory", "speedup")
    assert gate.outcome == ("not comparable" if clocked else "pass")
    assert ("cpu x and y" in gate.message) == clocked


# verdicts

OUTCOMES = {
    "pass": ('size.file = { max = "9 B" }', {}),
    "warn": ('size.file = { warn = "1 B" }', {}),
    "fail": ('size.file = { max = "1 B" }', {}),
    "inconclusive": ('latency.p50 = { max = "10 ms" }', {}),
    "not measured": ("accuracy.top5 = { min = 1 }", {}),
    "no baseline": ('size.file = { max_regression = "1 %" }', {}),
    "not comparable": ('latency.p50 = { max_regression = "1 %" }', {}),
}
MADE = run(variant(metrics={"size.file": 5.0, P50: 10.0}, intervals={P50: around(10.0, 0.1)}))
ELSEWHERE = Against(run(variant(metrics={P50: 10.0})), None, {"": "another CPU"})
COUNTED = {
    "inconclusive": "inconclusive",
    "not measured": "not_measured",
    "no baseline": "no_baseline",
    "not comparable": "no_baseline",
}
AS_FAILED = {"inconclusive": 4, "not measured": 1, "no baseline": 5, "not comparable": 5}


@pytest.mark.parametrize("outcome", list(OUTCOMES))
@pytest.mark.parametrize("level", ["pass", "warn", "fail"])
def test_the_policy_says_what_becomes_of_a_gate_that_cannot_tell(outcome: str, level: str) -> None:
    gate, _ = OUTCOMES[outcome]
    policy = "\n".join(f'{name} = "{level}"' for name in ("inconclusive", "not_measured", "no_baseline"))
    against = ELSEWHERE if outcome == "not comparable" else Against()
    made = judge(project(gate, policy), MADE, against)
    assert made.gates[0].outcome == outcome
    if outcome in COUNTED:
        assert made.exit_code == (AS_FAILED[outcome] if level == "fail" else 0)
        assert level == "fail" or made.verdict == level
    else:
        assert (made.verdict, made.exit_code) == (outcome, EXIT[outcome])


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        ("pass", 0),
        ("warn", 0),
        ("fail", 1),
        ("inconclusive", 0),
        ("not measured", 1),
        ("no baseline", 0),
        ("not comparable", 0),
    ],
)
def test_by_default_only_failures_and_what_was_not_measured_end_a_build(outcome: str, code: int) -> None:
    against = ELSEWHERE if outcome == "not comparable" else Against()
    assert judge(project(OUTCOMES[outcome][0]), MADE, against).exit_code == code


@pytest.mark.parametrize(
    ("codes", "worst"), [((0, 1, 4, 5), 1), ((0, 4, 5), 5), ((0, 4), 4), ((1, 4), 1), ((1, 5), 1)],
)  # fmt: skip
def test_of_several_exit_codes_a_failure_goes_first_then_no_baseline_then_inconclusive(
    codes: tuple[int, ...], worst: int
) -> None:
    gates = {
        0: 'size.download = { max = "9 B" }',
        1: 'size.file = { max = "1 B" }',
        4: 'latency.p50 = { max = "10 ms" }',
        5: "ep.partitions = { max_regression = 0 }",
    }
    made = run(
        variant(
            metrics={"size.file": 5.0, "size.download": 5.0, "ep.partitions": 1.0, P50: 10.0},
            intervals={P50: around(10.0, 0.1)},
        )
    )
    for order in itertools.permutations(codes):
        found = project("\n".join(gates[c] for c in order), 'inconclusive = "fail"\nno_baseline = "fail"')
        assert judge(found, made, Against()).exit_code == worst


def test_a_variant_that_was_not_made_is_an_error_whatever_its_gates_and_the_policy_say() -> None:
    made = run(variant(error="quantize: no"), variant("b", metrics={"size.file": 5.0}))
    result = judge(project('size.file = { max = "9 B" }', 'not_measured = "pass"'), made, Against())
    assert (result.verdict, result.exit_code) == ("error", 3)
    assert "quantize: no" in result.gates[0].message


def test_a_run_without_gates_passes() -> None:
    assert judge(project(), MADE, Against()).exit_code == 0


def test_judging_changes_nothing_but_gates_and_verdict_and_twice_is_once() -> None:
    found = project('size.file = { max = "1 B" }')
    once = judge(found, MADE, Against())
    assert judge(found, once, Against()) == once
    assert once.model_copy(update={"gates": (), "verdict": "pass", "exit_code": 0}) == MADE


def test_messages_show_the_figure_its_interval_and_the_bound_with_units() -> None:
    gate = judged(project('latency.p50 = { max = "8 ms" }'), latency(10))
    for part in (shown(10, "ms"), shown(9, "ms"), shown(11, "ms"), shown(8, "ms")):
        assert part in gate.message
    assert (gate.value, gate.low, gate.high, gate.limit) == (10, 9, 11, 8)


def test_the_line_of_a_gate_is_asked_for_each_bound() -> None:
    asked = []

    def line(variant: str, metric: str, bound: str) -> int:
        asked.append((variant, metric, bound))
        return 40 + len(asked)

    made = judge(project('size.file = { max = "9 B", warn = "4 B" }'), MADE, Against(), line)
    assert asked == [("a", "size.file", "max"), ("a", "size.file", "warn")] and [g.line for g in made.gates] == [41, 42]


def test_a_range_of_a_ratio_that_is_upside_down_does_not_pass() -> None:
    found = project('latency.p50 = { max_regression = "5 %" }')
    gate = judged(found, latency(10), Against(run(), {"a": {P50: Range(value=1.2, low=1.3, high=1.1)}}))
    assert gate.outcome != "pass"
