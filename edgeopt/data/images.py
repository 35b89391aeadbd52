"""Convert images to tensors: y = (x scale - mean) / std with x in 0 ... 255, after resizing the shorter side and a
centre crop.

Images are rotated by their EXIF orientation unless `exif` is "ignore"; 16-bit greyscale is
scaled to 0 ... 255.
A recipe is a `Preprocess`; it comes from a preset, from `preprocess.toml` beside the samples, from flags, or is guessed
with the float model (`edgeopt.data.guess`). Images are decoded by Pillow.
"""

from __future__ import annotations

import struct
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from edgeopt.data.spec import Feed, InputSpec
from edgeopt.errors import DataError, UsageError, extra
from edgeopt.files import text_of, toml_of
from edgeopt.options.reading import Preprocess

_HEIC = frozenset({".heic", ".heif"})
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif"}) | _HEIC
_ORIENTATION, _LAST = 0x0112, 8  # EXIF tag; 1 is upright, 2 to 8 are turned or mirrored
_SIXTEEN_BIT = 65535
MAX_PIXELS = 64_000_000
_FREE_SIDE = 640  # longer side in pixels, for models that accept any size
_FREE_MULTIPLE = 32
UNREADABLE = (
    OSError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    ValueError,
    SyntaxError,
    struct.error,
)


def load_toml(path: Path) -> Preprocess:
    """The recipe in a `preprocess.toml`.

    Raises:
        UsageError: not TOML, an unknown key or a wrong type; the message names the file.
    """
    try:
        return Preprocess.model_validate(toml_of(text_of(path)))
    except (OSError, ValueError) as e:  # a ValidationError is one
        raise UsageError(f"{path}: {e}") from e


def image_input(inputs: Sequence[InputSpec]) -> InputSpec | None:
    """The model's only input if it can take an image (rank 4, float32, float16 or uint8, 1 or 3 channels), else
    None.
    """
    if len(inputs) != 1:
        return None
    spec = inputs[0]
    if spec.shape is None or len(spec.shape) != 4 or spec.dtype not in (np.float32, np.float16, np.uint8):
        return None
    return spec if spec.shape[1] in (1, 3, None) or spec.shape[3] in (1, 3) else None


def resolve(recipe: Preprocess, spec: InputSpec) -> Preprocess:
    """`recipe` with layout, colour and size filled in from the model's input `spec`.

    Raises:
        UsageError: the recipe and the input disagree, or the input cannot hold an image.
    """
    layout = recipe.layout or ("NHWC" if spec.fixed(3) in (1, 3) and spec.fixed(1) not in (1, 3) else "NCHW")
    channels = spec.fixed(1 if layout == "NCHW" else 3) or (1 if recipe.color == "gray" else 3)
    if channels not in (1, 3):
        raise UsageError(
            f"input {spec.name!r} has {channels} channels ({layout}); images give 1 or 3: "
            "use --layout, or give the samples as .npz"
        )
    color = recipe.color or ("gray" if channels == 1 else "rgb")
    if (color == "gray") != (channels == 1):
        raise UsageError(
            f"input {spec.name!r} has {channels} channels, --color {color} gives {1 if color == 'gray' else 3}"
        )
    if any(len(x) not in (1, channels) for x in (recipe.mean, recipe.std)):
        recipe = _grey_means(recipe, channels)
    h, w = (spec.fixed(2), spec.fixed(3)) if layout == "NCHW" else (spec.fixed(1), spec.fixed(2))
    crop = recipe.crop or ((h, w) if h and w else None)
    if crop and ((h and crop[0] != h) or (w and crop[1] != w)):
        raise UsageError(f"input {spec.name!r} wants {h}x{w}, --crop gives {crop[0]}x{crop[1]}")
    resize = recipe.resize
    if resize is None and crop:
        resize = round(max(crop) / 0.875) if min(crop) >= 64 else crop
    least = min(resize) if isinstance(resize, tuple) else resize
    if crop and least is not None and least < min(crop) and resize != crop:
        raise UsageError(f"--resize {resize} is smaller than the crop {crop[0]}x{crop[1]}")
    return recipe.model_copy(update={"layout": layout, "color": color, "crop": crop, "resize": resize})


def _grey_means(recipe: Preprocess, channels: int) -> Preprocess:
    if channels != 1 or any(len(x) not in (1, 3) for x in (recipe.mean, recipe.std)):
        raise UsageError(f"mean and std need 1 or {channels} numbers, got {len(recipe.mean)} and {len(recipe.std)}")
    return recipe.model_copy(update={"mean": (float(np.mean(recipe.mean)),), "std": (float(np.mean(recipe.std)),)})


@dataclass(frozen=True)
class Header:
    """What is known about an image from its header."""

    problem: str | None = None
    """Why it cannot be used, None if it can."""
    traits: tuple[str, ...] = ()
    """Unusual properties."""


def header(path: Path) -> Header:
    """Check an image before its pixels are decoded."""
    if path.suffix.lower() in _HEIC and not _heic():
        return Header(f"HEIC needs the extra: {extra('heic')}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                pixels = image.width * image.height
                if pixels > MAX_PIXELS:
                    return Header(
                        f"{pixels / 1e6:.0f} million pixels; the limit is {MAX_PIXELS / 1e6:.0f}: make it smaller"
                    )
                if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
                    return Header("grey values of 32 bits, whose range no header tells: give the samples as .npz")
                return Header(traits=tuple(_traits(image)))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Header(f"more than {MAX_PIXELS / 1e6:.0f} million pixels; make it smaller")
    except UNREADABLE as e:
        return Header(f"{type(e).__name__}: {e}")


def _traits(image: Image.Image) -> Iterator[str]:
    if image.mode.startswith("I"):
        yield "16 bits"
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        yield "alpha"
    if (image.format != "PNG" or "exif" in image.info) and _turned(image):
        yield "turned"


def _turned(image: Image.Image) -> bool:
    """Whether the image is not upright by its EXIF orientation; no if the EXIF is broken."""
    try:
        return bool(1 < image.getexif().get(_ORIENTATION, 1) <= _LAST)
    except (struct.error, TypeError, KeyError, OverflowError, AttributeError, *UNREADABLE):
        return False


def _upright(image: Image.Image, recipe: Preprocess) -> Image.Image:
    """The image, turned upright by its EXIF orientation if the recipe says so."""
    if not _turned(image):
        return image
    if recipe.exif == "ignore":
        del image.getexif()[_ORIENTATION]  # by which Pillow turns a TIFF when it loads it
        return image
    image.load()
    image.info.pop("exif", None)  # Pillow would write it anew, and it may be broken
    return ImageOps.exif_transpose(image)


def told(headers: Iterable[Header], recipe: Preprocess) -> Iterator[str]:
    """Notes on images that are not plain 8-bit images."""
    turned = "turned upright by EXIF" if recipe.exif == "apply" else "not upright by EXIF, and left so"
    words = {
        "16 bits": "grey of 16 bits: 0 ... 65535 become 0 ... 255",
        "alpha": "with an alpha channel, which is dropped",
        "turned": f"{turned} (--exif apply|ignore)",
    }
    for trait, count in Counter(t for h in headers for t in h.traits).items():
        yield f"{count} image{'s' if count > 1 else ''} {words[trait]}"


def _heic() -> bool:
    """Register HEIC support with Pillow; returns whether it is available."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def read_image(path: Path, recipe: Preprocess, spec: InputSpec) -> Feed:
    """The feed [1, C, H, W] or [1, H, W, C] of one image, by a resolved `recipe`.

    Raises:
        DataError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            wanted = recipe.resize or recipe.crop
            # a JPEG may be decoded at a fraction of its size, but not below twice the wanted size
            if wanted is not None:
                side = 2 * (wanted if isinstance(wanted, int) else max(wanted))
                image.draft("RGB" if recipe.color != "gray" else "L", (side, side))
            pixels = _pixels(_upright(image, recipe), recipe)
    except UNREADABLE as e:
        raise DataError(f"{path}: not a readable image ({type(e).__name__}: {e})") from e
    return {spec.name: tensor(pixels, recipe, spec.dtype)}


def _pixels(image: Image.Image, recipe: Preprocess) -> NDArray[np.float32]:
    """Grey [H, W] or colour [H, W, 3] values in 0 ... 255."""
    if image.mode.startswith("I"):
        grey = Image.fromarray(np.asarray(image).astype(np.float32) * np.float32(255 / _SIXTEEN_BIT))
        pixels = np.asarray(_geometry(grey, recipe), np.float32)
        return pixels if recipe.color == "gray" else np.repeat(pixels[..., None], 3, axis=2)
    clear = image.convert("RGBA") if "transparency" in image.info else image
    return np.asarray(_geometry(clear.convert("L" if recipe.color == "gray" else "RGB"), recipe), np.float32)


def _geometry(image: Image.Image, recipe: Preprocess) -> Image.Image:
    if recipe.crop is None and recipe.resize is None:
        shrink = min(1.0, _FREE_SIDE / max(image.size))
        w, h = (max(_FREE_MULTIPLE, round(s * shrink / _FREE_MULTIPLE) * _FREE_MULTIPLE) for s in image.size)
        return image.resize((w, h), Image.Resampling.BILINEAR)
    if isinstance(recipe.resize, int):
        ratio = recipe.resize / min(image.size)
        w, h = (max(1, round(side * ratio)) for side in image.size)
        if w * h > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} becomes {w}x{h} when its shorter side is {recipe.resize}")
        image = image.resize((w, h), Image.Resampling.BILINEAR)
    elif recipe.resize is not None and image.size != recipe.resize[::-1]:
        image = image.resize(recipe.resize[::-1], Image.Resampling.BILINEAR)
    if recipe.crop is None or image.size == recipe.crop[::-1]:
        return image
    h, w = recipe.crop
    left, top = (image.width - w) // 2, (image.height - h) // 2
    return image.crop((left, top, left + w, top + h))


def tensor(pixels: NDArray[np.float32], recipe: Preprocess, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert `pixels` [H, W] or [H, W, 3] in 0 ... 255 to a batch of one by `recipe`."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif recipe.color == "bgr":
        pixels = pixels[..., ::-1]
    y = (pixels * np.float32(recipe.scale) - np.asarray(recipe.mean, np.float32)) / np.asarray(recipe.std, np.float32)
    if recipe.layout != "NHWC":
        y = y.transpose(2, 0, 1)
    if dtype == np.uint8:
        y = np.clip(np.rint(y), 0, 255)
    return np.ascontiguousarray(y[None], dtype=dtype)
