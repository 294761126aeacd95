"""A corpus of 22 tones and made-up texts, and what tests do to it and to the runs that train with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gdps_ds.config import Config
from gdps_ds.data.manifest import Utterance, read_manifest, write_manifest

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def with_data(config: Config, **fields: object) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update=fields)})


def rewritten(corpus: Path, split: str, change: Callable[[int, Utterance], Utterance]) -> None:
    rows = [change(number, row) for number, row in enumerate(read_manifest(corpus / f"{split}.jsonl"))]
    write_manifest(corpus / f"{split}.jsonl", rows)


def begin(folder: Path) -> None:
    latest = folder / "checkpoints" / "unified" / "latest"
    latest.parent.mkdir(parents=True)
    latest.write_text("update-000001")
