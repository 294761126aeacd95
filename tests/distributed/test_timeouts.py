from __future__ import annotations

import re

import pytest

from tests.launch import launch


@pytest.mark.launcher
def test_every_process_group_waits_as_long_as_is_set() -> None:
    """Also the one that DeepSpeed makes itself, which has torch's 30 minutes otherwise."""
    code, output = launch("tests/distributed/timeout_worker.py", ranks=1)
    assert code == 0, output
    assert "joined [321.0]" in output
    found = re.search(r"engine \[(.*)\]", output)
    assert found is not None
    times = [float(text) for text in found[1].split(", ")]
    assert len(times) > 1 and set(times) == {123.0}
