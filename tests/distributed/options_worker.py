"""Rank program: with every DeepSpeed file of ``options.py`` train, split, save, train on, and go on from what was saved.

Rank 0 writes what it saw as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.replacer import replace_blocks, split_partitioned
from gdps_ds.distributed.saved_state import SavedState, load_weights, restore, save_state
from gdps_ds.distributed.shards import UnreadableEngineError, gathered
from tests.distributed.options import OPTIONS, zero
from tests.distributed.state_worker import model
from tests.distributed.swap_worker import MICRO_BATCHES, UNIFORM, train
from tests.rank_program import started
from tests.tiny import LANGUAGES, SITES, tiny_model, tiny_plan, tiny_train

RECIPE = tiny_train(2 * MICRO_BATCHES)
"""An update is made of two steps of ``train``, so that ranks accumulate."""


def in_the_module(engine: Engine) -> dict[str, torch.Tensor]:
    """The weights that the model computes with, made whole by DeepSpeed."""
    found = {}
    for name, parameter in engine.module.named_parameters():
        with gathered([parameter]):
            found[name] = parameter.detach().cpu().clone()
    return found


def run(comm: Communicator, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    engine = Engine(model(), comm, settings, RECIPE, SITES)
    losses = train(engine, range(4))
    engine = replace_blocks(engine, UNIFORM, tiny_plan(), LANGUAGES, seed=1)
    losses += train(engine, range(4, 6))
    if comm.is_main:
        folder.mkdir(parents=True)
    comm.barrier()
    save_state(engine, folder)
    losses += train(engine, range(6, 10))
    engine.close()
    module = model(seed=9)
    router = split_partitioned(module, tiny_plan(), LANGUAGES, 9, comm)
    with SavedState(folder) as saved:
        load_weights(module, saved)
        engine = Engine(module, comm, settings, RECIPE, SITES, router)
        restore(engine, saved)
        resumed = train(engine, range(6, 10))
        save_state(engine, folder)
        truth = in_the_module(engine)
    engine.close()
    with SavedState(folder) as saved:
        wrong = [name for name, weights in truth.items() if not torch.equal(saved.full(name).to(weights.dtype), weights)]
    return {"losses": losses, "resumed": resumed, "wrong": wrong, "tensors": len(truth)}


def refusals(comm: Communicator) -> dict[str, str]:
    """What an engine says whose fp32 weights lie elsewhere than they are looked for."""
    engine = Engine(model(), comm, zero(2), RECIPE, SITES)
    offsets = engine.deepspeed.optimizer.round_robin_bit16_offsets[0]
    offsets[0], offsets[1] = offsets[1], offsets[0]
    said = {"moved": message(engine.verify)}
    engine.close()
    settings = zero(1) | {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "dump_state": False}
    return said | {"other optimiser": message(lambda: Engine(model(), comm, settings, RECIPE, SITES))}


def train_linears_alone(comm: Communicator) -> list[float]:
    """At stage 3 with autocast, where DeepSpeed sends all that is trained in 16 bits."""
    module = tiny_model()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(".ffn2." in name)
    engine = Engine(module, comm, OPTIONS["stage 3, autocast"], RECIPE, SITES)
    losses = train(engine, range(4))
    engine.close()
    return losses


def message(act: Callable[[], object]) -> str:
    try:
        act()
    except UnreadableEngineError as error:
        return str(error)
    return "no error"


def main() -> None:
    with started(argparse.ArgumentParser()) as (options, comm):
        results: dict[str, dict] = {name: run(comm, settings, options.out / name) for name, settings in OPTIONS.items()}
        results["linears alone"] = {"losses": train_linears_alone(comm)}
        results["refusals"] = refusals(comm)
        if comm.is_main:
            (options.out / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
