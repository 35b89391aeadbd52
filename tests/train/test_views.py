"""Views keep shapes, types and what a view may not change, and are the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.errors import UsageError
from edgeopt.train.views import VIEWS, augmented, check, kind_of
from tests.train import toys

PICTURES = {"image": toys.normal(0, 6, 3, 16, 16)}
SOUND = {"sound": toys.normal(1, 6, 400), "state": toys.normal(2, 6, 8)}
IDS = 10 + np.arange(6 * 12, dtype=np.int64).reshape(6, 12)
IDS[:, 0], IDS[:, -1] = 1, 2
TEXT = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
BATCHES = {"pictures": PICTURES, "sound": SOUND, "text": TEXT}


@pytest.mark.parametrize(("name", "kind"), VIEWS)
def test_a_view_changes_its_input_the_same_way_for_the_same_seed(name: str, kind: str) -> None:
    batch = BATCHES[kind]
    before = {k: x.copy() for k, x in batch.items()}
    one, two = (augmented(batch, [name], np.random.default_rng(1)) for _ in range(2))
    first = next(iter(batch))
    assert one.keys() == batch.keys() and all(np.array_equal(one[k], two[k]) for k in one)
    assert all(np.array_equal(batch[k], before[k]) for k in batch)  # the samples stay
    assert one[first].dtype == batch[first].dtype and not np.array_equal(one[first], batch[first])
    if kind != "text":
        assert one[first].shape == batch[first].shape


def test_of_sound_only_the_largest_input_is_changed() -> None:
    made = augmented(SOUND, ["noise", "gain"], np.random.default_rng(0))
    assert np.array_equal(made["state"], SOUND["state"]) and not np.array_equal(made["sound"], SOUND["sound"])


@given(st.integers(0, 2**32 - 1))
def test_a_window_of_text_keeps_its_ends_and_the_order_of_its_tokens(seed: int) -> None:
    made = augmented(TEXT, ["crop"], np.random.default_rng(seed))
    ids = made["input_ids"]
    assert ids.shape == made["attention_mask"].shape and 2 + 0.75 * 10 <= ids.shape[1] <= 12
    assert (ids[:, 0] == 1).all() and (ids[:, -1] == 2).all() and (np.diff(ids[:, 1:-1]) == 1).all()


@given(st.integers(0, 2**32 - 1))
def test_masked_tokens_come_from_another_text_and_the_ends_stay(seed: int) -> None:
    ids = augmented(TEXT, ["mask"], np.random.default_rng(seed))["input_ids"]
    assert (ids[:, 0] == 1).all() and (ids[:, -1] == 2).all()
    assert ((ids - 10) % 12 == (IDS - 10) % 12)[:, 1:-1].all()  # from the same place


def test_mixup_keeps_the_mean_of_the_batch_within_what_it_mixes() -> None:
    x = augmented(PICTURES, ["mixup"], np.random.default_rng(0))["image"]
    assert x.min() >= PICTURES["image"].min() and x.max() <= PICTURES["image"].max()


def test_a_part_that_is_enlarged_to_all_is_the_picture() -> None:
    flat = {"image": np.full((2, 3, 8, 8), 5, np.float32)}
    assert np.allclose(augmented(flat, ["scale", "crop", "flip", "mask"], np.random.default_rng(0))["image"], 5)
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32), (2, 1, 8, 8))
    made = augmented({"image": ramp}, ["scale"], np.random.default_rng(0))["image"]
    steps = np.diff(made, axis=3)
    assert np.allclose(steps, steps[:, :, :, :1], atol=1e-5) and (steps > 0).all() and (steps < 1).all()


def test_pixels_stay_whole_numbers_and_in_range() -> None:
    pixels = {"image": np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)}
    made = augmented(pixels, ["color", "noise", "scale"], np.random.default_rng(0))["image"]
    assert made.dtype == np.uint8 and made.shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("name", "kind"), [("flip", "text"), ("mixup", "text"), ("gain", "pictures"), ("scale", "sound")]
)
def test_a_view_that_fits_no_input_is_refused_with_those_that_fit(name: str, kind: str) -> None:
    with pytest.raises(UsageError, match=rf"--augment {name} fits .*; what fits: .*mask"):
        check([name], BATCHES[kind])


def test_what_is_neither_picture_sound_nor_text_has_no_view() -> None:
    assert kind_of(np.zeros((2, 3, 4, 5, 6), np.float32)) is None and kind_of(np.zeros(3, np.int64)) is None
    with pytest.raises(UsageError, match="what fits: nothing"):
        check(["flip"], {"x": np.zeros((2, 3, 4, 5, 6), np.float32)})


def test_masks_of_any_type_are_cut_with_their_texts_and_never_mixed() -> None:
    padded = IDS.copy()
    mask = np.ones_like(IDS)
    padded[:3, 8:], mask[:3, 8:] = 0, 0
    kinds = {"mask": mask.astype(np.int32), "there": mask.astype(bool), "weight": mask.astype(np.float32)}
    for seed in range(5):
        for name in ("crop", "mask"):
            made = augmented({"input_ids": padded, **kinds}, [name, "noise"], np.random.default_rng(seed))
            assert {k: x.dtype for k, x in made.items()} == {
                "input_ids": IDS.dtype,
                **{k: x.dtype for k, x in kinds.items()},
            }
            assert len({x.shape for x in made.values()}) == 1
            assert np.array_equal(made["mask"], made["there"]) and np.array_equal(made["mask"], made["weight"])
            if name == "mask":
                assert np.array_equal(made["mask"], mask) and ((made["input_ids"] == 0) == (padded == 0)).all()


def test_texts_of_one_length_are_not_cropped() -> None:
    with pytest.raises(UsageError, match="the model's have one length"):
        check(["crop"], TEXT, {"input_ids"})
