"""Saving our way (synced, with digests) against ``engine.save_checkpoint``: 157 M parameters, 2 ranks, ZeRO-2."""

from __future__ import annotations

from tests.benchmarks.replace import run


def measure() -> dict[str, float]:
    return {"save_ratio": run("zero2", 2, "small", "live")["save_ratio"]}
