"""Rank program: ``launchers/train.py`` that kills itself at a given call of a given function.

--die MODULE:FUNCTION:CALL:RANK   SIGKILL as the CALL-th call begins, on one rank, or on all (-1)
--signal ...                      the same with SIGTERM, as a scheduler warns
--fail ...                        the same with an exception
--hang ...                        the same, and it never returns
--full ...                        the same with what a full disk raises
--pause ...                       the same, and it waits as long as the file of --pause-file is there, which it makes
--poison UTTERANCE                whenever training meets this utterance, its loss is not a number
"""

from __future__ import annotations

import errno
import math
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gdps_ds.data.collate import Batch
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


def warn() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail() -> None:
    raise MemoryError("no room")


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def hang() -> None:
    threading.Event().wait()


def pause(path: Path) -> None:
    path.touch()
    while path.exists():
        time.sleep(0.02)


def poison(utterance: str) -> None:
    """Like an audio file that decodes to nonsense: found again at every epoch, rank and start."""
    from gdps_ds.training import trainer

    losses_of = trainer.utterance_losses

    def poisoned(logits: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
        hit = torch.tensor([name == utterance and logits.requires_grad for name in batch.utterances])
        factors = torch.where(hit, math.nan, 1.0).to(logits.device)
        return losses_of(logits, batch, label_smoothing) * factors

    trainer.utterance_losses = poisoned


def _taken(option: str) -> str | None:
    """The value of an option, which is taken out of the command line."""
    if option not in sys.argv:
        return None
    position = sys.argv.index(option)
    value = sys.argv[position + 1]
    del sys.argv[position : position + 2]
    return value


if __name__ == "__main__":
    file = Path(_taken("--pause-file") or "")
    actions = {"--die": die, "--signal": warn, "--fail": fail, "--hang": hang, "--full": full, "--pause": partial(pause, file)}
    for option, act in actions.items():
        if spec := _taken(option):
            intervene(spec, act)
    if utterance := _taken("--poison"):
        poison(utterance)
    runpy.run_path(str(ROOT / "launchers" / "train.py"), run_name="__main__")
