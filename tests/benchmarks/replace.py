"""Swapping a block in a live engine against saving, restarting and loading."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.launch import launch

WORKER = "tests/benchmarks/replace_worker.py"


def measure() -> dict[str, float]:
    """At a fifth of SeamlessM4T-Medium on 2 ranks with ZeRO-2; the swap also at full size, on 1 rank with ZeRO-0 (24 GiB)."""
    small = run("zero2", 2, "small", "live", "restart")
    medium = run("zero0", 1, "medium", "live")
    return {
        "vs_restart": (small["ready"] - small["begin"]) / small["seconds"],
        "seconds_small": small["seconds"],
        "seconds": medium["seconds"],
        "peak_gib": medium["peak"] / 2**30,
        "step_peak_gib": medium["step_peak"] / 2**30,
        "parameters_m": medium["parameters"] / 1e6,
    }


def run(stage: str, ranks: int, size: str, *doings: str) -> dict[str, float]:
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for doing in doings:
            arguments = ("--out", folder, "--settings", f"ds_configs/{stage}.json", "--size", size, "--do", doing)
            code, output = launch(WORKER, *arguments, ranks=ranks, timeout=900)
            if code:
                raise RuntimeError(output[-4000:])
            found |= json.loads((Path(folder) / f"{doing}.json").read_text())
    return found
