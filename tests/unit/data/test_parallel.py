from __future__ import annotations

import os
import signal

import pytest

from gdps_ds.data.manifest import DataError
from gdps_ds.data.parallel import map_in_order


def die(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_told_of_with_the_option() -> None:
    with pytest.raises(DataError, match=r"decoding: a worker process was killed, .*; lower data\.workers \(.* --workers"):
        list(map_in_order(die, [1, 2], workers=1, progress=False, label="decoding"))
