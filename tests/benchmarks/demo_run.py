"""A short run of the demo, its unified phase if nothing else is asked for, for benches that read what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gdps_ds.data.demo import build_demo_corpus
from tests.launch import launch


def corpus_in(folder: Path) -> Path:
    return build_demo_corpus(folder / "corpus", train=150, dev=4, test=4, workers=2)


def metrics_of_run(
    run: Path,
    corpus: Path,
    *,
    updates: int,
    log_every: int,
    program: str = "launchers/train.py",
    ranks: int = 2,
    **others: object,
) -> list[dict[str, Any]]:
    """Run the demo into the folder ``run``; the lines of its metrics. ``others`` are further overrides by key."""
    overrides = {
        "run.dir": run,
        "run.arms": "[uniform]",
        "data.corpora": f"[{{layout: manifest, root: {corpus}}}]",
        "train.unify.updates": updates,
        "train.specialise.updates": 0,
        "train.log_every": log_every,
        "train.dev_every": updates,
        "train.checkpoint_every": updates,
        "decode.max_new_tokens": 1,
        **others,
    }
    arguments = [f"{key}={value}" for key, value in overrides.items()]
    code, output = launch(program, "--config", "ds_configs/experiments/demo.yaml", *arguments, ranks=ranks, timeout=900)
    if code:
        raise RuntimeError(output[-4000:])
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
