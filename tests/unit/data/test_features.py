from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st
from transformers import SeamlessM4TFeatureExtractor

from gdps_ds.data import features
from gdps_ds.data.audio import AudioError, load_audio
from gdps_ds.data.features import FeatureStore, OnTheFlyFeatures, frames_of, frames_of_samples, log_mel
from gdps_ds.data.manifest import DataError, Utterance
from gdps_ds.data.preparation import prepare

SHARED = Path(__file__).parents[4] / "shared" / "data"
EXTRACTOR = SeamlessM4TFeatureExtractor()
ODD, EVEN = 400 + 160 * 30, 400 + 160 * 31
"""Samples that make 31 and 32 windows."""


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def reference(waveform: np.ndarray) -> np.ndarray:
    """The frames that transformers' extractor does not mask."""
    output = EXTRACTOR(waveform, sampling_rate=16000, return_tensors="np")
    return output["input_features"][0][output["attention_mask"][0] == 1]


def corpus(folder: Path, seconds: tuple[float, ...] = (0.4, 0.25, 1.0)) -> list[Utterance]:
    """Prepared utterances of noise: two files at 16 kHz and a segment of one at 44.1 kHz."""
    utterances = []
    for number, length in enumerate(seconds):
        rate = 44100 if number == 2 else 16000
        path = folder / f"{number}.wav"
        soundfile.write(path, noise(round((length + 0.5) * rate), number), rate, subtype="FLOAT")
        utterances.append(Utterance(str(number), str(path), "bem", "eng", "x", offset=0.1, duration=length))
    return prepare(utterances, languages=None, min_seconds=0.1, max_seconds=30)[0]


@pytest.mark.parametrize("samples", [560, 719, 720, 879, 880, ODD - 1, ODD, EVEN - 1, EVEN, EVEN + 1, 48000, 80123])
def test_noise_of_even_and_odd_lengths_equals_the_extractor(samples: int) -> None:
    ours, theirs = log_mel(noise(samples)), reference(noise(samples))
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape == (frames_of_samples(samples), 160)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("level", [1.0, 1e-2, 1e-4, 0.0])
def test_quiet_and_silent_audio_equals_the_extractor(level: float) -> None:
    waveform = level * np.concatenate([np.zeros(8000, dtype=np.float32), noise(8000), np.zeros(4000, dtype=np.float32)])
    ours = log_mel(waveform)
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, reference(waveform), atol=1e-3, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_telephone_speech_at_twice_its_rate_equals_the_extractor(seed: int) -> None:
    """Its upper bins hold next to nothing, but weigh as much as the others: float32 transforms are off by 0.02 there."""
    telephone = np.cumsum(noise(4000, seed)) * np.hanning(4000).astype(np.float32)
    waveform = soxr.resample(telephone.astype(np.float32), 8000, 16000)
    np.testing.assert_allclose(log_mel(waveform), reference(waveform), atol=1e-4, rtol=0)


@pytest.mark.parametrize("offset", [0.5, -1.0])
def test_a_constant_offset_of_the_samples_changes_nothing(offset: float) -> None:
    waveform = noise(8000).astype(np.float64) * 0.01
    np.testing.assert_allclose(log_mel(waveform + offset), log_mel(waveform), atol=1e-6)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no speech samples in {SHARED}")
@pytest.mark.parametrize("pattern", ["mboshi-french/*/*.wav", "griko-italian/*/wav/*.wav"])
def test_all_real_speech_equals_the_extractor(pattern: str) -> None:
    paths = sorted(SHARED.glob(pattern))
    assert paths
    for path in paths:
        waveform = load_audio(str(path))
        np.testing.assert_allclose(log_mel(waveform), reference(waveform), atol=1e-4, rtol=0, err_msg=str(path))


def test_the_odd_last_window_is_normalised_with_but_left_out() -> None:
    output = EXTRACTOR(noise(ODD), sampling_rate=16000, return_tensors="np")
    assert output["attention_mask"][0].tolist() == [1] * 15 + [0]
    assert len(log_mel(noise(ODD))) == 15


@given(st.integers(1, 3000))
def test_frames_are_known_from_samples_and_from_seconds(samples: int) -> None:
    assert frames_of(samples / 16000) == frames_of_samples(samples)
    if frames_of_samples(samples):
        assert len(log_mel(noise(samples))) == frames_of_samples(samples)


def test_what_is_too_short_for_a_frame_is_an_error() -> None:
    assert (frames_of_samples(559), frames_of_samples(560)) == (0, 1)
    with pytest.raises(DataError, match=r"559 samples .* too short"):
        log_mel(noise(559))


def test_store_and_direct_features_agree(tmp_path: Path) -> None:
    utterances = corpus(tmp_path)
    store, direct = FeatureStore.build(utterances, tmp_path / "store"), OnTheFlyFeatures(utterances)
    assert len(store) == len(direct) == 3
    assert store.lengths.dtype == direct.lengths.dtype == np.int32
    assert store.lengths.tolist() == direct.lengths.tolist() == [frames_of(0.4), frames_of(0.25), frames_of(1.0)]
    for index in range(-1, 3):
        np.testing.assert_array_equal(store[index], direct[index])
        assert store[index].shape == (store.lengths[index], 160)


def test_the_number_of_processes_does_not_matter(tmp_path: Path) -> None:
    utterances = corpus(tmp_path)
    one = FeatureStore.build(utterances, tmp_path / "one")
    two = FeatureStore.build(utterances, tmp_path / "two", workers=2)
    assert (tmp_path / "one/features.npy").read_bytes() == (tmp_path / "two/features.npy").read_bytes()
    np.testing.assert_array_equal(one.lengths, two.lengths)


def test_it_is_built_once_and_rebuilt_only_when_something_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utterances = corpus(tmp_path)
    computed: list[str] = []
    original = features.features_of

    def counting(utterance: Utterance) -> np.ndarray:
        computed.append(utterance.id)
        return original(utterance)

    monkeypatch.setattr(features, "features_of", counting)

    def built(*parts: Utterance) -> list[str]:
        computed.clear()
        FeatureStore.build(parts, tmp_path / "store")
        return list(computed)

    assert built(*utterances) == ["0", "1", "2"]
    assert built(*utterances) == []
    assert built(*utterances[:2]) == ["0", "1"]
    assert built(*utterances[1::-1]) == ["1", "0"]
    os.utime(utterances[0].audio, ns=(1, 1))
    assert built(*utterances[1::-1]) == ["1", "0"]


def test_a_crash_leaves_no_store_and_the_next_build_clears_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utterances = corpus(tmp_path)
    old = FeatureStore.build(utterances[:1], tmp_path / "store")

    def crash(utterance: Utterance) -> np.ndarray:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(features, "features_of", crash)
        FeatureStore.build(utterances, tmp_path / "store")
    np.testing.assert_array_equal(FeatureStore(tmp_path / "store")[0], old[0])
    assert len(FeatureStore.build(utterances, tmp_path / "store")) == 3
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["store"]


def test_a_pickled_store_names_its_file_instead_of_holding_it(tmp_path: Path) -> None:
    store = FeatureStore.build(corpus(tmp_path), tmp_path / "store")
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    np.testing.assert_array_equal(pickle.loads(pickled)[1], store[1])


def test_features_are_read_only(tmp_path: Path) -> None:
    store = FeatureStore.build(corpus(tmp_path), tmp_path / "store")
    with pytest.raises(ValueError, match="read-only"):
        store[0][0, 0] = 1.0


def test_faults(tmp_path: Path) -> None:
    utterances = corpus(tmp_path)
    with pytest.raises(DataError, match="no feature store"):
        FeatureStore(tmp_path)
    with pytest.raises(DataError, match="is no feature store; remove it"):
        FeatureStore.build(utterances, tmp_path)
    with pytest.raises(DataError, match="no utterances"):
        FeatureStore.build([], tmp_path / "store")
    with pytest.raises(DataError, match="a: unknown duration"):
        OnTheFlyFeatures([Utterance("a", "/a.wav", "bem", "eng", "x")])
    with pytest.raises(AudioError, match=r"/nowhere\.wav: missing file"):
        FeatureStore.build([Utterance("a", "/nowhere.wav", "bem", "eng", "x", duration=1.0)], tmp_path / "store")
    soundfile.write(utterances[1].audio, noise(3000), 16000)
    with pytest.raises(DataError, match=r"1: .*1\.wav has 3 frames, but .* stands for 11: the audio changed"):
        FeatureStore.build(utterances, tmp_path / "store", workers=1)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("number", "refused"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EOPNOTSUPP, False)])
def test_a_disk_without_room_is_told_of_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, refused: bool
) -> None:
    """It would fill up under the memory map, and the process would end by SIGBUS."""

    def reserve(file: int, offset: int, size: int) -> None:
        assert (offset, size) == (0, os.fstat(file).st_size) and size > 160 * 4
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", reserve)
    if not refused:
        assert len(FeatureStore.build(corpus(tmp_path), tmp_path / "store")) == 3
        return
    monkeypatch.setattr(features, "features_of", None)
    with pytest.raises(DataError, match=rf"no room for features of .* GB \({os.strerror(number)}\); .*cache_features: false"):
        FeatureStore.build(corpus(tmp_path), tmp_path / "store")
    assert not list(tmp_path.rglob("features.npy"))


def test_the_key_is_on_disk(tmp_path: Path) -> None:
    FeatureStore.build(corpus(tmp_path), tmp_path / "store")
    assert set(json.loads((tmp_path / "store" / "key.json").read_text(encoding="utf-8"))) == {"key"}
