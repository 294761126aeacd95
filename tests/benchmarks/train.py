"""Utterances a second beside transformers' own trainer: same DeepSpeed file, model, data and ranks, in turn."""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

from tests.benchmarks.demo_run import corpus_in, metrics_of_run
from tests.launch import launch

RANKS, ROUNDS = 2, 3
UPDATES, LOG_EVERY = 120, 20


def measure() -> dict[str, float]:
    """Medians over rounds; the trainer's batches hold as many utterances as ours do in the mean, grouped by length."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = corpus_in(folder)
        rounds = []
        for number in range(ROUNDS):
            run = folder / f"run-{number}"
            speed, batch, padding = _ours(run, corpus)
            theirs = _theirs(run, round(batch))
            rounds.append((speed / theirs["speed"], padding, theirs["padding"], speed))
    ratio, ours, theirs_padding, speed = (statistics.median(each) for each in zip(*rounds, strict=True))
    return {"vs_hf_trainer": ratio, "padding": ours, "hf_padding": theirs_padding, "utterances_per_second": speed}


def _ours(run: Path, corpus: Path) -> tuple[float, float, float]:
    """(Utterances a second, utterances of a micro-batch, share of padding) after the first log line."""
    others = {"mine.again": "false", "track.progress": "false"}
    lines = metrics_of_run(run, corpus, updates=UPDATES, log_every=LOG_EVERY, **others)
    lines = [line for line in lines if line["phase"] == "unified" and "seen" in line]
    utterances = sum(line["seen"]["utterances"] for line in lines[1:])
    batch = utterances / (UPDATES - LOG_EVERY) / RANKS
    padding = statistics.mean(line["padding"] for line in lines[1:])
    return utterances / (lines[-1]["time"] - lines[0]["time"]), batch, padding


def _theirs(run: Path, batch: int) -> dict[str, float]:
    arguments = ("--run", run, "--batch", batch, "--steps", UPDATES, "--skip", LOG_EVERY)
    code, output = launch("tests/benchmarks/hf_worker.py", *arguments, ranks=RANKS)
    if code:
        raise RuntimeError(output[-4000:])
    found: dict[str, float] = json.loads((run / "hf.json").read_text())
    return found
