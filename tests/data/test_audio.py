"""Waveforms to tensors: mono float32, cut or padded to the length that the model fixes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeopt.data import InputSpec, open_data
from edgeopt.errors import DataError
from edgeopt.options.reading import Reading

soundfile = pytest.importorskip("soundfile")

F32 = np.dtype(np.float32)
WAVE = np.arange(-50, 50, dtype=np.int16) * np.int16(300)  # 100 samples of 16 bits


def read(folder: Path, wave: np.ndarray, *shape: int | None, dtype: type = np.float32) -> np.ndarray:
    """What the input w of `shape` gets of a .wav of `wave`."""
    soundfile.write(folder / "a.wav", wave, 16_000, subtype="PCM_16")
    ((name, reader),) = open_data(folder, [InputSpec("w", np.dtype(dtype), shape)], Reading())
    assert name == str(folder / "a.wav")
    feed = reader()
    assert list(feed) == ["w"]
    return feed["w"]


def test_a_sample_of_16_bits_is_a_share_of_32768(tmp_path: Path) -> None:
    y = read(tmp_path, WAVE, 1, None)
    assert y.dtype == F32
    assert np.array_equal(y, WAVE[None].astype(np.float32) / np.float32(32768))  # a power of two: exact


def test_channels_are_averaged(tmp_path: Path) -> None:
    y = read(tmp_path, np.stack([WAVE, 2 * WAVE], -1), 1, None)
    assert np.array_equal(y, 1.5 * WAVE[None].astype(np.float32) / np.float32(32768))  # multiples of 2^-16: exact


@pytest.mark.parametrize(
    ("shape", "made"), [((None,), (100,)), ((1, None), (1, 100)), ((None, None), (1, 100)), ((1, 1, None), (1, 1, 100))]
)
def test_the_rank_is_the_input_s(shape: tuple[int | None, ...], made: tuple[int, ...], tmp_path: Path) -> None:
    assert read(tmp_path, WAVE, *shape).shape == made


def test_a_long_wave_is_cut_at_its_end(tmp_path: Path) -> None:
    assert np.array_equal(read(tmp_path, WAVE, 1, 30), read(tmp_path, WAVE, 1, None)[:, :30])


def test_a_short_wave_is_padded_with_silence(tmp_path: Path) -> None:
    y = read(tmp_path, WAVE, 1, 130)
    assert np.array_equal(y[:, :100], read(tmp_path, WAVE, 1, None))
    assert y.shape == (1, 130)
    assert not y[:, 100:].any()


def test_a_free_length_ends_at_ten_seconds_of_16_khz(tmp_path: Path) -> None:
    assert read(tmp_path, np.tile(WAVE, 2000), 1, None).shape == (1, 160_000)


def test_a_float16_input_gets_float16(tmp_path: Path) -> None:
    y = read(tmp_path, WAVE, 1, None, dtype=np.float16)
    assert y.dtype == np.float16
    assert np.array_equal(y, (WAVE[None].astype(np.float32) / np.float32(32768)).astype(np.float16))


def test_waves_are_found_below_and_whatever_their_case(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.wav", "deep/b.WAV"):
        soundfile.write(tmp_path / name, WAVE, 16_000, format="WAV")
    found = open_data(tmp_path, [InputSpec("w", F32, (1, None))], Reading())
    assert sorted(Path(name).name for name, _ in found) == ["a.wav", "b.WAV"]


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\x00\x00\x00\x00WAVEfmt ", b"no wave at all" * 10])
def test_a_file_that_is_no_wave_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    ((_, reader),) = open_data(tmp_path, [InputSpec("w", F32, (1, None))], Reading())
    with pytest.raises(DataError, match=r"a\.wav"):
        reader()


def test_a_wave_without_a_sample_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.wav"):
        read(tmp_path, WAVE[:0], 1, None)


def test_a_model_of_two_inputs_is_refused_with_their_names(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", WAVE, 16_000)
    ((_, reader),) = open_data(tmp_path, [InputSpec("wave", F32, (1, None)), InputSpec("rate", F32, (1,))], Reading())
    with pytest.raises(DataError, match="wave, rate"):
        reader()
