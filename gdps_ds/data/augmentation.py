"""Speed perturbation and SpecAugment, functions of (seed, epoch, utterance): the same on every rank and after a resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray
from torch.utils.data import Dataset

from gdps_ds.analysis.sketch import seed_of
from gdps_ds.config import SpecAugmentConfig
from gdps_ds.data.collate import Example, SpeechDataset
from gdps_ds.data.features import HOP, MEL_BINS, STACKED, WINDOW, frames_of_samples, log_mel, waveform_of
from gdps_ds.data.sampling import Draw


@dataclass(frozen=True)
class Augmentation:
    """What training does to an utterance in an epoch.

    Attributes:
        seed: the run's.
        speeds: each as likely; (1.0,) changes nothing. spec_augment: None masks nothing.
    """

    seed: int
    speeds: tuple[float, ...]
    spec_augment: SpecAugmentConfig | None

    def longest(self, lengths: NDArray[np.int32]) -> NDArray[np.int32]:
        """(N,) the most frames that utterances of (N,) ``lengths`` have at any speed.

        Batches are planned by these, so that a frame budget holds whatever an epoch draws; at speed 1 alone they are
        ``lengths`` themselves.
        """
        most_samples = WINDOW + STACKED * HOP * lengths.astype(np.int64) + HOP - 1
        return frames_of_samples(samples_at_speed(most_samples, min(self.speeds))).astype(np.int32)


NONE = Augmentation(seed=0, speeds=(1.0,), spec_augment=None)


class AugmentedSpeech(Dataset[Example]):
    """A training set that sounds different each epoch: indexed by what :class:`UpdateSampler` draws.

    Only speed 1 is read from the features that ``dataset`` holds; other speeds are decoded.
    """

    def __init__(self, dataset: SpeechDataset, augmentation: Augmentation) -> None:
        self._dataset, self._augmentation = dataset, augmentation

    def __getitem__(self, draw: Draw) -> Example:
        (index, epoch), how, dataset = draw, self._augmentation, self._dataset
        if how == NONE:
            return dataset[index]
        utterance = dataset.utterances[index]
        speed = draw_speed(utterance.id, how.speeds, seed=how.seed, epoch=epoch)
        features = dataset.features[index] if speed == 1.0 else log_mel(change_speed(waveform_of(utterance), speed))
        if how.spec_augment is not None:
            features = spec_augment(features, utterance.id, how.spec_augment, seed=how.seed, epoch=epoch)
        return dataset.example(index, features)


def draw_speed(utterance: str, speeds: Sequence[float], *, seed: int, epoch: int) -> float:
    """The speed at which an epoch hears an utterance (by its id), each of ``speeds`` being as likely.

    Three-fold speed perturbation, with speeds of 0.9, 1 and 1.1: Ko et al. 2015, Audio augmentation for speech recognition.
    """
    return speeds[seed_of("speed", seed, epoch, utterance) % len(speeds)]


def samples_at_speed(samples: NDArray[np.int64], speed: float) -> NDArray[np.int64]:
    """The lengths of :func:`change_speed`'s results, which batches are planned by before anything is decoded."""
    return np.rint(samples / speed).astype(np.int64)


def change_speed(waveform: NDArray[np.float32], speed: float) -> NDArray[np.float32]:
    """Play (samples,) at ``speed``, which moves the pitch too: (``samples_at_speed(samples, speed)``,) float32."""
    if speed == 1.0:
        return waveform
    played = soxr.resample(waveform, speed, 1.0)
    wanted = int(samples_at_speed(np.array(len(waveform)), speed))
    return np.pad(played[:wanted], (0, max(wanted - len(played), 0)))


def spec_augment(
    features: NDArray[np.float32], utterance: str, masks: SpecAugmentConfig, *, seed: int, epoch: int
) -> NDArray[np.float32]:
    """Mask stretches of time and of mel bins with zero, each bin's mean after normalisation.

    Park et al. 2019, SpecAugment, without time warping.

    Args:
        features: (frames, 160), two windows of 80 bins a frame; left as it is.

    Returns:
        (frames, 160) float32.
    """
    random = np.random.default_rng(seed_of("specaugment", seed, epoch, utterance))
    windows = features.reshape(-1, MEL_BINS).copy()
    longest = min(masks.time_width, int(masks.time_share * len(windows)))
    for _ in range(masks.time_masks):
        start, stop = _stretch(random, len(windows), longest)
        windows[start:stop] = 0.0
    for _ in range(masks.mel_masks):
        start, stop = _stretch(random, MEL_BINS, masks.mel_width)
        windows[:, start:stop] = 0.0
    return windows.reshape(features.shape)


def _stretch(random: np.random.Generator, size: int, longest: int) -> tuple[int, int]:
    """A stretch of 0 to ``longest`` places out of ``size``, uniform in its length and then in its start."""
    width = int(random.integers(0, min(longest, size) + 1))
    start = int(random.integers(0, size - width + 1))
    return start, start + width
