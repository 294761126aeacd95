"""Rank program: prints the time-outs, in seconds, of all process groups before and after an engine is made."""

from __future__ import annotations

import argparse
import os

import torch

from gdps_ds.distributed.comm import Communicator, process_groups
from gdps_ds.distributed.engine import Engine
from tests.tiny import SITES, tiny_model, tiny_train


def timeouts() -> list[float]:
    backends = [group._get_backend(torch.device("cpu")) for group in process_groups()]
    return sorted(backend.options._timeout.total_seconds() for backend in backends)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank", type=int, default=int(os.environ.get("LOCAL_RANK", "0")))
    comm = Communicator.start(parser.parse_args().local_rank, timeout=321.0)
    print("joined", timeouts())
    comm.limit_waiting(123.0)
    Engine(tiny_model(), comm, {"zero_optimization": {"stage": 2}}, tiny_train(), SITES)
    print("engine", timeouts())
    comm.stop()
