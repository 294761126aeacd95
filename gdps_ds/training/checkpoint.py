"""Checkpoints of a training phase: written aside, synced, then renamed, so that what exists is whole.

checkpoints/<phase>/update-000200/    checkpoint.json, plan.json, the engine's state, the mining sums of all ranks
checkpoints/<phase>/latest            name of the newest
checkpoints/<phase>/best              name of the one that the dev set liked best (train.select), where that one was saved
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file

from gdps_ds.data.sampling import Position
from gdps_ds.distributed.comm import Communicator, RankError, RankZeroError
from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.gatherer import GradientGatherer
from gdps_ds.distributed.saved_state import SavedState, save_state
from gdps_ds.files import atomic_write, digest_of, permit, sync
from gdps_ds.plan import SharingPlan

FORMAT = 2
MANIFEST, PLAN, LATEST, BEST = "checkpoint.json", "plan.json", "latest", "best"
MINING = "mining.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint that is not what was written; the message names the files and what differs."""


@dataclass(frozen=True)
class Best:
    """The best evaluation of a phase so far: its update, and its dev loss in nats a token or its dev BLEU."""

    update: int
    value: float


@dataclass(frozen=True)
class Progress:
    """How far a phase is: all the state there is beside the engine's, because order and randomness are arithmetic.

    Attributes:
        update: updates done in the phase.
        position: the next micro-batch of the data.
        best: the best evaluation so far, if there was one.
        pending: the dev set is still to be evaluated at this update; checkpoints are written first.
    """

    update: int
    position: Position
    best: Best | None = None
    pending: bool = False

    @property
    def is_best(self) -> bool:
        return self.best is not None and self.best.update == self.update


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        plan: what the model's blocks are split by.
        files: name -> size in bytes and SHA-256 in hex of everything else that belongs to it.
    """

    folder: Path
    progress: Progress
    plan: SharingPlan
    files: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """The manifest of the checkpoint in ``folder``.

        Raises:
            CheckpointError: it is not one, or of another format.
        """
        try:
            tree = json.loads((folder / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} is no checkpoint: {MANIFEST}: {error}") from None
        found = tree.get("format") if isinstance(tree, dict) else None
        if found != FORMAT:
            raise CheckpointError(f"{folder}: checkpoint format {found}, this version reads {FORMAT}")
        progress, best = tree["progress"], tree["progress"]["best"]
        progress = Progress(
            progress["update"],
            Position(**progress["position"]),
            Best(**best) if best else None,
            progress.get("pending", False),
        )
        return cls(folder, progress, SharingPlan.load(folder / PLAN), tree["files"])

    def is_removed(self) -> bool:
        """Whether it was pruned since it was read: its manifest goes first, see :func:`_remove`."""
        return not (self.folder / MANIFEST).is_file()

    def state(self) -> SavedState:
        return SavedState(self.folder)

    def verify(self, comm: Communicator) -> None:
        """Compare every file with its digest, shared out among ranks. Collective.

        Raises:
            CheckpointError: on every rank, naming the damaged files and what to do.
        """
        mine = sorted(self.files)[comm.rank :: comm.world_size]
        faults = [fault for faults in comm.gather(list(self.faults(mine))) for fault in faults]
        if faults:
            others = [tag for tag in saved_tags(self.folder.parent) if tag != self.folder.name]
            advice = f"; to go on from {others[-1]}, write that name into {self.folder.parent / LATEST}" if others else ""
            raise CheckpointError(f"{self.folder} is damaged: {'; '.join(faults)}{advice}")

    def faults(self, names: Iterable[str]) -> Iterator[str]:
        """What is wrong with these files, one line each."""
        for name in names:
            path, wanted = self.folder / name, self.files[name]
            if not path.is_file():
                yield f"{name} is missing"
            elif path.stat().st_size != wanted["bytes"]:
                yield f"{name} has {path.stat().st_size} bytes instead of {wanted['bytes']}"
            elif digest_of(path) != wanted["sha256"]:
                yield f"{name} has other content than was written"


def tag_of(update: int) -> str:
    """Name of the folder of the checkpoint after ``update``."""
    return f"update-{update:06d}"


def saved_tags(folder: Path) -> list[str]:
    """Names of the checkpoints in a phase's ``folder``, the newest last; a folder without a manifest is none."""
    found = [path.parent.name for path in folder.glob(f"update-*/{MANIFEST}")]
    # By number: names are in that order up to update 999999 alone.
    return sorted((tag for tag in found if _update_of(tag) is not None), key=lambda tag: _update_of(tag) or 0)


def _update_of(tag: str) -> int | None:
    number = tag.removeprefix("update-")
    return int(number) if number.isdecimal() else None


def pointer_of(folder: Path, use: Literal["last", "best"]) -> str:
    """The pointer in a phase's ``folder`` that ``run.use`` means: to the newest where no evaluation has found a best."""
    return BEST if use == "best" and (folder / BEST).is_file() else LATEST


class PhaseCheckpoints:
    """The checkpoints of one phase: the newest ``keep``, and the best.

    Which there are is rank 0's to say: a node may go on seeing a shared folder for half a minute as it was before.
    """

    def __init__(self, folder: Path, keep: int, comm: Communicator) -> None:
        self._folder = folder
        self._keep = keep
        self._comm = comm

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint, or None where there is none. Collective."""
        return self._comm.from_main(lambda: self._pointed_to_by(LATEST))

    def used(self, use: Literal["last", "best"]) -> Checkpoint | None:
        """The one that ``run.use`` means, or None where there is none. Collective."""
        return self._comm.from_main(lambda: self._pointed_to_by(pointer_of(self._folder, use)))

    def save(self, engine: Engine, progress: Progress, plan: SharingPlan, gatherer: GradientGatherer | None = None) -> None:
        """Write a checkpoint of the engine and, where gradients are being mined, of their sums. Collective.

        The sums of all ranks are added up for that, and go on on rank 0: see :meth:`GradientGatherer.collapse`, also for what
        it sends.

        Raises:
            CheckpointError: on every rank; what was saved before is untouched.
        """
        comm, tag = self._comm, tag_of(progress.update)
        partial = self._folder / f".{tag}.partial"
        try:
            comm.from_main(lambda: self._begin(partial))
            if gatherer is not None:
                gatherer.collapse(comm)
            files = comm.everywhere(lambda: _write(engine, partial, gatherer), "writing")
            # Every rank syncs and digests what it has written, at the same time as the others.
            parts = comm.gather(comm.everywhere(lambda: _described(files), "writing"))
            described = {name: entry for part in parts for name, entry in part.items()}
            comm.from_main(lambda: self._publish(partial, tag, progress, plan, described))
        except (RankZeroError, RankError) as error:
            comm.from_main(lambda: shutil.rmtree(partial, ignore_errors=True))
            raise CheckpointError(f"{self._folder / tag} could not be saved: {error}; {self._left()}") from error

    def record(self, progress: Progress) -> None:
        """Write into the newest checkpoint, which was saved at this update, what its evaluation has found. Collective."""
        self._comm.from_main(lambda: self._record(progress))

    def _record(self, progress: Progress) -> None:
        newest = self._pointed_to_by(LATEST)
        assert newest is not None and newest.progress.update == progress.update, "saved before it was evaluated"
        self._point_to_best(progress.best)  # first: once the manifest has it, nothing looks for the best again
        with atomic_write(newest.folder / MANIFEST) as file:
            file.write(_manifest(progress, newest.files))
        sync(newest.folder)
        self._prune(progress.update)

    def _left(self) -> str:
        newest = self._folder / LATEST
        if not newest.is_file():
            return "there is none before it"
        return f"{newest.read_text().strip()} before it is whole: make room and start again to go on from there"

    def load_mining(self, gatherer: Callable[[], GradientGatherer]) -> None:
        """Restore the sums from the newest checkpoint, on one rank, whatever their number; others begin at zero.

        ``gatherer`` is asked for only where there are sums: there are none where mining had not begun.

        Collective.

        Raises:
            CheckpointError: on every rank; the sums are those of each rank, as versions before this one saved them.
        """
        newest = self.latest()
        if newest is None:
            return
        if any(name.startswith("mining-rank-") for name in newest.files):
            raise CheckpointError(f"{newest.folder} has mining sums of another version; go on with that one, or start anew")
        if MINING in newest.files and self._comm.is_main:
            gatherer().load_state(load_file(newest.folder / MINING))

    def _pointed_to_by(self, pointer: str) -> Checkpoint | None:
        path = self._folder / pointer
        if not path.is_file():
            return None
        tag, tags = path.read_text().strip(), saved_tags(self._folder)
        if tag not in tags:
            advice = f"; to go on from {tags[-1]}, write that name into {path}" if tags else ""
            raise CheckpointError(f"{path} names {tag}, which is not there; there are {', '.join(tags) or 'none'}{advice}")
        return Checkpoint.read(self._folder / tag)

    def _publish(
        self, partial: Path, tag: str, progress: Progress, plan: SharingPlan, files: Mapping[str, Mapping[str, Any]]
    ) -> None:
        plan.save(partial / PLAN)
        (partial / MANIFEST).write_text(_manifest(progress, files))
        for path in (partial / PLAN, partial / MANIFEST, partial):
            sync(path)
        if (self._folder / tag).exists():  # of a time before ``latest`` was set back
            _remove(self._folder / tag)
        partial.rename(self._folder / tag)
        self._point(LATEST, tag)
        self._point_to_best(progress.best)
        self._prune(progress.update)

    def _begin(self, partial: Path) -> None:
        """Make room: what a killed save has left is no checkpoint, and may be as large as one."""
        for left in self._folder.glob(".update-*.partial"):
            shutil.rmtree(left)
        partial.mkdir(parents=True)

    def _point_to_best(self, best: Best | None) -> None:
        """A best update that was not saved has no checkpoint, and the best one before it is not the best any more."""
        if best is not None and (self._folder / tag_of(best.update) / MANIFEST).is_file():
            self._point(BEST, tag_of(best.update))
        else:
            (self._folder / BEST).unlink(missing_ok=True)

    def _point(self, pointer: str, tag: str) -> None:
        with atomic_write(self._folder / pointer) as file:
            file.write(tag)
        sync(self._folder)

    def _prune(self, update: int) -> None:
        """Keep the newest up to ``update`` and the best; later ones are of a time before ``latest`` was set back."""
        best = self._folder / BEST
        kept = {best.read_text().strip()} if best.is_file() else set()
        kept.update([tag for tag in saved_tags(self._folder) if (_update_of(tag) or 0) <= update][-self._keep :])
        for old in self._folder.glob("update-*"):
            if old.name not in kept and _update_of(old.name) is not None:
                _remove(old)


def _remove(folder: Path) -> None:
    """Remove a checkpoint, its manifest first: what a kill leaves of it is no checkpoint, and goes with the next pruning."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _manifest(progress: Progress, files: Mapping[str, Mapping[str, Any]]) -> str:
    return json.dumps({"format": FORMAT, "progress": asdict(progress), "files": files}, indent=1)


def _write(engine: Engine, folder: Path, gatherer: GradientGatherer | None) -> list[Path]:
    """The engine's state and, where gradients are mined, their sum, which rank 0 holds; the files of this rank. Collective."""
    files = save_state(engine, folder)
    if gatherer is not None and engine.comm.is_main:
        path = folder / MINING
        save_file({name: tensor.cpu() for name, tensor in gatherer.state().items()}, path)
        files.append(path)
    return files


def _described(files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Force files to disk (the rename must never outlive the data); name -> size and digest."""
    for path in files:
        permit(path)
        sync(path)
    return {path.name: {"bytes": path.stat().st_size, "sha256": digest_of(path)} for path in files}
