"""What it takes to go on at utterance 9.9 million of 10 million, and what a million of them cost a rank in memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gdps_ds.data.features import OnTheFlyFeatures
from gdps_ds.data.manifest import Utterance
from gdps_ds.data.sampling import CHUNK, MicroBatches, Position
from gdps_ds.data.table import UtteranceTable, write_utterances
from tests.benchmarks.data import lengths_like_speech
from tests.benchmarks.timing import seconds
from tests.launch import ROOT

UTTERANCES, REACHED = 10_000_000, 9_900_000
MILLION = 1_000_000
LANGUAGES = ("aeb", "bem", "est", "gle")


def measure() -> dict[str, float]:
    lengths, languages = lengths_like_speech(UTTERANCES), (np.arange(UTTERANCES) % 4).astype(np.int64)
    before = _memory("VmHWM")
    resumed = min(seconds(lambda: _resume(lengths, languages)) for _ in range(3))
    return {"resume_seconds": resumed, "resume_peak_mib": _memory("VmHWM") - before} | _manifest()


def _resume(lengths: np.ndarray, languages: np.ndarray) -> None:
    batches = MicroBatches(lengths, languages, seed=1, temperature=1.0, max_frames=3000, max_utterances=64)
    batches.take(Position(epoch=0, chunk=REACHED // CHUNK, batch=0), 1)


def _manifest() -> dict[str, float]:
    """A million utterances in their Arrow file: time to write it, and memory to use it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.arrow"
        written = seconds(lambda: write_utterances(path, _utterances(), "benchmark"))
        # A process of its own, so that nothing else is in its memory.
        command = [sys.executable, "-m", "tests.benchmarks.sampler", str(path)]
        held = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {"manifest_write_seconds": written, "manifest_mib": float(held)}


def _utterances() -> Iterator[Utterance]:
    for number, frames in enumerate(lengths_like_speech(MILLION)):
        yield Utterance(
            id=f"corpus-train-recording-{number:08d}",
            audio=f"/data/corpora/corpus/train/wav/recording-{number:08d}.wav",
            source_lang=LANGUAGES[number % 4],
            target_lang="eng",
            target_text=f"This is the translation of utterance {number}, which is as long as most of them are.",
            source_text=f"And this is what was said in utterance {number}.",
            duration=float(frames) / 50,
        )


def _use(path: Path) -> float:
    """Mebibytes that a rank holds once it has planned batches and seen the utterances of a hundred of them.

    Pages of the file, which the system drops and reads again as it likes, are not counted.
    """
    before = _memory("RssAnon")
    utterances = UtteranceTable.open(path)
    lengths, languages = OnTheFlyFeatures(utterances).lengths, utterances.language_ids(LANGUAGES)
    batches = MicroBatches(lengths, languages, seed=1, temperature=1.0, max_frames=3000, max_utterances=64)
    for batch in batches.take(Position(chunk=MILLION // CHUNK - 1), 100):
        assert all(utterances[int(index)].id for index in batch)
    return _memory("RssAnon") - before


def _memory(kind: str) -> float:
    """This process's memory in mebibytes: ``VmHWM`` is the most so far, ``RssAnon`` what is its own now."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{kind}:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    print(_use(Path(sys.argv[1])))
