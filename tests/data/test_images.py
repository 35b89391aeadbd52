"""Images to tensors: every format, every recipe against the formula y = (x scale - mean) / std written out, and
which recipe wins.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

import edgeopt
from edgeopt import data
from edgeopt.data import InputSpec, open_data
from edgeopt.data.images import image_input, read_image, resolve
from edgeopt.errors import DataError, UsageError
from edgeopt.options.reading import PRESETS, Preprocess, Reading
from tests import models
from tests.models import STATIC, Ears

F32 = np.dtype(np.float32)


def spec(*shape: int | None, dtype: type = np.float32) -> InputSpec:
    return InputSpec("pixels", np.dtype(dtype), shape)


RGB, GRAY, NHWC = spec(1, 3, 4, 6), spec(1, 1, 4, 6), spec(1, 4, 6, 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A PNG of `PIXELS`."""
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def read(file: Path, to: InputSpec, **recipe: Any) -> np.ndarray:
    """The tensor of `file` for the input `to`."""
    feed = read_image(file, resolve(Preprocess(**recipe), to), to)
    assert list(feed) == ["pixels"]
    return feed["pixels"]


def by_hand(pixels: np.ndarray, scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """[1, C, H, W] of `pixels` [H, W, C], number by number in float32."""
    h, w, channels = pixels.shape
    y = np.zeros((1, channels, h, w), np.float32)
    for c, i, j in itertools.product(range(channels), range(h), range(w)):
        m, s = np.float32(mean[c % len(mean)]), np.float32(std[c % len(std)])
        y[0, c, i, j] = (np.float32(pixels[i, j, c]) * np.float32(scale) - m) / s
    return y


# values


@pytest.mark.parametrize(
    ("preset", "scale", "mean", "std"),
    [
        ("imagenet", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("unit", 1 / 255, (0.0,), (1.0,)),
        ("signed", 1 / 127.5, (1.0,), (1.0,)),
        ("raw255", 1.0, (0.0,), (1.0,)),
    ],
)
def test_a_preset_is_its_formula(
    preset: str, scale: float, mean: tuple[float, ...], std: tuple[float, ...], file: Path
) -> None:
    y = read(file, RGB, **PRESETS[preset].model_dump())
    assert y.dtype == F32
    assert np.array_equal(y, by_hand(PIXELS, scale, mean, std))


def test_the_ends_of_each_preset_are_known(tmp_path: Path) -> None:
    Image.fromarray(np.uint8([[[0, 0, 0], [255, 255, 255]]])).save(tmp_path / "a.png")
    ends = {
        name: read(tmp_path / "a.png", spec(1, 3, 1, 2), **p.model_dump())[0, 0, 0].tolist()
        for name, p in PRESETS.items()
    }
    assert ends["raw255"] == [0, 255]
    assert ends["unit"] == [0, 1]
    assert ends["signed"] == [-1, 1]
    # (0 - 0.485) / 0.229 and (1 - 0.485) / 0.229; three float32 roundings
    assert ends["imagenet"] == pytest.approx([-2.1179039, 2.2489083], rel=3 * 2**-24)


def test_mean_and_std_of_one_number_hold_for_all_channels(file: Path) -> None:
    y = read(file, RGB, scale=0.5, mean=(3.0,), std=(7.0,))
    assert np.array_equal(y, by_hand(PIXELS, 0.5, (3.0,), (7.0,)))


def test_bgr_swaps_the_pixels_and_not_the_means(file: Path) -> None:
    y = read(file, RGB, color="bgr", scale=1.0, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))
    assert np.array_equal(y, by_hand(PIXELS[..., ::-1], 1.0, (1.0, 2.0, 3.0), (1.0, 2.0, 4.0)))


def test_nhwc_holds_the_channels_last(file: Path) -> None:
    y = read(file, NHWC, mean=(0.1, 0.2, 0.3))
    assert y.shape == (1, 4, 6, 3)
    assert y.flags.c_contiguous
    assert np.array_equal(y.transpose(0, 3, 1, 2), by_hand(PIXELS, 1 / 255, (0.1, 0.2, 0.3), (1.0,)))


def test_a_model_of_one_channel_gets_luma(file: Path) -> None:
    y = read(file, GRAY, scale=1.0)
    # ITU-R 601: L = 0.299 R + 0.587 G + 0.114 B, rounded; Pillow's fixed point may differ by one
    luma = PIXELS.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert y.shape == (1, 1, 4, 6)
    assert np.abs(y[0, 0] - luma).max() <= 1
    assert np.array_equal(y, np.rint(y))


def test_a_gray_image_fills_three_channels(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "a.png")
    y = read(tmp_path / "a.png", RGB, scale=1.0)
    assert np.array_equal(y, by_hand(np.stack([PIXELS[..., 0]] * 3, -1), 1.0, (0.0,), (1.0,)))


def test_means_of_three_channels_are_averaged_for_one(file: Path) -> None:
    recipe = resolve(PRESETS["imagenet"], GRAY)
    assert recipe.color == "gray"
    assert recipe.mean == (pytest.approx((0.485 + 0.456 + 0.406) / 3, rel=1e-15),)
    assert recipe.std == (pytest.approx((0.229 + 0.224 + 0.225) / 3, rel=1e-15),)


def test_a_uint8_input_gets_whole_numbers_in_range(file: Path) -> None:
    to = spec(1, 3, 4, 6, dtype=np.uint8)
    assert np.array_equal(read(file, to, scale=1.0)[0].transpose(1, 2, 0), PIXELS)
    doubled = read(file, to, scale=2.0)
    assert doubled.dtype == np.uint8
    assert np.array_equal(doubled[0].transpose(1, 2, 0), np.minimum(PIXELS.astype(int) * 2, 255))


def test_a_float16_input_gets_float16(file: Path) -> None:
    y = read(file, spec(1, 3, 4, 6, dtype=np.float16))
    assert y.dtype == np.float16
    assert np.array_equal(y, by_hand(PIXELS, 1 / 255, (0.0,), (1.0,)).astype(np.float16))


# formats


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("png", {}), ("bmp", {}), ("tif", {}), ("tiff", {}), ("webp", {"lossless": True}), ("PNG", {})],
    ids=["png", "bmp", "tif", "tiff", "webp", "PNG"],
)
def test_a_lossless_format_gives_the_pixels(suffix: str, options: dict[str, Any], tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / f"a.{suffix}", **options)
    ((name, reader),) = open_data(tmp_path, [RGB], Reading(preprocess=Preprocess(scale=1.0))).samples
    assert name == str(tmp_path / f"a.{suffix}")
    assert np.array_equal(reader()["pixels"][0].transpose(1, 2, 0), PIXELS)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG"])
def test_a_jpeg_gives_what_pillow_decodes(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / f"a.{suffix}", quality=95)
    ((_, reader),) = open_data(tmp_path, [RGB], Reading(preprocess=Preprocess(scale=1.0))).samples
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert np.array_equal(reader()["pixels"][0].transpose(1, 2, 0), np.asarray(image.convert("RGB")))


def test_a_large_jpeg_is_not_decoded_smaller_than_its_resize(tmp_path: Path) -> None:
    board = np.uint8(255) * ((np.indices((64, 64)).sum(0) // 2) % 2).astype(np.uint8)
    Image.fromarray(np.stack([board] * 3, -1)).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    y = read(tmp_path / "a.jpg", spec(1, 3, 8, 8), scale=1.0, resize=(64, 64))
    with Image.open(tmp_path / "a.jpg") as image:
        assert np.array_equal(y[0].transpose(1, 2, 0), np.asarray(image)[28:36, 28:36])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_any_colour_mode_is_read_without_a_warning(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS).convert("I" if mode == "I;16" else mode)
    (image.convert("I;16") if mode == "I;16" else image).save(tmp_path / "a.tiff")
    assert read(tmp_path / "a.tiff", RGB).shape == (1, 3, 4, 6)


def test_a_transparent_palette_is_read_without_a_warning(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).convert("P").save(tmp_path / "a.png", transparency=bytes(range(20)))
    assert read(tmp_path / "a.png", RGB).shape == (1, 3, 4, 6)


def test_folders_are_read_to_the_bottom(tmp_path: Path) -> None:
    below = [f for folder in ("cat", "dog/young", "dog") for f in models.pictures(tmp_path / folder, 2)]
    (tmp_path / "labels.txt").write_text("no image")
    found = open_data(tmp_path, [spec(None, 3, 8, 8)], Reading()).samples
    assert sorted(name for name, _ in found) == sorted(map(str, below))


def test_a_single_image_is_one_sample(file: Path) -> None:
    assert [name for name, _ in open_data(file, [RGB], Reading()).samples] == [str(file)]


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.pictures(tmp_path, 5)
    decoded: list[object] = []
    load = Image.Image.load
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: (decoded.append(self), load(self))[1])
    samples = open_data(tmp_path, [spec(None, 3, 8, 8)], Reading()).samples
    assert len(samples) == 5
    assert not decoded


# pictures that are not plain


def test_sixteen_bits_of_grey_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (4, 6), np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    wanted = (values.astype(np.float64) * 255 / 65535).astype(np.float32)
    assert np.allclose(read(tmp_path / "deep.png", GRAY, scale=1.0)[0, 0], wanted, atol=1e-3)
    assert np.allclose(read(tmp_path / "deep.png", RGB, scale=1.0)[0], wanted, atol=1e-3)
    notes = open_data(tmp_path, [GRAY], Reading()).notes
    assert notes == ("1 image grey of 16 bits: 0 ... 65535 become 0 ... 255",)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_of_unknown_range_is_refused(dtype: type, tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 1000, dtype)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff.*32 bits.*\.npz"):
        open_data(tmp_path, [GRAY], Reading())


def oriented(path: Path, orientation: int) -> np.ndarray:
    """Write a JPEG of 4 x 6 pixels that says it is turned; its pixels as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(path, exif=exif, quality=95)
    return np.asarray(Image.open(path))


def test_a_picture_is_turned_as_it_says_unless_told_not_to(tmp_path: Path) -> None:
    stored = oriented(tmp_path / "a.jpg", 3)
    plain = {"scale": 1.0, "resize": (4, 6)}
    assert np.array_equal(read(tmp_path / "a.jpg", RGB, **plain)[0].transpose(1, 2, 0), stored[::-1, ::-1])
    assert np.array_equal(read(tmp_path / "a.jpg", RGB, **plain, exif="ignore")[0].transpose(1, 2, 0), stored)
    assert any("upright by EXIF" in n for n in open_data(tmp_path, [RGB], Reading()).notes)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(orientation: int, tmp_path: Path) -> None:
    oriented(tmp_path / "a.jpg", orientation)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")))
    to = spec(1, 3, *upright.shape[:2])
    found = read(tmp_path / "a.jpg", to, scale=1.0, resize=upright.shape[:2])
    assert np.array_equal(found[0].transpose(1, 2, 0), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_is_the_same_picture_as_a_turned_png(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(PIXELS).save(tmp_path / "a.tif", tiffinfo={0x0112: orientation})
    size = (6, 4) if orientation > 4 else (4, 6)
    for exif_option in ("apply", "ignore"):
        png, tif = (
            read(tmp_path / name, spec(1, 3, *size), scale=1.0, resize=size, exif=exif_option)
            for name in ("a.png", "a.tif")
        )
        assert np.array_equal(png, tif)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_broken_exif_is_no_broken_picture(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / f"a.{suffix}", exif=b"Exif\0\0MM\0*", quality=95)
    ((_, reader),) = open_data(tmp_path, [RGB], Reading()).samples
    assert reader()["pixels"].shape == (1, 3, 4, 6)


def test_a_mean_of_two_numbers_fits_no_grey(file: Path) -> None:
    with pytest.raises(UsageError, match="1 or 1 numbers, got 2"):
        resolve(Preprocess(mean=(1.0, 2.0)), GRAY)


def test_an_alpha_channel_is_told(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]])).save(tmp_path / "a.png")
    assert open_data(tmp_path, [RGB], Reading()).notes == ("1 image with an alpha channel, which is dropped",)
    assert np.array_equal(read(tmp_path / "a.png", RGB, scale=1.0)[0], PIXELS.transpose(2, 0, 1))


def test_heic_is_read_with_its_extra_and_refused_by_name_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    big = Image.fromarray(np.kron(PIXELS, np.ones((16, 16, 1), np.uint8)))
    pillow_heif.from_pillow(big).save(tmp_path / "a.heic", quality=95)
    to = spec(1, 3, 64, 96)
    ((_, reader),) = open_data(tmp_path, [to], Reading(preprocess=Preprocess(scale=1.0, resize=(64, 96)))).samples
    assert np.abs(reader()["pixels"][0].transpose(1, 2, 0) - np.asarray(big)).mean() < 12
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"a\.heic.*'\.\[heic\]'"):
        open_data(tmp_path, [to], Reading())


def test_the_mean_of_a_preset_follows_the_order_of_the_colours(tmp_path: Path) -> None:
    models.pictures(tmp_path, 3)
    run = lambda feed: [np.zeros((1, 4), np.float32)]  # noqa: E731
    found = [
        data.read(tmp_path, [spec(None, 3, 8, 8)], Reading(preprocess="imagenet", color=color), run).samples[0][1]()
        for color in ("rgb", "bgr")
    ]
    assert np.array_equal(found[0]["pixels"], found[1]["pixels"][:, ::-1])
    own = Reading(preprocess="imagenet", color="bgr", mean=(0.1, 0.2, 0.3))
    assert "mean (0.1, 0.2, 0.3)" in data.read(tmp_path, [spec(None, 3, 8, 8)], own, run).recipe


# geometry


def test_the_centre_is_cropped(file: Path) -> None:
    y = read(file, spec(1, 3, 2, 2), scale=1.0, resize=(4, 6))
    assert np.array_equal(y[0].transpose(1, 2, 0), PIXELS[1:3, 2:4])


def test_a_number_resizes_the_shorter_side(tmp_path: Path) -> None:
    (wide,) = models.pictures(tmp_path, 1, size=(10, 20))
    y = read(wide, spec(1, 3, 5, 5), scale=1.0, resize=5)
    with Image.open(wide) as image:
        small = np.asarray(image.resize((10, 5), Image.Resampling.BILINEAR))
    assert np.array_equal(y[0].transpose(1, 2, 0), small[:, 2:7])


@pytest.mark.parametrize(("side", "resize"), [(224, 256), (299, 342), (64, 73), (32, (32, 32)), (28, (28, 28))])
def test_without_a_word_an_input_of_64_and_more_is_the_middle_seven_eighths(
    side: int, resize: int | tuple[int, int]
) -> None:
    recipe = resolve(Preprocess(), spec(1, 3, side, side))
    assert (recipe.resize, recipe.crop) == (resize, (side, side))


@pytest.mark.parametrize(
    ("size", "made"),
    [((480, 640), (480, 640)), ((1000, 2000), (320, 640)), ((10, 10), (32, 32)), ((100, 50), (96, 64))],
)
def test_a_model_of_any_size_gets_multiples_of_32_up_to_640(
    size: tuple[int, int], made: tuple[int, int], tmp_path: Path
) -> None:
    (file,) = models.pictures(tmp_path, 1, size=size)
    assert read(file, spec(None, 3, None, None)).shape == (1, 3, *made)


# which input, which layout


@pytest.mark.parametrize(
    ("shape", "layout", "color"),
    [
        ((1, 3, 224, 224), "NCHW", "rgb"),
        ((None, 1, 28, 28), "NCHW", "gray"),
        ((1, 224, 224, 3), "NHWC", "rgb"),
        ((None, None, None, 1), "NHWC", "gray"),
        ((None, 3, None, None), "NCHW", "rgb"),
        ((None, None, None, None), "NCHW", "rgb"),
        ((1, 3, 4, 3), "NCHW", "rgb"),
    ],
)
def test_layout_and_colour_come_from_the_input(shape: tuple[int | None, ...], layout: str, color: str) -> None:
    recipe = resolve(Preprocess(), spec(*shape))
    assert (recipe.layout, recipe.color) == (layout, color)


@pytest.mark.parametrize("shape", [(1, 10), (1, 5, 8, 8), (1, 8, 8, 4), (3, 8, 8), None])
def test_an_input_of_another_form_is_no_image(shape: tuple[int, ...] | None) -> None:
    assert image_input([InputSpec("x", F32, shape)]) is None


def test_two_inputs_or_integers_are_no_image() -> None:
    assert image_input([RGB, GRAY]) is None
    assert image_input([spec(1, 3, 4, 6, dtype=np.int64)]) is None


@pytest.mark.parametrize(
    ("recipe", "to", "named"),
    [
        ({"color": "gray"}, RGB, "3 channels"),
        ({"color": "bgr"}, GRAY, "1 channels"),
        ({"crop": (3, 3)}, RGB, "wants 4x6, --crop gives 3x3"),
        ({"mean": (1.0, 2.0)}, RGB, "got 2"),
        ({"std": (1.0, 2.0)}, RGB, "2"),
        ({"layout": "NHWC"}, RGB, "6 channels"),
    ],
)
def test_a_recipe_that_contradicts_the_input_is_refused(recipe: dict[str, Any], to: InputSpec, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        resolve(Preprocess(**recipe), to)


# whose word counts


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """20 pictures for `models.convolution` and, beside them, preprocess.toml with mean 0.5 and std 0.25."""
    models.pictures(tmp_path / "photos", 20)
    (tmp_path / "preprocess.toml").write_text("mean = [0.5]\nstd = [0.25]\n")
    return tmp_path / "photos"


def recipe_of(photos: Path, **choices: Any) -> tuple[str, Ears]:
    """(the recipe in words, what was told)."""
    ears = Ears()
    made = edgeopt.quantize(models.convolution(), photos, listener=ears.listener, **STATIC, **choices)
    assert f"images: {made.report.preprocess}" in ears.notes
    return made.report.preprocess, ears


def test_the_file_beside_the_samples_is_used_and_told(photos: Path) -> None:
    recipe, ears = recipe_of(photos)
    assert "mean (0.5,), std (0.25,)" in recipe
    assert f"preprocessing: from {photos.parent / 'preprocess.toml'}" in ears.notes


def test_the_file_in_the_folder_wins_over_the_one_beside_it(photos: Path) -> None:
    (photos / "preprocess.toml").write_text("mean = [0.75]\n")
    assert "mean (0.75,), std (1.0,)" in recipe_of(photos)[0]


def test_a_preset_wins_over_the_file(photos: Path) -> None:
    recipe, ears = recipe_of(photos, preprocess="signed")
    assert "mean (1.0,), std (1.0,)" in recipe
    assert not ears.told("preprocess.toml")


def test_a_recipe_in_python_wins_over_the_file(photos: Path) -> None:
    assert "mean (0.125,)" in recipe_of(photos, preprocess=Preprocess(mean=(0.125,)))[0]


def test_a_flag_wins_over_the_preset_and_leaves_the_rest_of_it(photos: Path) -> None:
    recipe, _ = recipe_of(photos, preprocess="imagenet", std=(2.0,))
    assert "mean (0.485, 0.456, 0.406), std (2.0,)" in recipe


def test_a_flag_wins_over_the_file_and_leaves_the_rest_of_it(photos: Path) -> None:
    assert "mean (2.0,), std (0.25,)" in recipe_of(photos, mean=(2.0,))[0]


def test_what_the_float_model_does_not_tell_is_not_guessed(photos: Path) -> None:
    (photos.parent / "preprocess.toml").unlink()
    with pytest.raises(UsageError, match="does not tell how its images were prepared") as caught:
        recipe_of(photos)
    assert all(f"{preset} " in str(caught.value) for preset in PRESETS)  # the figures of each
    assert "--preprocess imagenet|unit|signed|raw255" in str(caught.value)


def test_timing_and_simplifying_take_any_preprocessing_and_say_which(photos: Path, tmp_path: Path) -> None:
    (photos.parent / "preprocess.toml").unlink()
    (tmp_path / "m.onnx").write_bytes(models.convolution())
    timed = edgeopt.profile([tmp_path / "m.onnx"], data=photos, seconds=0.1)
    assert "took 'imagenet'" in timed.model_dump_json()
    assert edgeopt.simplify(tmp_path / "m.onnx", data=photos).errors


def test_a_flag_for_the_values_needs_no_look_at_the_model(photos: Path) -> None:
    (photos.parent / "preprocess.toml").unlink()
    recipe, ears = recipe_of(photos, scale=0.5)
    assert "scale 0.5, mean (0.0,), std (1.0,)" in recipe
    assert not ears.told("preprocessing: ")


def test_a_preset_that_is_none_is_refused_with_a_suggestion(photos: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'imagenet'"):
        recipe_of(photos, preprocess="imagnet")


def test_an_nhwc_model_is_calibrated_like_its_nchw_twin(tmp_path: Path) -> None:
    models.pictures(tmp_path, 20)
    first, last = (
        edgeopt.quantize(models.convolution(layout=layout), tmp_path, preprocess="unit", **STATIC).report
        for layout in ("NCHW", "NHWC")
    )
    assert "layout NHWC" in last.preprocess
    assert first.worst_sqnr_db == pytest.approx(last.worst_sqnr_db, abs=1e-3)  # the same numbers by another kernel
