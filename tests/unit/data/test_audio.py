from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdps_ds.data import audio
from gdps_ds.data.audio import AudioError, load_audio, read_segment

SHARED = Path(__file__).parents[4] / "shared" / "data"


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = 16000, subtype: str = "FLOAT") -> str:
    soundfile.write(path, samples, rate, subtype=subtype)
    return str(path)


def reason_of(path: str, offset: float = 0.0, duration: float | None = None) -> str:
    with pytest.raises(AudioError) as caught:
        load_audio(path, offset, duration)
    assert str(caught.value).startswith(f"{path}: {caught.value.reason}")
    return caught.value.reason


def test_16_khz_mono_comes_back_bit_for_bit(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    loaded = load_audio(write(tmp_path / "a.wav", samples))
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, samples)


@pytest.mark.parametrize("native_rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled_to_the_same_tone(tmp_path: Path, native_rate: int) -> None:
    loaded = load_audio(write(tmp_path / "a.wav", tone(1.0, native_rate), native_rate))
    assert abs(len(loaded) - 16000) <= 1
    inner = slice(2000, 14000)  # the filter rings at the edges
    np.testing.assert_allclose(loaded[inner], tone(1.0, 16000)[inner], atol=2e-3)


def test_channels_are_averaged_before_anything_else(tmp_path: Path) -> None:
    left, right = tone(0.5, 44100, 300), tone(0.5, 44100, 1000)
    stereo = write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), 44100)
    mono = write(tmp_path / "mono.wav", (left + right) / 2, 44100)
    np.testing.assert_allclose(load_audio(stereo), load_audio(mono), atol=1e-6)


def test_the_native_format_is_reported(tmp_path: Path) -> None:
    segment = read_segment(write(tmp_path / "a.wav", np.zeros((4410, 2), dtype=np.float32), 44100))
    assert (segment.native_rate, segment.channels) == (44100, 2)


def test_a_segment_is_cut_out_of_a_long_file(tmp_path: Path) -> None:
    ramp = np.arange(32000, dtype=np.float32) / 32000
    path = write(tmp_path / "talk.wav", ramp)
    np.testing.assert_array_equal(load_audio(path, 0.5, 0.25), ramp[8000:12000])
    np.testing.assert_array_equal(load_audio(path, 1.5), ramp[24000:])
    np.testing.assert_array_equal(load_audio(path, 1.5, 10.0), ramp[24000:])


def test_the_rest_of_the_file_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "talk.wav", np.zeros(16000 * 60, dtype=np.float32))
    read: list[int] = []
    original = soundfile.SoundFile.read

    def counting(self: soundfile.SoundFile, frames: int = -1, **options: object) -> np.ndarray:
        samples = original(self, frames, **options)
        read.append(len(samples))
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    load_audio(path, 30.0, 2.0)
    assert sum(read) <= 2.0 * 16000 + 1


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000]),
    st.integers(4000, 9000),
    st.floats(0, 0.05),
    st.none() | st.floats(0.01, 0.3),
)
def test_loading_a_prepared_duration_gives_exactly_as_many_samples(
    tmp_path: Path, rate: int, frames: int, offset: float, duration: float | None
) -> None:
    path = write(tmp_path / "a.wav", np.zeros(frames, dtype=np.float32), rate)
    samples = len(load_audio(path, offset, duration))
    assert len(load_audio(path, offset, samples / 16000)) == samples
    if duration is not None and offset + duration < frames / rate - 2 / rate:
        assert samples == round(duration * 16000)


def test_a_header_that_declares_too_many_bytes_gives_what_is_there(tmp_path: Path) -> None:
    samples = tone(0.5, 16000)
    path = Path(write(tmp_path / "a.wav", samples, subtype="PCM_16"))
    content = bytearray(path.read_bytes())
    data = content.index(b"data")
    struct.pack_into("<I", content, 4, len(content) + 5000)
    struct.pack_into("<I", content, data + 4, 2 * len(samples) + 5000)
    path.write_bytes(content)
    assert len(load_audio(str(path))) == len(samples)
    path.write_bytes(content[:-2000])
    assert len(load_audio(str(path))) == len(samples) - 1000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", audio.EMPTY),
        (b"no audio at all", audio.UNREADABLE),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", audio.GIT_LFS),
    ],
)
def test_files_that_are_no_audio(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    assert reason_of(str(path)) == reason


def test_segments_without_samples(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(1.0, 16000))
    assert reason_of(path, offset=1.0) == audio.BEYOND_END
    assert reason_of(path, offset=7.0, duration=1.0) == audio.BEYOND_END
    assert reason_of(path, duration=0.0) == audio.ZERO_LENGTH
    assert reason_of(write(tmp_path / "b.wav", np.zeros(0, dtype=np.float32))) == audio.EMPTY
    assert reason_of(str(tmp_path / "nowhere.wav")) == audio.MISSING
    assert reason_of(str(tmp_path)) == audio.MISSING


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_samples_that_are_no_numbers(tmp_path: Path, poison: float) -> None:
    assert reason_of(write(tmp_path / "a.wav", np.array([0.0, poison], dtype=np.float32))) == audio.NOT_FINITE


def test_the_error_survives_the_way_back_from_a_process() -> None:
    error = pickle.loads(pickle.dumps(AudioError(audio.MISSING, "/a.wav", "why")))
    assert (error.reason, str(error)) == (audio.MISSING, "/a.wav: missing file (why)")


needs_samples = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no speech samples in {SHARED}")


@needs_samples
@pytest.mark.parametrize(
    ("pattern", "rate", "channels"), [("mboshi-french/dev/*.wav", 16000, 1), ("griko-italian/dev/wav/*.wav", 44100, 2)]
)
def test_real_speech(pattern: str, rate: int, channels: int) -> None:
    paths = sorted(SHARED.glob(pattern))[:20]
    assert len(paths) == 20
    for path in paths:
        segment = read_segment(str(path))
        assert (segment.native_rate, segment.channels) == (rate, channels)
        assert abs(len(segment.samples) - soundfile.info(str(path)).duration * 16000) <= 1
        assert 1e-4 < np.abs(segment.samples).max() <= 1.1


@needs_samples
def test_real_headers_that_declare_too_many_bytes() -> None:
    truncated = 0
    for path in sorted(SHARED.glob("mboshi-french/*/*.wav")):
        content = path.read_bytes()
        declared = struct.unpack_from("<I", content, content.index(b"data") + 4)[0]
        available = len(content) - content.index(b"data") - 8
        if declared > available:
            truncated += 1
            assert len(load_audio(str(path))) == available // 2
    assert truncated
