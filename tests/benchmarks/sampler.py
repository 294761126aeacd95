"""What it takes to go on at utterance 9.9 million of 10 million: from the corpus's lengths to the first batch."""

from __future__ import annotations

import resource

import numpy as np

from gdps_ds.data.sampling import CHUNK, MicroBatches, Position
from tests.benchmarks.data import lengths_like_speech
from tests.benchmarks.timing import seconds

UTTERANCES, REACHED = 10_000_000, 9_900_000


def measure() -> dict[str, float]:
    lengths, languages = lengths_like_speech(UTTERANCES), (np.arange(UTTERANCES) % 4).astype(np.int64)
    before = _peak()

    def resume() -> None:
        batches = MicroBatches(lengths, languages, seed=1, temperature=1.0, max_frames=3000, max_utterances=64)
        batches.take(Position(epoch=0, chunk=REACHED // CHUNK, batch=0), 1)

    return {"resume_seconds": min(seconds(resume) for _ in range(3)), "resume_peak_mib": _peak() - before}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
