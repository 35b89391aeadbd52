"""Losses: zero for equals, and the formulas of their papers."""

from __future__ import annotations

import math

import pytest
import torch

from edgeopt.errors import UsageError
from edgeopt.train.losses import LOSSES, NO_LABEL, Objective, dkd, guess, kd, similarity, supervised
from edgeopt.train.pairs import Pair

GENERATOR = torch.Generator().manual_seed(0)
S, T = (torch.randn(6, 5, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
INPUTS = {"bce": torch.sigmoid, "probabilities": lambda x: torch.softmax(x, -1)}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_zero_for_equals_and_above_it_for_others(name: str) -> None:
    s, t = (INPUTS.get(name, lambda x: x)(x) for x in (S, T))
    assert float(LOSSES[name](t, t, 2.0, LABELS)) == pytest.approx(0, abs=1e-9)
    assert float(LOSSES[name](s, t, 2.0, LABELS)) > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_kd_is_t_squared_times_the_divergence(temperature: float) -> None:
    total = 0.0
    for s, t in zip(S.tolist(), T.tolist(), strict=True):
        p, q = ([math.exp(v / temperature) for v in z] for z in (t, s))
        p, q = ([v / sum(x) for v in x] for x in (p, q))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(kd(S, T, temperature)) == pytest.approx(temperature**2 * total / len(S), rel=1e-12)


def test_kd_is_the_target_s_part_and_the_rest_s_weighted_by_what_the_teacher_leaves_it() -> None:
    # Zhao et al. 2022, equation 6: KD = TCKD + (1 - p_target) NCKD; both parts again, sample by sample
    for s, t, label in zip(S, T, LABELS, strict=True):
        p, q = torch.softmax(t, 0), torch.softmax(s, 0)
        left = 1 - p[label]
        tckd = p[label] * (p[label] / q[label]).log() + left * (left / (1 - q[label])).log()
        others = torch.arange(len(t)) != label
        ph, qh = torch.softmax(t[others], 0), torch.softmax(s[others], 0)
        nckd = (ph * (ph / qh).log()).sum()
        assert float(kd(s[None], t[None], 1.0)) == pytest.approx(float(tckd + left * nckd), rel=1e-9)
        assert float(dkd(s[None], t[None], 1.0, label[None])) == pytest.approx(float(tckd + nckd / 2), rel=1e-6)


def test_dkd_without_labels_says_what_it_needs() -> None:
    with pytest.raises(UsageError, match="label"):
        dkd(S, T, 1.0)


def test_alpha_divides_between_teacher_and_labels() -> None:
    label_part = torch.nn.functional.cross_entropy(S, LABELS)
    assert float(Objective(alpha=0.0)(S, T, LABELS)) == pytest.approx(float(label_part))
    assert float(Objective(alpha=1.0)(S, T, LABELS)) == pytest.approx(float(kd(S, T, 2.0)))
    assert float(Objective(alpha=0.3)(S, T, None)) == pytest.approx(
        float(kd(S, T, 2.0))
    )  # without labels all is the teacher's


def test_a_loss_is_guessed_from_what_an_output_looks_like() -> None:
    assert guess([S])[0] == "kd"
    assert guess([torch.softmax(S, -1)])[0] == "probabilities"
    assert guess([torch.sigmoid(S)])[0] == "bce"
    assert guess([S.reshape(2, 3, 5)])[0] == "mse"


@pytest.mark.parametrize("name", ["kd", "dist", "cosine", "probabilities"])
def test_the_classes_of_a_picture_are_its_channels(name: str) -> None:
    s, t = (torch.randn(2, 5, 3, 4, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
    s, t = (INPUTS.get(name, lambda x: x)(x.movedim(1, -1)) for x in (s, t))
    pixels = float(LOSSES[name](s.reshape(-1, 5), t.reshape(-1, 5), 2.0, None))
    pair = Pair("y", "y", name)
    found = LOSSES[name](pair.ours(s.movedim(-1, 1)), pair.theirs(t.movedim(-1, 1)), 2.0, None)
    assert float(found) == pytest.approx(pixels, rel=1e-12)


def test_similarity_is_of_whom_each_sample_is_like_by_the_cosines_with_the_others() -> None:
    t = torch.randn(6, 9, generator=GENERATOR, dtype=torch.float64)
    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        q, p = ([math.exp(float(x[i] @ x[j] / (x[i].norm() * x[j].norm())) / 0.05) for j in others] for x in (S, t))
        total += sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    assert float(similarity(S, t, 1.0)) == pytest.approx(total / 6, rel=1e-12)


def test_similarity_does_not_see_how_an_embedding_is_turned_stretched_or_padded() -> None:
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=GENERATOR, dtype=torch.float64))
    padded = torch.cat([7 * T @ turn, torch.zeros(6, 3, dtype=torch.float64)], 1)
    assert float(similarity(T, padded, 1.0)) == pytest.approx(0, abs=1e-15)  # rounding of logarithms, to first order
    assert float(similarity(S, padded, 1.0)) == pytest.approx(float(similarity(S, T, 1.0)), rel=1e-12)


def test_similarity_of_a_sample_alone_is_nothing_and_has_a_gradient() -> None:
    s = S[:1].clone().requires_grad_()
    found = similarity(s, T[:1], 1.0)
    found.backward()
    assert found.item() == 0 and s.grad is not None and not s.grad.any()


def test_labels_teach_probabilities_as_they_teach_the_logits_behind_them() -> None:
    logits = supervised("kd", S, LABELS)
    assert float(logits) == pytest.approx(float(torch.nn.functional.cross_entropy(S, LABELS)))
    assert float(supervised("probabilities", torch.softmax(S, -1), LABELS)) == pytest.approx(float(logits), rel=1e-12)


def test_rows_of_length_one_and_rows_that_are_never_negative_are_embeddings() -> None:
    assert guess([torch.nn.functional.normalize(x, dim=1) for x in (S, T)])[0] == "cosine"
    assert guess([5 * x.abs() for x in (S, T)])[0] == "cosine"
    assert guess([5 * S.abs(), 5 * T])[0] == "kd"  # one batch alone may look so by chance
    assert guess([torch.softmax(S, -1), torch.nn.functional.one_hot(LABELS, 5).double()])[0] == "probabilities"


def test_rows_in_which_no_class_stands_out_are_an_embedding() -> None:
    x = torch.randn(32, 384, generator=GENERATOR)
    assert guess([0.3 * x])[0] == "cosine" and "0.6% on the average" in guess([0.3 * x])[1]
    assert guess([5 * x])[0] == "kd"
    assert guess([0.3 * x[:, :45]])[0] == "kd"  # of few classes a weak network prefers none
    assert guess([0.3 * x], told=True)[0] == guess([0.3 * x], labelled=True)[0] == "kd"
    assert guess([torch.nn.functional.normalize(x, dim=1)], labelled=True)[0] == "cosine"  # labels or not
    assert guess([0.3 * x.reshape(4, 8, 384)], labelled=True)[0] == "mse"


@pytest.mark.parametrize("rest", [(), (4,)])
def test_a_loss_is_guessed_of_batches_of_many_lengths(rest: tuple[int, ...]) -> None:
    found = [torch.randn(2, s, *rest, generator=GENERATOR) for s in (3, 7, 1)]
    assert guess(found)[0] == ("mse" if rest else "kd")


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_an_output_that_labels_do_not_teach_learns_from_the_teacher_alone(alpha: float) -> None:
    assert float(Objective(alpha=alpha, labelled=False)(S, T, LABELS)) == float(kd(S, T, 2.0))


def test_a_sample_without_a_label_adds_nothing_and_smoothing_is_that_of_torch() -> None:
    mixed = LABELS.clone()
    mixed[0] = NO_LABEL
    want = torch.nn.functional.cross_entropy(S[1:], LABELS[1:], label_smoothing=0.1, reduction="sum") / len(S)
    assert torch.allclose(supervised("kd", S, mixed, 0.1), want)
    assert torch.allclose(supervised("probabilities", torch.softmax(S, -1), mixed, 0.1), want)
    nobody = torch.full_like(LABELS, NO_LABEL)
    assert supervised("kd", S, nobody) == 0
    assert torch.allclose(Objective("kd", 2.0, 0.9)(S, T, nobody), 0.9 * kd(S, T, 2.0))
    assert torch.allclose(
        Objective("kd", 2.0, 0.9)(S, T, LABELS, 0.5), 0.45 * kd(S, T, 2.0) + 0.55 * supervised("kd", S, LABELS)
    )
