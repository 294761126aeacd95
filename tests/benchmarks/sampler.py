"""What it takes to go on at utterance 9.9 million of 10 million: a new sampler, to its first batch."""

from __future__ import annotations

import resource
import time

import numpy as np

from gdps_ds.data.sampling import MicroBatches, Position
from tests.benchmarks.data import lengths_like_speech

UTTERANCES = 10_000_000


def measure() -> dict[str, float]:
    lengths, languages = lengths_like_speech(UTTERANCES), (np.arange(UTTERANCES) % 4).astype(np.int64)
    settings = {"seed": 1, "temperature": 1.0, "max_frames": 3000, "max_utterances": 64}
    start = time.perf_counter()
    size = len(MicroBatches(lengths, languages, **settings).take(Position(0, 0), 1))
    first = time.perf_counter() - start
    print(size, first, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    return {"resume_seconds": first}
