from __future__ import annotations

import os
import time
from pathlib import Path

import deepspeed
import pytest
import torch.distributed as dist

from gdps_ds.distributed.comm import Communicator, MeetingError


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    other = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(other.port))
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **options: dist.TCPStore("127.0.0.1", other.port, is_master=True))
    place = rf"127\.0\.0\.1:{other.port} \(MASTER_ADDR, MASTER_PORT\)"
    with pytest.raises(MeetingError, match=rf"ranks cannot meet at {place}: .*EADDRINUSE.*another \(deepspeed --master_port"):
        Communicator.start(0)


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What marks a build of DeepSpeed's extension that is going on."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **options: pytest.fail("DeepSpeed waits for the build"))
    path = tmp_path / "deepspeed_shm_comm" / "lock"
    path.parent.mkdir()
    path.touch()
    return path


def test_a_build_that_was_killed_is_told_of_instead_of_waited_for(lock: Path) -> None:
    os.utime(lock, (time.time() - 400, time.time() - 400))
    with pytest.raises(MeetingError, match=rf"{lock}: the build of a DeepSpeed extension was killed, .* remove that file"):
        Communicator.start(0)


def test_a_build_that_goes_on_is_waited_for(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: lock.unlink())
    with pytest.raises(pytest.fail.Exception, match="DeepSpeed waits"):
        Communicator.start(0)
    assert not lock.exists()
