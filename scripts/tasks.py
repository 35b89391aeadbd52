#!/usr/bin/env python3
"""Calibration feeds and an honest metric for each real model in `models/` (brought there by `scripts/fetch_models`).

    scripts/tasks.py [NAME ...]        the float score of the named tasks, default all

A task's `score` runs a model through a `Runner` and measures what its users care about, against a truth that does not
come from the float model. Everything is drawn from a fixed seed and nothing is written: same machine, same score.
Calibration never sees what is scored:

    model               calibration                                        scored on
    efficientnet_lite0  crops of 18 photos                                 20 labelled ImageNet images
    mobilenetv2         crops of 12 photos                                 tiles of 6 other photos
    minilm_*            nouns of WordNet                                   other nouns
    ppocr_*             the text of WordNet's verbs; on 12 photos (det)    the text of its nouns; on 6 other photos
      (det)
    silero*             30 recordings                                      59 other recordings

Difficulty (the distortions, the noise, the number of documents) is set so that the float model stays below 1 where that
is possible: a metric at its ceiling does not see what quantization takes away.
"""

from __future__ import annotations

import argparse
import functools
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageEnhance, ImageFilter
from task_material import (
    CALIBRATION_PHOTOS,
    CALIBRATION_SEED,
    MODELS,
    PHOTOS,
    SCORE_SEED,
    SCORED_PHOTOS,
    Feed,
    Runner,
    float_runner,
    synsets,
)
from task_ocr import cls_feeds, detection_hmean, line_accuracy, orientation_accuracy, page_feeds, rec_feeds
from tokenizers import Tokenizer


@dataclass(frozen=True)
class Task:
    """A real model, the feeds to calibrate it with and a measure of how well it does its work."""

    name: str
    model: Path
    metric: str
    higher_is_better: bool
    calibration: Callable[[], Iterator[Feed]]
    score: Callable[[Runner], float]


# ---- photos: EfficientNet-Lite0 and MobileNetV2

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


def imagenet_input(image: Image.Image) -> np.ndarray:
    """`image` as float32 [1, 3, height, width], RGB, normalized by ImageNet's mean and standard deviation."""
    pixels = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / 255
    return ((pixels - IMAGENET_MEAN) / IMAGENET_STD)[None]


def photo_crops(n: int, seed: int, photos: Sequence[Path] = PHOTOS) -> np.ndarray:
    """Random square crops of `photos` in turn, float32 [n, 3, 224, 224] as the ImageNet models want them."""
    rng = np.random.default_rng(seed)
    images = [Image.open(photo).convert("RGB") for photo in photos]
    crops = []
    for i in range(n):
        image = images[i % len(images)]
        side = int(rng.integers(min(224, min(image.size)), min(image.size) + 1))
        left, top = (int(rng.integers(length - side + 1)) for length in image.size)
        crop = image.resize((224, 224), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        crops.append(imagenet_input(crop))
    return np.concatenate(crops)


def crop_feeds(photos: Sequence[Path]) -> Iterator[Feed]:
    for crop in photo_crops(128, CALIBRATION_SEED, photos):
        yield {"input": crop[None]}


def imagenet_top1(run: Runner) -> float:
    """Share of the labelled images (the label ends the file name) whose largest logit is the label's."""
    files = sorted(MODELS.glob("imagenet20/*.jpg"))
    hits = 0
    for file in files:
        image = Image.open(file).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        (logits,) = run({"input": imagenet_input(image.crop((left, top, left + 224, top + 224)))})
        hits += int(logits[0].argmax()) == int(file.stem.rsplit("_", 1)[1])
    return hits / len(files)


def distort(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A bad copy of a 224 x 224 `image`: cropped by 2 to 8 %, other light and contrast, blurred, noisy, JPEG of quality
    30 to 80.
    """
    side = int(224 * rng.uniform(0.92, 0.98))
    left, top = (int(v) for v in rng.integers(224 - side + 1, size=2))
    image = image.resize((224, 224), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.25))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.8, 1.25))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1)))
    noisy = np.asarray(image) + rng.normal(0, rng.uniform(1, 6), (224, 224, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=int(rng.integers(30, 81)))
    return Image.open(buffer)


def copy_recall(run: Runner) -> float:
    """Share of some 230 distorted photo tiles whose nearest tile, by the cosine of the embeddings, is the one they come
    from.
    """
    rng = np.random.default_rng(SCORE_SEED)
    tiles = []
    for photo in SCORED_PHOTOS:
        image = Image.open(photo).convert("RGB")
        corners = [(x, y) for y in range(0, image.height - 223, 224) for x in range(0, image.width - 223, 224)]
        chosen = rng.choice(len(corners), min(40, len(corners)), replace=False)
        tiles += [image.crop((x, y, x + 224, y + 224)) for x, y in (corners[i] for i in chosen)]
    originals = unit(np.concatenate([run({"input": imagenet_input(tile)})[0] for tile in tiles]))
    copies = unit(np.concatenate([run({"input": imagenet_input(distort(tile, rng))})[0] for tile in tiles]))
    return float(((copies @ originals.T).argmax(1) == np.arange(len(tiles))).mean())


def unit(x: np.ndarray) -> np.ndarray:
    """The rows of `x` scaled to length 1; [n, d]. A row of zeros stays."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))


# ---- sentences: the MiniLM encoders


@functools.cache
def tokenizer() -> Tokenizer:
    tokens = Tokenizer.from_file(str(MODELS / "minilm_l6_tokenizer.json"))
    tokens.enable_truncation(64)
    tokens.enable_padding()
    return tokens


def text_feed(texts: list[str], inputs: Sequence[str]) -> Feed:
    """The arrays named `inputs`, int64 [len(texts), longest text in tokens]."""
    batch = tokenizer().encode_batch(texts)
    arrays = {
        "input_ids": [e.ids for e in batch],
        "attention_mask": [e.attention_mask for e in batch],
        "token_type_ids": [e.type_ids for e in batch],
    }
    return {name: np.array(arrays[name], np.int64) for name in inputs}


def noun_order() -> np.ndarray:
    """A fixed shuffle of the noun synsets; scoring takes its head, calibration its tail."""
    return np.random.default_rng(SCORE_SEED).permutation(len(synsets("noun")))


def text_feeds(inputs: Sequence[str]) -> Iterator[Feed]:
    """96 batches of 1 to 8 texts: lemmas and definitions, short and long together."""
    rng = np.random.default_rng(CALIBRATION_SEED)
    texts = [text for i in noun_order()[-400:] for text in synsets("noun")[i]]
    for _ in range(96):
        yield text_feed([texts[i] for i in rng.choice(len(texts), rng.integers(1, 9), replace=False)], inputs)


def mean_pooled(outputs: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
    return np.asarray((outputs[0] * mask[..., None]).sum(1) / mask.sum(1, keepdims=True))


def pooled_by_model(outputs: list[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """MiniLM-L3 puts the ids and the mask through, then gives the token vectors, then their mean over the mask."""
    return outputs[3]


def gloss_mrr(run: Runner, inputs: Sequence[str], pool: Callable[[list[np.ndarray], np.ndarray], np.ndarray]) -> float:
    """Mean of 1 / rank of a synset's definition among 400, for the synset's lemmas; a tie (or NaN) takes the worse
    rank.
    """

    def embed(texts: list[str]) -> np.ndarray:
        feeds = (text_feed(texts[i : i + 8], ["attention_mask", *inputs]) for i in range(0, len(texts), 8))
        return unit(
            np.concatenate([pool(run({name: feed[name] for name in inputs}), feed["attention_mask"]) for feed in feeds])
        )

    names, glosses = zip(*(synsets("noun")[i] for i in noun_order()[:400]), strict=True)
    similarity = embed(list(names)) @ embed(list(glosses)).T
    return float((1 / (~(similarity < np.diag(similarity)[:, None])).sum(1)).mean())


# ---- speech: the Silero voice activity detectors

SAMPLE_RATE = 16000
FRAME, CONTEXT = 512, 64  # samples
NOT_SPEECH = {
    "ascending-2tone",
    "beep",
    "beeperr",
    "confbridge-join",
    "confbridge-leave",
    "descending-2tone",
    "tt-monkeys",
}


def recordings() -> list[Path]:
    return [file for file in sorted(MODELS.glob("speech/*.wav")) if file.stem not in NOT_SPEECH]


def resampled(file: Path) -> np.ndarray:
    """The mono recording at 16 kHz, its spectrum padded with 0: float64 [samples], mean square 1."""
    samples, rate = soundfile.read(file)
    spectrum = np.fft.rfft(samples)
    samples = np.fft.irfft(spectrum, len(samples) * SAMPLE_RATE // rate)
    return np.asarray(samples / np.sqrt((samples**2).mean()))


def noisy_speech(files: Sequence[Path], snr_db: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`files` with pauses between them, in noise between white and pink: float32 [frames, 512]; bool [frames], which
    hold speech.
    """
    parts = [part for file in files for part in (np.zeros(int(rng.integers(8000, 24000))), resampled(file))]
    clean = np.concatenate(parts)
    clean = clean[: len(clean) // FRAME * FRAME]
    spectrum = np.fft.rfft(rng.normal(size=len(clean)))
    noise = np.fft.irfft(spectrum * np.arange(1, len(spectrum) + 1) ** -rng.uniform(0, 0.5), len(clean))
    noise *= 10 ** (-snr_db / 20) / noise.std()
    energy = (clean.reshape(-1, FRAME) ** 2).mean(1)
    return (0.05 * (clean + noise)).astype(np.float32).reshape(-1, FRAME), energy > 0.01


def vad(run: Runner, frames: np.ndarray) -> Iterator[tuple[Feed, float]]:
    """The feed of each frame (its state and context come from the frames before) and the probability of speech that
    `run` gives it.
    """
    state, context = np.zeros((2, 1, 128), np.float32), np.zeros(CONTEXT, np.float32)
    for frame in frames:
        feed = {"input": np.concatenate([context, frame])[None], "state": state, "sr": np.array(SAMPLE_RATE, np.int64)}
        probability, state = run(feed)
        context = frame[-CONTEXT:]
        yield feed, float(probability[0, 0])


def vad_feeds(model: Path) -> Iterator[Feed]:
    """128 frames spread over a long recording, with the state that the float model reached there."""
    rng = np.random.default_rng(CALIBRATION_SEED)
    frames, _ = noisy_speech(recordings()[1::12], 8, rng)
    every = len(frames) // 128
    for i, (feed, _) in enumerate(vad(float_runner(model), frames[: 128 * every])):
        if i % every == every - 1:
            yield feed


def speech_auc(run: Runner) -> float:
    """Area under the ROC curve of the frames of speech against the others at 5 dB; a tie counts half."""
    rng = np.random.default_rng(SCORE_SEED)
    frames, speech = noisy_speech(recordings()[::6], 5, rng)
    probabilities = np.array([p for _, p in vad(run, frames)])
    silent = np.sort(probabilities[~speech])
    below, not_above = (np.searchsorted(silent, probabilities[speech], side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(silent)))


# ---- the tasks

L6_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
L3_INPUTS = L6_INPUTS[:2]
ROWS: tuple[tuple[str, str, Callable[[], Iterator[Feed]], Callable[[Runner], float]], ...] = (
    ("efficientnet_lite0", "top-1", partial(crop_feeds, PHOTOS), imagenet_top1),
    ("mobilenetv2", "recall@1", partial(crop_feeds, CALIBRATION_PHOTOS), copy_recall),
    ("minilm_l6", "MRR", partial(text_feeds, L6_INPUTS), partial(gloss_mrr, inputs=L6_INPUTS, pool=mean_pooled)),
    ("minilm_l3", "MRR", partial(text_feeds, L3_INPUTS), partial(gloss_mrr, inputs=L3_INPUTS, pool=pooled_by_model)),
    ("ppocr_det", "hmean", page_feeds, detection_hmean),
    ("ppocr_rec", "line accuracy", rec_feeds, line_accuracy),
    ("ppocr_cls", "accuracy", cls_feeds, orientation_accuracy),
    ("silero", "AUC", partial(vad_feeds, MODELS / "silero.onnx"), speech_auc),
    ("silero_ifless", "AUC", partial(vad_feeds, MODELS / "silero_ifless.onnx"), speech_auc),
)
TASKS: dict[str, Task] = {
    name: Task(name, MODELS / f"{name}.onnx", metric, True, calibration, score)
    for name, metric, calibration, score in ROWS
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The float score of each task.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default all: {' '.join(TASKS)}")
    names = parser.parse_args().names
    if unknown := sorted(set(names) - set(TASKS)):
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(TASKS)}")
    for task in (TASKS[name] for name in names or TASKS):
        if not task.model.exists():
            print(f"{task.name}: no {task.model}; run scripts/fetch_models; skipped", file=sys.stderr)
            continue
        start = time.perf_counter()
        score = task.score(float_runner(task.model))
        print(f"{task.name:20}{task.metric:15}{score:.4f}{time.perf_counter() - start:8.1f} s", flush=True)


if __name__ == "__main__":
    main()
