"""Batches: padding where lengths are distributed as speech translation corpora's are, and how long the demo waits for them."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np

from gdps_ds.config import DataConfig
from gdps_ds.data.sampling import MicroBatches
from tests.benchmarks.demo_run import corpus_in, metrics_of_run

UTTERANCES = 100_000
DEFAULTS = DataConfig.model_fields
UPDATES, LOG_EVERY = 100, 20


def lengths_like_speech(count: int, seed: int = 0) -> np.ndarray:
    """(count,) frames: log-normal around 4.5 s, from 0.3 s to 30 s, as sentences of read and telephone speech are."""
    seconds = np.random.default_rng(seed).lognormal(np.log(4.5), 0.6, count).clip(0.3, 30.0)
    return (seconds * 50).astype(np.int32)


def measure() -> dict[str, float]:
    return {"padding_waste": _padding_waste(), "starvation": _starvation()}


def _padding_waste() -> float:
    batches = MicroBatches(
        lengths_like_speech(UTTERANCES),
        np.arange(UTTERANCES) % 4,
        seed=1,
        temperature=1.0,
        max_frames=DEFAULTS["max_frames"].default,
        max_utterances=DEFAULTS["max_utterances"].default,
    )
    return batches.padding_waste()


def _starvation() -> float:
    """Share of the time that the demo waits for data on 2 ranks, after its first updates."""
    with tempfile.TemporaryDirectory() as folder:
        lines = metrics_of_run(Path(folder) / "run", corpus_in(Path(folder)), updates=UPDATES, log_every=LOG_EVERY)
    shares = [line["data_wait"] for line in lines if "data_wait" in line and line["update"] > LOG_EVERY]
    return statistics.mean(shares)
