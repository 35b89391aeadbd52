"""The guess of a preset: information worked out by hand, and a classifier that knows one preset only."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeopt.data.guess import guess, information
from edgeopt.numbers.figure import as_probabilities

CLASSES = 8


def sure(answers: list[int], strength: float = 40.0) -> np.ndarray:
    """Logits [n, CLASSES] that are sure of `answers`."""
    return np.eye(CLASSES, dtype=np.float32)[answers] * strength


def test_probabilities_are_a_softmax_that_does_not_overflow() -> None:
    p = as_probabilities(np.float32([[0, math.log(3)], [1e4, -1e4]]))
    np.testing.assert_allclose(p, [[0.25, 0.75], [1, 0]], rtol=1e-6)  # log 3 in float32


def test_probabilities_stay_as_they_are() -> None:
    p = np.float32([[0.1, 0.9], [0.5, 0.5]])
    assert np.array_equal(as_probabilities(p), p.astype(np.float64))


def test_sure_and_different_answers_hold_the_most_information() -> None:
    found, confidence = information(sure(list(range(CLASSES))))
    assert found == pytest.approx(math.log(CLASSES), abs=1e-6) and confidence == pytest.approx(1)


def test_the_same_sure_answer_for_all_holds_none() -> None:
    found, confidence = information(sure([3] * CLASSES))
    assert found == pytest.approx(0, abs=1e-9) and confidence == pytest.approx(1)


def test_no_idea_holds_none() -> None:
    found, confidence = information(np.zeros((5, CLASSES), np.float32))
    assert found == pytest.approx(0, abs=1e-9) and confidence == pytest.approx(1 / CLASSES)


def test_information_is_the_entropy_of_the_mean_less_the_mean_entropy() -> None:
    p = np.array([[0.9, 0.1], [0.3, 0.7]])

    def h(q: np.ndarray) -> float:
        return float(-(q * np.log(q)).sum())

    assert information(p)[0] == pytest.approx(h(p.mean(0)) - (h(p[0]) + h(p[1])) / 2, abs=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_answers_that_are_not_finite_lose(bad: float) -> None:
    logits = sure([0, 1])
    logits[0, 0] = bad
    assert information(logits) == (-np.inf, 0.0)
    found = guess({"broken": logits, "fine": sure([0, 1])}, "broken")
    assert found.preset == "fine" and found.clear


def classifier(images: np.ndarray) -> np.ndarray:
    """Class scores of images [n, CLASSES, 4] whose channel means lie around 0: which channel is the brightest?"""
    mean = images.mean(-1)
    return np.where(np.abs(mean).max(-1, keepdims=True) > 3, 40.0 * (np.arange(CLASSES) == 5), 12 * mean).astype(
        np.float32
    )


def test_the_preset_of_the_training_is_found() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.uniform(90, 150, (24, CLASSES, 4)).astype(np.float32)
    pixels[np.arange(24), np.arange(24) % CLASSES] += 80
    presets = {
        "trained": lambda x: (x / 255 - 0.485) / 0.229,
        "unit": lambda x: x / 255 / 4,
        "raw": lambda x: x,  # saturated: sure of one class for all
    }
    answers = {name: classifier(recipe(pixels)) for name, recipe in presets.items()}
    found = guess(answers, "unit")
    assert found.preset == "trained" and found.clear
    assert found.scores["raw"][1] == pytest.approx(1) and found.scores["raw"][0] < 0.1  # confidence alone is fooled
    assert "took 'trained'" in found.describe()


def test_presets_that_cannot_be_told_apart_give_the_fallback() -> None:
    found = guess({"a": sure([0, 1, 2]), "b": sure([2, 1, 0])}, "b")
    assert found.preset == "b" and not found.clear
    assert "the model does not tell" in found.describe() and "a 1.10 nats" in found.describe()


def test_a_single_preset_is_clear() -> None:
    assert guess({"only": sure([0, 1]), "none": None}, "x").preset == "only"


def test_without_class_scores_there_is_nothing_to_tell() -> None:
    found = guess({"a": None, "b": None}, "imagenet")
    assert (found.preset, found.clear, dict(found.scores)) == ("imagenet", False, {})
    assert "no output looks like class scores" in found.describe()


def test_a_normalization_that_is_clear_goes_before_the_scores_and_one_that_is_not_leaves_it_to_them() -> None:
    scores = {"a": sure([0, 1, 2]), "b": sure([0, 0, 0])}
    assert guess(scores, "b").preset == "a"
    found = guess(scores, "a", {"a": 0.9, "b": 0.1})
    assert found.preset == "b" and found.clear and "a 0.90 nats, b 0.10 nats" in found.describe()
    assert guess(scores, "b", {"a": 0.3, "b": 0.1}).preset == "a"  # too near to each other
    assert guess(scores, "b", {"a": 90.0, "b": 5.0}).preset == "a"  # neither fits
