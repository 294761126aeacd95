"""Rank program: ranks that add numbers up, until rank 1 writes the time into a file and is killed."""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import time
from pathlib import Path

from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.watchdog import Watchdog
from gdps_ds.training.interrupt import StopSignal

STEPS = 50


def main(file: Path, local_rank: int) -> None:
    StopSignal()  # as in a run: the launcher ends the other ranks with SIGTERM
    comm = Communicator.start(local_rank, timeout=60.0)
    watchdog = Watchdog.start(comm, timeout=60.0)
    try:
        with watchdog.watching("adding up"):
            for step in itertools.count():
                watchdog.beat(f"step {step}")
                comm.sum_floats(1.0)
                if step == STEPS and comm.rank == 1:
                    file.write_text(str(time.time()))
                    os.kill(os.getpid(), signal.SIGKILL)
    except Exception as error:
        watchdog.fail(error)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--local_rank", type=int, default=int(os.environ.get("LOCAL_RANK", "0")))
    arguments = parser.parse_args()
    main(arguments.file, arguments.local_rank)
