"""Checkpoints of a training phase: written aside, then renamed, so that what exists is whole.

checkpoints/<phase>/update-000200/    DeepSpeed's files, progress.json, plan.json where the model is split
checkpoints/<phase>/latest            name of the newest
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

from gdps_ds.data.sampling import Position
from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.gatherer import GradientGatherer
from gdps_ds.plan import SharingPlan


@dataclass(frozen=True)
class Progress:
    """How far a phase is: all the state there is beside DeepSpeed's, because order and randomness are arithmetic.

    Attributes:
        update: updates done in the phase.
        position: the next micro-batch of the data.
        world_size, zero_stage: what DeepSpeed's files were written with.
    """

    update: int
    position: Position
    world_size: int
    zero_stage: int


class PhaseCheckpoints:
    """The checkpoints of one phase, of which the newest ``keep`` are kept. Every method is called by every rank."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def latest(self) -> Progress | None:
        """Progress of the newest checkpoint, or None where there is none."""
        tag = self._latest_tag()
        if tag is None:
            return None
        tree = json.loads((self._folder / tag / "progress.json").read_text())
        return Progress(**tree | {"position": Position(**tree["position"])})

    def plan(self) -> SharingPlan | None:
        """The plan that the newest checkpoint's model is split by."""
        path = self._folder / str(self._latest_tag()) / "plan.json"
        return SharingPlan.load(path) if path.is_file() else None

    def save(
        self,
        engine: Engine,
        progress: Progress,
        plan: SharingPlan | None = None,
        gatherer: GradientGatherer | None = None,
    ) -> None:
        """Write a checkpoint of the engine and, where gradients are being mined, of every rank's sums."""
        comm = engine.comm
        tag = f"update-{progress.update:06d}"
        partial = f".{tag}.partial"
        comm.from_main(lambda: shutil.rmtree(self._folder / partial, ignore_errors=True))
        engine.save(self._folder, partial)
        if gatherer is not None:
            tensors = {name: tensor.cpu() for name, tensor in gatherer.state().items()}
            save_file(tensors, self._folder / partial / _mining_file(comm.rank))
        comm.barrier()
        comm.from_main(lambda: self._publish(partial, tag, progress, plan))

    def load(self, engine: Engine) -> Progress:
        """Restore the newest checkpoint into an engine whose model is already split as it was.

        Raises:
            ValueError: it was written with another world size or ZeRO stage.
        """
        progress = self.latest()
        if progress is None:
            raise FileNotFoundError(f"{self._folder}: no checkpoint")
        written, now = (progress.world_size, progress.zero_stage), (engine.comm.world_size, engine.stage)
        if written != now:
            raise ValueError(
                f"{self._folder}: written by {written[0]} rank(s) at ZeRO stage {written[1]}, but this run has {now[0]} "
                f"rank(s) at stage {now[1]}; start it with as many ranks and the same DeepSpeed file, or choose another run.dir"
            )
        engine.load(self._folder, str(self._latest_tag()))
        return progress

    def load_mining(self, gatherer: GradientGatherer, rank: int) -> None:
        """Restore a rank's sums from the newest checkpoint; it has none where mining had not begun."""
        path = self._folder / str(self._latest_tag()) / _mining_file(rank)
        if path.is_file():
            gatherer.load_state(load_file(path))

    def _latest_tag(self) -> str | None:
        path = self._folder / "latest"
        return path.read_text().strip() if path.is_file() else None

    def _publish(self, partial: str, tag: str, progress: Progress, plan: SharingPlan | None) -> None:
        folder = self._folder / partial
        (folder / "progress.json").write_text(json.dumps(asdict(progress)))
        if plan is not None:
            plan.save(folder / "plan.json")
        for path in folder.iterdir():
            _sync(path)
        shutil.rmtree(self._folder / tag, ignore_errors=True)
        folder.rename(self._folder / tag)
        aside = self._folder / ".latest.partial"
        aside.write_text(tag)
        _sync(aside)
        aside.rename(self._folder / "latest")
        _sync(self._folder)
        for old in sorted(self._folder.glob("update-*"))[: -self._keep]:
            shutil.rmtree(old)


def _mining_file(rank: int) -> str:
    return f"mining-rank-{rank:05d}.safetensors"


def _sync(path: Path) -> None:
    """Force a file or folder to disk: the rename must never outlive the data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
