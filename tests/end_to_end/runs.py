"""Starts runs of the tiny experiment, and reads what they leave."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.launch import launch

TRAIN = "launchers/train.py"


def run(experiment: Path, folder: Path, *overrides: str, ranks: int = 2) -> str:
    code, output = launch(TRAIN, "--config", experiment, f"run.dir={folder}", *overrides, ranks=ranks)
    assert code == 0, output[-4000:]
    return output


def metrics(folder: Path, phase: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == phase]


def losses(folder: Path) -> dict[tuple[str, int], float]:
    """Training and dev losses by phase and update; a step that was made twice counts as it was the last time."""
    return {
        (f"{phase} {kind}", line["update"]): (line["loss"] if kind == "train" else line["dev"])["all"]
        for phase in ("unified", "gdps", "uniform")
        for line in metrics(folder, phase)
        for kind in ("train", "dev")
        if ("loss" if kind == "train" else "dev") in line
    }


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """The launcher's output up to ``text``; progress bars write no newlines, so it is read character by character."""
    assert process.stdout is not None
    seen = ""
    while text not in seen:
        character = process.stdout.read(1)
        assert character, f"ended before '{text}':\n{seen[-3000:]}"
        seen += character
    return seen
