from __future__ import annotations

import json
from pathlib import Path

from gdps_ds.config import Config
from gdps_ds.reporting.tracking import Tracker, _flat


def config(folder: Path) -> Config:
    phase = {"updates": 1, "lr": 0.1}
    return Config.model_validate(
        {
            "deepspeed": "zero.json",
            "run": {"dir": str(folder)},
            "data": {"languages": ["aeb"], "corpora": [{"layout": "manifest", "root": "."}]},
            "train": {"unify": phase, "specialise": phase},
        }
    )


def test_metrics_are_lines_that_a_resumed_run_appends_to(tmp_path: Path) -> None:
    for update in (1, 2):
        tracker = Tracker(config(tmp_path), tmp_path, is_main=True)
        tracker.log("unified", update, loss={"aeb": 0.5})
        tracker.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [1, 2]
    assert lines[0]["loss"] == {"aeb": 0.5}
    assert not (tmp_path / "wandb-id").exists()


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    tracker = Tracker(config(tmp_path), tmp_path, is_main=False)
    tracker.log("unified", 1, loss=1.0)
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def test_nested_values_become_panels() -> None:
    assert _flat({"loss": {"aeb": 1, "all": 2}, "lr": 3}) == [("loss/aeb", 1), ("loss/all", 2), ("lr", 3)]
