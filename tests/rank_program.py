"""What rank programs that tests start with ``tests.launch`` have in common."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gdps_ds.distributed.comm import Communicator


@contextmanager
def started(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.Namespace, Communicator]]:
    """The options of ``parser``, to which ``--out`` is added, and the ranks, which end together."""
    parser.add_argument("--local_rank", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    gc.freeze()  # an engine is collected at its end, which takes a third of the time without all that imports have made
    comm = Communicator.start(options.local_rank)
    yield options, comm
    comm.barrier()
    comm.stop()
