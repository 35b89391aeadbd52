"""PP-OCRv4 detection, recognition and orientation on rendered text, whose truth is known.

Preprocessing and decoding follow rapidocr-onnxruntime 1.4.4 (`ch_ppocr_det`, `_rec`, `_cls`), with upright boxes in
place of rotated ones. Scoring renders the definitions of WordNet's nouns, calibration those of its verbs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from task_material import CALIBRATION_PHOTOS, CALIBRATION_SEED, MODELS, SCORE_SEED, SCORED_PHOTOS, Feed, Runner, synsets


@functools.cache
def font(size: int) -> Any:
    return ImageFont.load_default(size)  # Pillow's own: the same on every machine


def phrase(part: str, longest: int, rng: np.random.Generator) -> str:
    """The first words of a definition of `part`, at most `longest` characters."""
    while True:
        words = synsets(part)[rng.integers(len(synsets(part)))][1].split()
        text = ""
        while words and len(text) + 1 + len(words[0]) <= longest:
            text = f"{text} {words.pop(0)}".strip()
        if len(text) >= 3:
            return text


def tinted(grey: float, rng: np.random.Generator) -> tuple[int, int, int]:
    """An RGB colour near `grey`."""
    red, green, blue = (grey + rng.uniform(-30, 30, 3)).clip(0, 255).astype(int).tolist()
    return red, green, blue


def line_image(text: str, size: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """`text` on one line in a font of `size` pixels, with noise of standard deviation `noise`: uint8 [height, width,
    3].
    """
    left, top, right, bottom = font(size).getbbox(text)
    margins = rng.integers(1, 4, size=4)
    paper = rng.uniform(0, 255)
    ink = (paper + rng.uniform(70, 185)) % 255  # so 70 grey levels apart at least, dark or light paper
    shape = (int(right - left + margins[:2].sum()), int(bottom - top + margins[2:].sum()))
    image = Image.new("RGB", shape, tinted(paper, rng))
    ImageDraw.Draw(image).text((margins[0] - left, margins[2] - top), text, tinted(ink, rng), font(size))
    noisy = np.asarray(image) + rng.normal(0, noise, (image.height, image.width, 3))
    return np.asarray(noisy.clip(0, 255).astype(np.uint8))


def ocr_input(pixels: np.ndarray) -> np.ndarray:
    """RGB uint8 [height, width, 3] as float32 [1, 3, height, width], BGR in [-1, 1]."""
    return np.ascontiguousarray(pixels[None, :, :, ::-1].transpose(0, 3, 1, 2), np.float32) / 127.5 - 1


def line_input(pixels: np.ndarray, width: int) -> np.ndarray:
    """A line scaled to 48 pixels high, squeezed or filled with 0 on the right to `width`: float32 [1, 3, 48, width]."""
    scaled = min(width, -(-48 * pixels.shape[1] // pixels.shape[0]))
    image = Image.fromarray(pixels).resize((scaled, 48), Image.Resampling.BILINEAR)
    return np.pad(ocr_input(np.asarray(image)), ((0, 0), (0, 0), (0, 0), (0, width - scaled)))


def rec_lines(part: str, n: int, seed: int) -> Iterator[tuple[str, Feed]]:
    """`n` lines of up to 24 characters in fonts of 8 to 13 pixels: 10 to 17 pixels high with the margins, and noisy."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        text = phrase(part, 24, rng)
        pixels = line_image(text, int(rng.integers(8, 14)), rng.uniform(0, 30), rng)
        width = max(320, -(-48 * pixels.shape[1] // pixels.shape[0]))
        yield text, {"x": line_input(pixels, width)}


@functools.cache
def characters() -> list[str]:
    """The recognizer's classes: the CTC blank, the list in the file's metadata (`character`, lines), the space."""
    data = (MODELS / "ppocr_rec.onnx").read_bytes()
    start = (
        data.index(b"\x0a\x09character\x12") + 12
    )  # a StringStringEntryProto: key, then value as varint length and bytes
    length = 0
    for shift in range(0, 35, 7):
        byte, start = data[start], start + 1
        length |= (byte & 127) << shift
        if byte < 128:
            break
    return ["", *data[start : start + length].decode().splitlines(), " "]


def line_accuracy(run: Runner) -> float:
    """Share of 300 lines read without an error, spaces apart; greedy CTC decoding."""
    hits = 0
    for text, feed in rec_lines("noun", 300, SCORE_SEED):
        best = run(feed)[0][0].argmax(1)
        kept = best[np.insert(best[1:] != best[:-1], 0, True)]
        hits += "".join(characters()[i] for i in kept).replace(" ", "") == text.replace(" ", "")
    return hits / 300


def rec_feeds() -> Iterator[Feed]:
    yield from (feed for _, feed in rec_lines("verb", 96, CALIBRATION_SEED))


def cls_lines(part: str, n: int, seed: int) -> Iterator[tuple[int, Feed]]:
    """`n` lines, every second one turned by 180 degrees, with the class (0, 1)."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        pixels = line_image(phrase(part, 16, rng), int(rng.integers(8, 25)), rng.uniform(0, 40), rng)
        yield i % 2, {"x": line_input(pixels[::-1, ::-1] if i % 2 else pixels, 192)}


def orientation_accuracy(run: Runner) -> float:
    """Share of 600 lines whose larger output is the class of their orientation; NaN counts as wrong."""
    margins = ((1 - 2 * turned) * np.subtract(*run(feed)[0][0]) for turned, feed in cls_lines("noun", 600, SCORE_SEED))
    return float(np.mean([margin > 0 for margin in margins]))


def cls_feeds() -> Iterator[Feed]:
    yield from (feed for _, feed in cls_lines("verb", 96, CALIBRATION_SEED))


def page(part: str, photos: Sequence[Path], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A page and its lines: uint8 [480, 640, 3] and boxes int64 [lines, 4] as left, top, right, bottom."""
    photo = Image.open(photos[int(rng.integers(len(photos)))]).convert("RGB").resize((640, 480))
    image = Image.blend(Image.new("RGB", photo.size, tinted(rng.uniform(0, 255), rng)), photo, rng.uniform(0, 0.5))
    draw, boxes, y = ImageDraw.Draw(image), [], int(rng.integers(8, 30))
    while y < 440:
        size = int(rng.integers(11, 32))
        text = phrase(part, int(rng.integers(4, 900 // size)), rng)
        left, top, right, bottom = font(size).getbbox(text)
        x = int(rng.integers(4, max(5, 636 - right)))
        box = np.array([x + left, y + top, min(x + right, 640), y + bottom], np.int64)
        grey = np.asarray(image.crop(box.tolist())).mean()
        draw.text((x, y), text, tinted(25 if grey > 127 else 230, rng), font(size))
        boxes.append(box)
        y += int(size * rng.uniform(1.3, 2.2))
    noisy = np.asarray(image) + rng.normal(0, rng.uniform(0, 20), (480, 640, 3))
    return noisy.clip(0, 255).astype(np.uint8), np.array(boxes)


def components(mask: np.ndarray) -> np.ndarray:
    """Boxes of the 8-connected regions of `mask` bool [height, width]: int64 [regions, 4] as left, top, right, bottom
    (exclusive).
    """
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    stops = np.nonzero(edges == -1)[1]
    parent = np.arange(len(rows))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first = np.searchsorted(rows, np.arange(mask.shape[0] + 1))
    for i, row in enumerate(rows):
        above = np.arange(first[row - 1], first[row]) if row else np.arange(0)
        for j in above[(starts[above] <= stops[i]) & (stops[above] >= starts[i])]:
            parent[root(j)] = root(i)
    roots = np.array([root(i) for i in range(len(rows))], np.int64)
    spans = (np.flatnonzero(roots == r) for r in np.unique(roots))
    boxes = [(starts[s].min(), rows[s].min(), stops[s].max(), rows[s].max() + 1) for s in spans]
    return np.array(boxes, np.int64).reshape(-1, 4)


def text_boxes(probability: np.ndarray) -> np.ndarray:
    """Lines found in the map float32 [height, width]: regions above .3 that average .5, grown by area * 1.6 /
    perimeter.
    """
    found = []
    for left, top, right, bottom in components(probability > 0.3):
        width, height = right - left, bottom - top
        if min(width, height) < 3 or probability[top:bottom, left:right].mean() < 0.5:
            continue
        grow = width * height * 1.6 / (2 * (width + height))
        found.append((left - grow, top - grow, right + grow, bottom + grow))
    limit = np.array(probability.shape[::-1] * 2)
    return np.array(found, np.float64).reshape(-1, 4).clip(0, limit)


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of the boxes `a` [n, 4] and `b` [m, 4]: [n, m]."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    common = sides.clip(0).prod(2)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b))
    return np.asarray(common / (area_a[:, None] + area_b[None] - common))


def detection_hmean(run: Runner) -> float:
    """2 * matched / (found + true) lines on 24 pages; a match is the other's best overlap both ways, at least .5."""
    rng = np.random.default_rng(SCORE_SEED)
    matched = lines = 0
    for _ in range(24):
        pixels, true = page("noun", SCORED_PHOTOS, rng)
        found = text_boxes(run({"x": ocr_input(pixels)})[0][0, 0])
        lines += len(true) + len(found)
        if len(found):
            iou = overlaps(found, true)
            best = iou.argmax(1)
            matched += int(((iou.max(1) >= 0.5) & (iou.argmax(0)[best] == np.arange(len(found)))).sum())
    return 2 * matched / lines


def page_feeds() -> Iterator[Feed]:
    rng = np.random.default_rng(CALIBRATION_SEED)
    for _ in range(64):
        yield {"x": ocr_input(page("verb", CALIBRATION_PHOTOS, rng)[0])}
