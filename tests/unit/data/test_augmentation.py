from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.utils.data import DataLoader

from gdps_ds.config import DataConfig, SpecAugmentConfig
from gdps_ds.data.augmentation import (
    NONE,
    Augmentation,
    AugmentedSpeech,
    change_speed,
    draw_speed,
    samples_at_speed,
    spec_augment,
)
from gdps_ds.data.collate import Batch, Collator, SpeechDataset
from gdps_ds.data.features import FeatureStore, frames_of_samples
from gdps_ds.data.manifest import Utterance
from gdps_ds.data.sampling import MicroBatches, Position, UpdateSampler

SPEEDS = (0.9, 1.0, 1.1)
LD = SpecAugmentConfig()
BOTH = Augmentation(7, SPEEDS, LD)
COLLATE = Collator(pad_id=0, start_id=3)


def masked(frames: int, epoch: int = 0, **masks: float) -> np.ndarray:
    """(windows, 80) what SpecAugment masks of an utterance of this length."""
    features = np.ones((frames, 160), dtype=np.float32)
    augmented = spec_augment(features, "a", SpecAugmentConfig.model_validate(masks), seed=1, epoch=epoch)
    assert augmented.shape == features.shape
    assert augmented.dtype == np.float32
    assert (features == 1.0).all()
    return augmented.reshape(-1, 80) == 0.0


def test_speeds_are_drawn_evenly_and_repeat_exactly() -> None:
    drawn = [draw_speed(str(name), SPEEDS, seed=1, epoch=2) for name in range(3000)]
    assert drawn == [draw_speed(str(name), SPEEDS, seed=1, epoch=2) for name in range(3000)]
    counts = Counter(drawn)
    assert set(counts) == set(SPEEDS)
    assert all(900 < count < 1100 for count in counts.values())
    for other in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}):
        assert np.mean([speed == draw_speed(str(name), SPEEDS, **other) for name, speed in enumerate(drawn)]) < 0.4


@pytest.mark.parametrize("speed", [0.9, 1.1, 2.0])
def test_speed_moves_length_and_pitch(speed: float) -> None:
    time = np.arange(16000) / 16000
    played = change_speed(np.sin(2 * np.pi * 440 * time).astype(np.float32), speed)
    assert played.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(played))
    assert np.argmax(spectrum) * 16000 / len(played) == pytest.approx(440 * speed, abs=2)


@given(st.integers(1, 5000), st.sampled_from([0.9, 1.1, 0.95, 1.0]))
def test_lengths_are_known_beforehand(samples: int, speed: float) -> None:
    assert len(change_speed(np.zeros(samples, dtype=np.float32), speed)) == samples_at_speed(np.array(samples), speed)


@given(st.integers(560, 500_000), st.sampled_from([(1.0,), SPEEDS, (0.5, 2.0), (1.1,)]))
def test_no_speed_makes_an_utterance_longer_than_batches_are_planned_for(samples: int, speeds: tuple[float, ...]) -> None:
    longest = int(Augmentation(0, speeds, None).longest(np.array([frames_of_samples(samples)], dtype=np.int32))[0])
    at_speeds = [frames_of_samples(int(samples_at_speed(np.array(samples), speed))) for speed in speeds]
    assert max(at_speeds) <= longest <= max(at_speeds) + 2
    assert longest == at_speeds[0] or speeds != (1.0,)


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
    first, again, *others = (spec_augment(features, name, LD, seed=seed, epoch=epoch) for name, seed, epoch in draws)
    np.testing.assert_array_equal(first, again)
    assert not any(np.array_equal(first, other) for other in others)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> SpeechDataset:
    """Noise of 0.3 s to 1.4 s, its features stored."""
    folder = tmp_path_factory.mktemp("noise")
    utterances = []
    for number in range(12):
        samples = 4800 + 1600 * number
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.1 * np.random.default_rng(number).standard_normal(samples), 16000)
        utterances.append(Utterance(f"u{number}", str(path), "bem", "eng", "x", duration=samples / 16000))
    store = FeatureStore.build(utterances, folder / "store")
    return SpeechDataset(utterances, store, [[7, 2]] * 12, languages=["bem"], folds=2)


def batches(
    dataset: SpeechDataset,
    augmentation: Augmentation,
    *,
    updates: int = 6,
    skip: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> list[Batch]:
    """The micro-batches of some updates as all ranks make them, in their global order."""
    planned = MicroBatches(
        augmentation.longest(dataset.lengths), dataset.language_ids, seed=1, temperature=1.0, max_frames=150, max_utterances=4
    )
    start = planned.advance(Position(), 2 * skip)
    ranks = []
    for rank in range(world_size):
        sampler = UpdateSampler(planned, start, updates=updates - skip, per_update=2, rank=rank, world_size=world_size)
        speech = AugmentedSpeech(dataset, augmentation)
        context = "spawn" if workers else None
        ranks.append(
            list(
                DataLoader(
                    speech, batch_sampler=sampler, collate_fn=COLLATE, num_workers=workers, multiprocessing_context=context
                )
            )
        )
    return [batch for step in zip(*ranks, strict=True) for batch in step]


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.utterances == other.utterances
        assert torch.equal(one.input_features, other.input_features)


def test_without_augmentation_nothing_changes(dataset: SpeechDataset) -> None:
    assert DataConfig.model_fields["speeds"].default == NONE.speeds
    assert DataConfig.model_fields["spec_augment"].default is NONE.spec_augment
    for batch in batches(dataset, NONE):
        rows = [int(name.removeprefix("u")) for name in batch.utterances]
        assert torch.equal(batch.input_features, COLLATE([dataset[row] for row in rows]).input_features)


def test_every_epoch_sounds_different_and_the_budget_holds(dataset: SpeechDataset) -> None:
    heard: dict[str, set[bytes]] = {}
    lengths: dict[str, set[int]] = {}
    for batch in batches(dataset, BOTH, updates=24):
        assert batch.attention_mask.numel() <= 150
        for row, name in enumerate(batch.utterances):
            frames = int(batch.attention_mask[row].sum())
            heard.setdefault(name, set()).add(batch.input_features[row, :frames].numpy().tobytes())
            lengths.setdefault(name, set()).add(frames)
    assert len(heard) == 12
    assert min(map(len, heard.values())) >= 4
    assert max(map(len, lengths.values())) == 3


def test_speed_one_is_read_from_the_store_and_the_others_are_decoded(dataset: SpeechDataset) -> None:
    speech = AugmentedSpeech(dataset, Augmentation(7, (1.1,), None))
    assert len(speech[11, 0].features) == frames_of_samples(round((4800 + 1600 * 11) / 1.1))
    assert np.shares_memory(AugmentedSpeech(dataset, NONE)[11, 0].features, dataset.features[11])


@pytest.mark.parametrize("world_size", [2])
@pytest.mark.parametrize("workers", [0, 1])
def test_ranks_and_processes_hear_the_same(dataset: SpeechDataset, world_size: int, workers: int) -> None:
    expected = batches(dataset, BOTH)
    assert_same(batches(dataset, BOTH, world_size=world_size, workers=workers), expected)


def test_a_resumed_run_hears_the_same(dataset: SpeechDataset) -> None:
    assert_same(batches(dataset, BOTH, skip=4), batches(dataset, BOTH)[8:])


def test_limits_must_hold_at_every_speed(tmp_path: Path) -> None:
    def config(**fields: object) -> DataConfig:
        corpora = [{"layout": "manifest", "root": str(tmp_path)}]
        return DataConfig.model_validate({"languages": ["bem"], "corpora": corpora} | fields)

    assert config(spec_augment={}).spec_augment == LD
    config(max_seconds=27, max_frames=1500, speeds=SPEEDS)
    with pytest.raises(ValidationError, match=r"max_frames \(1500\) cannot .* \(30\.0 s at speed 0\.9 = 1667 frames\)"):
        config(max_frames=1500, speeds=SPEEDS)
    with pytest.raises(ValidationError, match=r"min_seconds \(0\.04\) leaves no frame of an utterance at speed 1\.1"):
        config(min_seconds=0.04, speeds=SPEEDS)
