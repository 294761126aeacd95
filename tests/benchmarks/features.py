"""How fast filter banks are made of ten seconds of audio, next to transformers' extractor, on one core."""

from __future__ import annotations

import numpy as np
from transformers import SeamlessM4TFeatureExtractor

from gdps_ds.data.audio import SAMPLE_RATE
from gdps_ds.data.features import log_mel
from tests.benchmarks.timing import ratio, seconds

SECONDS = 10
REPEATS = 4
"""Calls in a row, as when a corpus is prepared: the first after other work finds a cold cache."""


def measure() -> dict[str, float]:
    waveform = (0.1 * np.random.default_rng(0).standard_normal(SECONDS * SAMPLE_RATE)).astype(np.float32)
    extractor = SeamlessM4TFeatureExtractor()

    def theirs() -> None:
        for _ in range(REPEATS):
            extractor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="np")

    def ours() -> None:
        for _ in range(REPEATS):
            log_mel(waveform)

    return {"vs_hf": ratio(theirs, ours, rounds=15), "audio_seconds_per_second": REPEATS * SECONDS / seconds(ours)}
