"""Weights and Adam's moments on disk, in a form that any ZeRO stage and any number of ranks can read.

DeepSpeed's own checkpoints are pickles that only the same stage and world size can load (its universal format has no stage 0
and no way between stages 2 and 3). Here every rank writes what it owns as slices of flattened tensors, and a reader finds
any slice of any parameter:

    shard-00000.safetensors   one a rank: fp32 weights and moments of trainable parameters, "<parameter>|<key>", 1-D
    fixed.safetensors         by rank 0: frozen parameters and buffers, whole
    engine.json               by rank 0: counters, loss scale, Adam's step
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.shards import MASTER, MOMENTS, Fragment, begin_moments, gathered

FIXED, RUNTIME = "fixed.safetensors", "engine.json"


class ForeignStateError(ValueError):
    """Saved weights that are not those of this model; the message names what differs."""


def shard_name(rank: int) -> str:
    return f"shard-{rank:05d}.safetensors"


def save_state(engine: Engine, folder: Path) -> list[Path]:
    """Write the engine's state into ``folder``; gives the files that this rank has written. Collective."""
    comm, state = engine.comm, engine.state()
    keys, tensors, slices = state.keys, {}, {}
    for fragment in state.fragments:
        start, numel = _share(fragment, state.stage, comm)
        if numel:
            slices[fragment.name] = {"shape": fragment.shape, "start": start}
            for key in keys:
                tensors[f"{fragment.name}|{key}"] = state.local(fragment.name, key)[start - fragment.start :][:numel]
    shard = folder / shard_name(comm.rank)
    # All that is collective comes first: a rank that then cannot write keeps no other waiting.
    fixed = _fixed_tensors(engine.module, keep=comm.is_main)
    save_file(tensors, shard, metadata={"slices": json.dumps(slices)})
    if not comm.is_main:
        return [shard]
    save_file(fixed, folder / FIXED)
    runtime = engine.runtime_state() | {"step": state.step if state.has_moments else None}
    (folder / RUNTIME).write_text(json.dumps(runtime))
    return [shard, folder / FIXED, folder / RUNTIME]


def _share(fragment: Fragment, stage: int, comm: Communicator) -> tuple[int, int]:
    """(start, length) of what this rank writes of a parameter: what it owns; at stage 0, where all own all, an equal part."""
    if stage > 0:
        return fragment.start, fragment.numel
    part = math.ceil(fragment.numel / comm.world_size)
    start = min(comm.rank * part, fragment.numel)
    return start, min(part, fragment.numel - start)


def _fixed_tensors(module: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Frozen parameters and persistent buffers, copied to the host one at a time where ``keep``. Collective at stage 3."""
    tensors = {name: buffer.detach().cpu() for name, buffer in _persistent_buffers(module)}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            with gathered([parameter]):
                if keep:
                    tensors[name] = parameter.detach().cpu().clone()
    return tensors


def _persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    kept = module.state_dict().keys()
    return ((name, buffer) for name, buffer in module.named_buffers() if name in kept)


@dataclass(frozen=True)
class _Slice:
    """``numel`` values of a flattened parameter from ``start``, in the open shard ``file``."""

    file: Any
    start: int
    numel: int


class SavedState:
    """What :func:`save_state` wrote into ``folder``; a context in which its files are open (mapped, not read).

    Attributes:
        shapes: trainable parameter -> its shape.
        fixed: frozen parameters and buffers by name.
        runtime: counters, loss scale, and Adam's ``step`` (None before the first one).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.fixed = load_file(folder / FIXED)
        self.runtime = json.loads((folder / RUNTIME).read_text())
        self._slices: dict[str, list[_Slice]] = {}
        self._files = ExitStack()
        for path in sorted(folder.glob("shard-*.safetensors")):
            file = self._files.enter_context(safe_open(path, framework="pt"))
            for name, where in json.loads(file.metadata()["slices"]).items():
                numel = file.get_slice(f"{name}|{MASTER}").get_shape()[0]
                self.shapes[name] = tuple(where["shape"])
                self._slices.setdefault(name, []).append(_Slice(file, where["start"], numel))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._files.close()

    @property
    def keys(self) -> tuple[str, ...]:
        """:data:`MASTER`, and :data:`MOMENTS` if the optimiser had taken a step."""
        return (MASTER,) if self.runtime["step"] is None else (MASTER, *MOMENTS)

    def read(self, name: str, key: str, start: int, numel: int) -> Tensor:
        """``numel`` values of a flattened parameter from ``start``, on the host.

        Raises:
            ForeignStateError: they are not all there.
        """
        values, found = torch.empty(numel), 0
        for piece in self._slices[name]:
            first, last = max(start, piece.start), min(start + numel, piece.start + piece.numel)
            if first < last:
                part = piece.file.get_slice(f"{name}|{key}")[first - piece.start : last - piece.start]
                values[first - start : last - start] = part
                found += last - first
        if found != numel:
            raise ForeignStateError(f"{self.folder} holds {found} of {numel} values of '{name}'; a shard file is missing")
        return values

    def full(self, name: str, key: str = MASTER) -> Tensor:
        """A whole tensor on the host: a trainable parameter's, or a frozen one's or buffer's where ``key`` is the weights."""
        if name in self.fixed:
            return self.fixed[name]
        return self.read(name, key, 0, math.prod(self.shapes[name])).view(self.shapes[name])

    def check(self, module: nn.Module) -> None:
        """Compare names and shapes with a model's, partitioned or not.

        Raises:
            ForeignStateError: listing what differs.
        """
        saved = self.shapes | {name: tuple(tensor.shape) for name, tensor in self.fixed.items()}
        wanted = {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in module.named_parameters()}
        wanted |= {name: tuple(buffer.shape) for name, buffer in _persistent_buffers(module)}
        faults = [f"{name} is missing" for name in wanted.keys() - saved.keys()]
        faults += [f"{name} is not in the model" for name in saved.keys() - wanted.keys()]
        faults += [
            f"{name} has shape {saved[name]}, the model's is {wanted[name]}"
            for name in saved.keys() & wanted.keys()
            if saved[name] != wanted[name]
        ]
        if faults:
            listing = "; ".join(sorted(faults)[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
            raise ForeignStateError(f"{self.folder} was written by another model: {listing}")


@torch.no_grad()
def load_weights(module: nn.Module, saved: SavedState) -> None:
    """Give a model, partitioned or not, the saved weights and buffers; one whole tensor at a time. Collective at stage 3.

    Raises:
        ForeignStateError: the weights are another model's; nothing has been changed.
    """
    saved.check(module)
    for name, buffer in _persistent_buffers(module):
        buffer.copy_(saved.fixed[name])
    for name, parameter in module.named_parameters():
        with gathered([parameter], changed=True):
            parameter.data.copy_(saved.full(name))


@torch.no_grad()
def restore(engine: Engine, saved: SavedState) -> None:
    """Give an engine, started around a model of these weights, the exact fp32 weights, moments and counters. Collective."""
    state = engine.state()
    for flat in state.flats:
        for key in saved.keys:
            target = flat.writable(key)
            for fragment in flat.fragments:
                values = saved.read(fragment.name, key, fragment.start, fragment.numel)
                target.narrow(0, fragment.offset, fragment.numel).copy_(values)
    if saved.runtime["step"] is not None:
        begin_moments(engine.deepspeed, state, saved.runtime["step"])
    engine.load_runtime_state(saved.runtime)
    engine.verify()
