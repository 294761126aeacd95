"""Batches: padding where lengths are distributed as speech translation corpora's are, and how long the demo waits for them."""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

import numpy as np

from gdps_ds.config import DataConfig
from gdps_ds.data.demo import build_demo_corpus
from gdps_ds.data.sampling import MicroBatches
from tests.launch import launch

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
        corpus = build_demo_corpus(Path(folder) / "corpus", train=150, dev=4, test=4, workers=2)
        overrides = {
            "run.dir": f"{folder}/run",
            "run.arms": "[uniform]",
            "data.corpora": f"[{{layout: manifest, root: {corpus}}}]",
            "train.unify.updates": UPDATES,
            "train.specialise.updates": 0,
            "train.log_every": LOG_EVERY,
            "train.dev_every": UPDATES,
            "train.checkpoint_every": UPDATES,
            "decode.max_new_tokens": 1,
        }
        arguments = [f"{key}={value}" for key, value in overrides.items()]
        code, output = launch("launchers/train.py", "--config", "ds_configs/experiments/demo.yaml", *arguments)
        if code:
            raise RuntimeError(output[-4000:])
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    shares = [line["data_wait"] for line in lines if "data_wait" in line and line["update"] > LOG_EVERY]
    return statistics.mean(shares)
