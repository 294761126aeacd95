"""Rank program: ``launchers/train.py`` that kills itself at a given call of a given function.

--die MODULE:FUNCTION:CALL:RANK   SIGKILL as the CALL-th call begins, on one rank, or on all (-1)
--fail ...                        the same with an exception
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from tests.launch import ROOT


def intervene(spec: str, act: Callable[[], None]) -> None:
    """Replace a function by one that acts at the given call."""
    module, path, call, rank = spec.split(":")
    if int(rank) not in (-1, int(os.environ["RANK"])):
        return
    *owners, name = path.split(".")
    owner: Any = import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    original, calls = getattr(owner, name), 0

    def wrapper(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(call):
            act()
        return original(*arguments, **options)

    setattr(owner, name, wrapper)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise MemoryError("no room")


if __name__ == "__main__":
    position = next(index for index, text in enumerate(sys.argv) if text in ("--die", "--fail"))
    action, spec = sys.argv[position : position + 2]
    del sys.argv[position : position + 2]
    intervene(spec, die if action == "--die" else fail)
    runpy.run_path(str(ROOT / "launchers" / "train.py"), run_name="__main__")
