"""Padding in the batches of a corpus whose lengths are distributed as speech translation corpora's are."""

from __future__ import annotations

import numpy as np

from gdps_ds.config import DataConfig
from gdps_ds.data.sampling import MicroBatches

UTTERANCES = 100_000
DEFAULTS = DataConfig.model_fields


def lengths_like_speech(count: int, seed: int = 0) -> np.ndarray:
    """(count,) frames: log-normal around 4.5 s, from 0.3 s to 30 s, as sentences of read and telephone speech are."""
    seconds = np.random.default_rng(seed).lognormal(np.log(4.5), 0.6, count).clip(0.3, 30.0)
    return (seconds * 50).astype(np.int32)


def measure() -> dict[str, float]:
    batches = MicroBatches(
        lengths_like_speech(UTTERANCES),
        np.arange(UTTERANCES) % 4,
        seed=1,
        temperature=1.0,
        max_frames=DEFAULTS["max_frames"].default,
        max_utterances=DEFAULTS["max_utterances"].default,
    )
    return {"padding_waste": batches.padding_waste()}
