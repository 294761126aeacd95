"""Speed perturbation and SpecAugment, functions of (seed, epoch, utterance): the same on every rank and after a resume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import soxr
from numpy.typing import NDArray

from gdps_ds.analysis.sketch import seed_of
from gdps_ds.data.features import MEL_BINS

SPEEDS = (0.9, 1.0, 1.1)


def draw_speed(utterance: str, *, seed: int, epoch: int, speeds: Sequence[float] = SPEEDS) -> float:
    """The speed at which an epoch hears an utterance (by its id), each of ``speeds`` being as likely.

    Three-fold speed perturbation: Ko et al. 2015, Audio augmentation for speech recognition.
    """
    return speeds[seed_of("speed", seed, epoch, utterance) % len(speeds)]


def samples_at_speed(samples: int, speed: float) -> int:
    """The length of :func:`change_speed`'s result, which batches are planned by before anything is decoded."""
    return round(samples / speed)


def change_speed(waveform: NDArray[np.float32], speed: float) -> NDArray[np.float32]:
    """Play (samples,) at ``speed``, which moves the pitch too: (``samples_at_speed(samples, speed)``,) float32."""
    if speed == 1.0:
        return waveform
    played = soxr.resample(waveform, speed, 1.0)
    wanted = samples_at_speed(len(waveform), speed)
    return np.pad(played[:wanted], (0, max(wanted - len(played), 0)))


def spec_augment(
    features: NDArray[np.float32],
    utterance: str,
    *,
    seed: int,
    epoch: int,
    time_masks: int = 2,
    time_width: int = 100,
    time_share: float = 0.2,
    mel_masks: int = 2,
    mel_width: int = 27,
) -> NDArray[np.float32]:
    """Mask stretches of time and of mel bins with zero, each bin's mean after normalisation.

    Policy LD of Park et al. 2019, SpecAugment (Table 1), without time warping.

    Args:
        features: (frames, 160), two windows of 80 bins a frame; left as it is.
        time_masks: stretches of up to ``time_width`` windows (10 ms), but each at most ``time_share`` of the utterance.
        mel_masks: stretches of up to ``mel_width`` of the 80 bins.

    Returns:
        (frames, 160) float32.
    """
    random = np.random.default_rng(seed_of("specaugment", seed, epoch, utterance))
    windows = features.reshape(-1, MEL_BINS).copy()
    longest = min(time_width, int(time_share * len(windows)))
    for _ in range(time_masks):
        start, stop = _stretch(random, len(windows), longest)
        windows[start:stop] = 0.0
    for _ in range(mel_masks):
        start, stop = _stretch(random, MEL_BINS, mel_width)
        windows[:, start:stop] = 0.0
    return windows.reshape(features.shape)


def _stretch(random: np.random.Generator, size: int, longest: int) -> tuple[int, int]:
    """A stretch of 0 to ``longest`` places out of ``size``, uniform in its length and then in its start."""
    width = int(random.integers(0, min(longest, size) + 1))
    start = int(random.integers(0, size - width + 1))
    return start, start + width
