from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdps_ds.data.augmentation import SPEEDS, change_speed, draw_speed, samples_at_speed, spec_augment


def masked(frames: int, **options: float) -> np.ndarray:
    """(windows, 80) what SpecAugment masks of an utterance of this length."""
    features = np.ones((frames, 160), dtype=np.float32)
    augmented = spec_augment(features, "a", **{"seed": 1, "epoch": 0} | options)  # type: ignore[arg-type]
    assert augmented.shape == features.shape
    assert augmented.dtype == np.float32
    assert (features == 1.0).all()
    return augmented.reshape(-1, 80) == 0.0


def test_speeds_are_drawn_evenly_and_repeat_exactly() -> None:
    drawn = [draw_speed(str(name), seed=1, epoch=2) for name in range(3000)]
    assert drawn == [draw_speed(str(name), seed=1, epoch=2) for name in range(3000)]
    counts = Counter(drawn)
    assert set(counts) == set(SPEEDS)
    assert all(900 < count < 1100 for count in counts.values())
    for other in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}):
        assert np.mean([speed == draw_speed(str(name), **other) for name, speed in enumerate(drawn)]) < 0.4


@pytest.mark.parametrize("speed", [0.9, 1.1, 2.0])
def test_speed_moves_length_and_pitch(speed: float) -> None:
    time = np.arange(16000) / 16000
    played = change_speed(np.sin(2 * np.pi * 440 * time).astype(np.float32), speed)
    assert played.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(played))
    assert np.argmax(spectrum) * 16000 / len(played) == pytest.approx(440 * speed, abs=2)


@given(st.integers(1, 5000), st.sampled_from([0.9, 1.1, 0.95, 1.0]))
def test_lengths_are_known_beforehand(samples: int, speed: float) -> None:
    assert len(change_speed(np.zeros(samples, dtype=np.float32), speed)) == samples_at_speed(samples, speed)


@given(st.integers(1, 400), st.integers(0, 50), st.integers(0, 3), st.integers(0, 3))
def test_masks_are_few_narrow_and_across(frames: int, epoch: int, time_masks: int, mel_masks: int) -> None:
    mask = masked(frames, epoch=epoch, time_masks=time_masks, mel_masks=mel_masks)
    windows, bins = mask.all(axis=1), mask.all(axis=0)
    np.testing.assert_array_equal(mask, windows[:, None] | bins[None, :])
    assert windows.sum() <= time_masks * min(100, int(0.2 * 2 * frames))
    assert bins.sum() <= mel_masks * 27


def test_masks_follow_seed_epoch_and_utterance() -> None:
    features = np.ones((200, 160), dtype=np.float32)
    draws = [("a", 1, 0), ("a", 1, 0), ("b", 1, 0), ("a", 2, 0), ("a", 1, 1)]
    first, again, *others = (spec_augment(features, name, seed=seed, epoch=epoch) for name, seed, epoch in draws)
    np.testing.assert_array_equal(first, again)
    assert not any(np.array_equal(first, other) for other in others)
