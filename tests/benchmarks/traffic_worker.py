"""Rank program: ``launchers/train.py`` that counts its collectives.

Whatever DeepSpeed and we call of ``torch.distributed`` ends in one call of a method of its ``ProcessGroup``: those are counted,
by the functions of :data:`WATCHED` that they are called within. Writes ``traffic.<rank>.json`` into the run directory:

    calls    labels of those functions, outermost first ("train/update 3") -> collective -> [calls, bytes]
    sizes    of every engine's model, in order: part -> parameters
"""

from __future__ import annotations

import functools
import json
import runpy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.distributed import ProcessGroup

from gdps_ds.distributed import engine
from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.gatherer import GradientGatherer
from gdps_ds.training import phases, planning
from gdps_ds.training.checkpoint import PhaseCheckpoints
from gdps_ds.training.language_losses import LanguageLosses
from gdps_ds.training.metered import MeteredBatches
from gdps_ds.training.selection import DevSet
from gdps_ds.training.trainer import Trainer
from tests.launch import ROOT

COLLECTIVES = (
    "allreduce", "allreduce_coalesced", "reduce", "broadcast", "barrier", "gather", "scatter", "send", "recv",
    "allgather", "allgather_coalesced", "all_gather_single", "all_gather_single_coalesced", "_allgather_base",
    "reduce_scatter", "reduce_scatter_single", "reduce_scatter_single_coalesced", "_reduce_scatter_base",
    "alltoall", "alltoall_base", "all_to_all_single",
)  # fmt: skip

UPDATE = "update {0.deepspeed.global_steps}"
WATCHED: tuple[tuple[Any, str, str], ...] = (
    (Trainer, "train", "train"),
    (Engine, "__init__", "start"),
    (Engine, "forward", UPDATE),
    (Engine, "backward", UPDATE),
    (Engine, "step", UPDATE),
    (LanguageLosses, "reduce", "line"),
    (MeteredBatches, "reduce", "line"),
    (DevSet, "evaluate", "dev"),
    (PhaseCheckpoints, "save", "save"),
    (phases, "decide", "plan"),
    (planning, "mine", "mine"),
    (planning, "mine_batch", "batch"),
    (GradientGatherer, "reduce", "sketches"),
    (GradientGatherer, "with_neurons", "sketches"),
    (phases, "replace_blocks", "split"),
    (phases, "translate", "translate"),
)
"""Where a function is looked up, its name there, and its label, formatted with its arguments."""

calls: dict[str, dict[str, list[int]]] = {}
sizes: list[dict[str, int]] = []
within: list[str] = []


def replace(owner: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
    """Put what ``make`` makes of a function in its place."""
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(make(original)))


def counted(collective: Any) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        found = calls.setdefault("/".join(within), {}).setdefault(collective.__name__, [0, 0])
        found[0] += 1
        # All ranks' tensors, and this rank's share of them, are two arguments: the whole is the larger one.
        found[1] += max(nbytes(each) for each in (*arguments, *options.values()))
        return collective(*arguments, **options)

    return call


def nbytes(argument: object) -> int:
    """Bytes of a tensor, or of the tensors in lists; 0 of anything else."""
    if isinstance(argument, torch.Tensor):
        return argument.nbytes
    return sum(map(nbytes, argument)) if isinstance(argument, list) else 0


def labelled(label: str) -> Callable[[Any], Callable[..., Any]]:
    def make(function: Any) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            within.append(label.format(*arguments))
            try:
                return function(*arguments, **options)
            finally:
                within.pop()

        return call

    return make


def measured(parameter_groups: Any) -> Callable[..., Any]:
    """Notes the sizes of every model that an engine is started around."""

    def call(model: Any, sites: Sequence[str]) -> Any:
        of = {name: getattr(each, "ds_numel", each.numel()) for name, each in model.named_parameters()}
        embedding = model.get_input_embeddings().weight
        candidates = sum(numel for name, numel in of.items() if name.startswith(tuple(f"{site}." for site in sites)))
        tied = getattr(embedding, "ds_numel", embedding.numel())
        sizes.append({"model": sum(of.values()), "candidates": candidates, "embedding": tied})
        return parameter_groups(model, sites)

    return call


def written(execute: Any) -> Callable[..., Any]:
    def call(run: phases.Run) -> Any:
        summary = execute(run)
        (run.dir / f"traffic.{run.comm.rank}.json").write_text(json.dumps({"calls": calls, "sizes": sizes}))
        return summary

    return call


if __name__ == "__main__":
    for name in filter(partial(hasattr, ProcessGroup), COLLECTIVES):
        replace(ProcessGroup, name, counted)
    for owner, name, label in WATCHED:
        replace(owner, name, labelled(label))
    replace(engine, "parameter_groups", measured)
    replace(phases.Run, "execute", written)
    runpy.run_path(str(ROOT / "launchers" / "train.py"), run_name="__main__")
