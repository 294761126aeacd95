from __future__ import annotations

import os
import signal

import pytest

from gdps_ds.data.manifest import DataError
from gdps_ds.data.parallel import map_in_order


def signalled(item: int) -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    return item


def die(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_told_of_with_the_option() -> None:
    with pytest.raises(DataError, match=r"decoding: a worker process was killed, .*; lower data\.workers \(.* --workers"):
        list(map_in_order(die, [1, 2], workers=1, progress=False, label="decoding"))


def test_workers_outlive_a_signal_that_the_process_outlives() -> None:
    """A scheduler signals all processes of a job; a rank then ends in order, and no worker may look like a fault before."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        assert list(map_in_order(signalled, [1, 2], workers=1, progress=False, label="decoding")) == [1, 2]
    finally:
        signal.signal(signal.SIGTERM, before)
