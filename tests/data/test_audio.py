"""Waveforms to tensors: mono float32, cut or padded to the length that the model fixes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeopt.data import InputSpec, open_data
from edgeopt.errors import DataError, UsageError
from edgeopt.options.quantize import Quantize
from edgeopt.options.reading import Reading

soundfile = pytest.importorskip("soundfile")

F32 = np.dtype(np.float32)
WAVE = np.arange(-50, 50, dtype=np.int16) * np.int16(300)  # 100 samples of 16 bits


def read(folder: Path, wave: np.ndarray, *shape: int | None, dtype: type = np.float32) -> np.ndarray:
    """What the input w of `shape` gets of a .wav of `wave`."""
    soundfile.write(folder / "a.wav", wave, 16_000, subtype="PCM_16")
    ((name, reader),) = open_data(folder, [InputSpec("w", np.dtype(dtype), shape)], Reading()).samples
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
    found = open_data(tmp_path, [InputSpec("w", F32, (1, None))], Reading()).samples
    assert sorted(Path(name).name for name, _ in found) == ["a.wav", "b.WAV"]


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\x00\x00\x00\x00WAVEfmt ", b"no wave at all" * 10])
def test_a_file_that_is_no_wave_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    ((_, reader),) = open_data(tmp_path, [InputSpec("w", F32, (1, None))], Reading()).samples
    with pytest.raises(DataError, match=r"a\.wav"):
        reader()


def test_a_wave_without_a_sample_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.wav"):
        read(tmp_path, WAVE[:0], 1, None)


def test_a_model_of_two_inputs_is_refused_with_their_names(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", WAVE, 16_000)
    with pytest.raises(DataError, match="wave, rate"):
        open_data(tmp_path, [InputSpec("wave", F32, (1, None)), InputSpec("rate", F32, (1,))], Reading())


def tone(path: Path, rate: int, hertz: float = 440.0, channels: int = 1) -> None:
    """A second of a sine."""
    wave = np.sin(2 * np.pi * hertz * np.arange(rate) / rate).astype(np.float32)
    soundfile.write(path, np.repeat(wave[:, None], channels, 1) / 2, rate)


def test_sound_is_resampled_to_the_rate_of_the_model(tmp_path: Path) -> None:
    pytest.importorskip("soxr")
    tone(tmp_path / "a.wav", 44_100)
    tone(tmp_path / "b.wav", 16_000)
    wanted = [InputSpec("w", F32, (1, 16_000))]
    found = open_data(tmp_path, wanted, Reading(sample_rate=16_000))
    assert found.notes[0].startswith("sound: 44100 Hz, 16000 Hz, resampled to 16000 Hz; 1.00 ... 1.00 s")
    first, second = (read()["w"][0] for _, read in sorted(found.samples))
    assert np.abs(first - second)[200:-200].max() < 1e-3


def test_several_rates_without_a_wanted_one_are_refused(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", 44_100)
    tone(tmp_path / "b.wav", 16_000)
    with pytest.raises(UsageError, match=r"1 of 44100 Hz, 1 of 16000 Hz.*--sample-rate"):
        open_data(tmp_path, [InputSpec("w", F32, (1, None))], Reading())


def test_channels_are_averaged_and_told(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", 8_000, channels=2)
    notes = open_data(tmp_path, [InputSpec("w", F32, (1, None))], Reading()).notes
    assert notes[1] == "1 file has several channels, which are averaged"


def test_too_long_a_sound_is_refused_by_its_header(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav", 16_000)
    ((_, read),) = open_data(tmp_path, [InputSpec("w", F32, (1, None))], Quantize(max_ram=10_000)).samples
    with pytest.raises(DataError, match=r"a\.wav: 0 MB of sound; a sample may take 0"):
        read()
