from __future__ import annotations

import deepspeed
import pytest
import torch.distributed as dist
from deepspeed.comm.torch import build_shm_op
from deepspeed.ops.op_builder import OpBuilder

from gdps_ds.distributed.comm import Communicator, MeetingError


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    other = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(other.port))
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **options: dist.TCPStore("127.0.0.1", other.port, is_master=True))
    place = rf"127\.0\.0\.1:{other.port} \(MASTER_ADDR, MASTER_PORT\)"
    with pytest.raises(MeetingError, match=rf"ranks cannot meet at {place}: .*EADDRINUSE.*another \(deepspeed --master_port"):
        Communicator.start(0)


def test_no_extension_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collectives in shared memory would need a compiler where a run starts, and nothing here calls them."""
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **options: build_shm_op())
    monkeypatch.setattr(OpBuilder, "load", lambda builder: pytest.fail("compiled"))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    assert Communicator.start(0).world_size == 1
