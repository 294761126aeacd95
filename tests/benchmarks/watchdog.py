"""How long a job lives on after one of its ranks has been killed: to the launcher's end, in seconds."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from tests.launch import launch

ROUNDS = 3


def seconds_to_the_end(file: Path) -> float:
    code, output = launch("tests/benchmarks/watchdog_worker.py", file)
    end = time.time()
    assert code != 0 and "rank 1 ended without a word" in output, output
    return end - float(file.read_text())


def measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        return {"seconds": statistics.median(seconds_to_the_end(Path(folder) / str(number)) for number in range(ROUNDS))}
