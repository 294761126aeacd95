"""``make bench [ONLY=prefix]``: measures, prints a table and writes ``build/bench.json``, a flat map from key to number."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch

from tests.benchmarks import checkpoint, data, features, ffn, init, mining, plan, replace, sampler, traffic, train, watchdog
from tests.launch import ROOT

BENCHES: dict[str, Callable[[], dict[str, float]]] = {
    "checkpoint": checkpoint.measure,
    "data": data.measure,
    "features": features.measure,
    "ffn": ffn.measure,
    "init": init.measure,
    "mining": mining.measure,
    "plan": plan.measure,
    "replace": replace.measure,
    "sampler": sampler.measure,
    "traffic": traffic.measure,
    "train": train.measure,
    "watchdog": watchdog.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="prefix of the keys to measure")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    path = ROOT / "build" / "bench.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for name, measure in BENCHES.items():
        if name.startswith(only) or only.startswith(f"{name}."):
            found = {f"{name}.{key}": value for key, value in measure().items()}
            results |= found
            for key, value in found.items():
                print(f"{key:<40}{value:>14.5g}", flush=True)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dict(sorted(results.items())), indent=2) + "\n")


if __name__ == "__main__":
    main()
