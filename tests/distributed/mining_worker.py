"""Rank program: mine made-up batches at a ZeRO stage; rank 0 saves the reduced sketches."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from gdps_ds.config import MineConfig
from gdps_ds.data.collate import Batch
from gdps_ds.deepspeed_file import load_deepspeed_file
from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.gatherer import GradientGatherer
from gdps_ds.distributed.shards import MASTER, ShardedState
from gdps_ds.training.loss import utterance_losses
from gdps_ds.training.mining import MiningWindow, mine_batch
from tests.plain_gradients import PlainGradients
from tests.rank_program import started
from tests.tiny import LANGUAGES, SITES, random_batch, tiny_model, tiny_train

BATCHES = 6
SETTINGS = MineConfig(sketch=12, folds=4)
SEED = 5
LOSS_SCALES = {"zero2_bf16": 1.0, "zero2_fp16": 2.0**16}
"""By which a loss is multiplied before it is differentiated; torch's scaler begins with 2^16."""


def batches(case: str) -> list[Batch]:
    """``lonely``: rank 1 of 2 has one language only, and bem is in a single utterance."""
    if case == "lonely":
        rows = [torch.tensor([0, 2, 2, 3]) if number % 2 == 0 else torch.tensor([3, 3, 3, 3]) for number in range(BATCHES)]
        rows[0] = torch.tensor([0, 1, 2, 3])
        return [random_batch(number, languages=row) for number, row in enumerate(rows)]
    return [random_batch(number) for number in range(BATCHES)]


def mine(comm: Communicator, settings: Path, case: str, out: Path) -> GradientGatherer:
    train = tiny_train(micro_batches=BATCHES if case == "accumulated" else 2)
    engine = Engine(tiny_model(checkpointing=case == "checkpointing"), comm, load_deepspeed_file(settings), train, SITES)
    before = ShardedState(engine.deepspeed, comm).full(f"{SITES[0]}.output_dense.weight", MASTER).clone()
    gatherer = GradientGatherer(engine.module, SITES, LANGUAGES, SETTINGS, SEED, comm.device)
    window = MiningWindow(lambda: gatherer, 0, 1)
    if case in ("training", "accumulated"):
        mine_in_training(engine, window, batches(case), train.micro_batches)
    elif case == "half":
        truth = PlainGradients(engine.module, SITES, len(LANGUAGES), SETTINGS.folds)
        mine_in_training(engine, window, batches(case), train.micro_batches, truth, LOSS_SCALES[settings.stem])
        cores = {site: comm.sum(torch.from_numpy(truth.core(site, SETTINGS.sketch, SEED))).numpy() for site in SITES}
        if comm.is_main:
            np.savez(out / f"{settings.stem}-plain.npz", **cores)
    else:
        with gatherer.attached():
            share = slice(comm.rank, None, comm.world_size) if case != "empty" else slice(None if comm.is_main else 0)
            for batch in batches(case)[share]:
                mine_batch(engine, gatherer, batch, 0.1)
        assert all(parameter.requires_grad for parameter in engine.module.parameters())
        assert all(parameter.grad is None for parameter in engine.module.parameters())
    assert torch.equal(ShardedState(engine.deepspeed, comm).full(f"{SITES[0]}.output_dense.weight", MASTER), before)
    engine.close()
    return gatherer


def mine_in_training(
    engine: Engine,
    window: MiningWindow,
    data: list[Batch],
    micro_batches: int,
    truth: PlainGradients | None = None,
    loss_scale: float = 1.0,
) -> None:
    """Real updates at learning rate 0, so that every batch meets the same weights as in a pass.

    ``truth`` sees every micro-batch too, and is scaled back from the mean over tokens by hand.
    """
    still = {name: {"lr": 0.0, "weight_decay": 0.0} for name in ("trunk", "sites", "private")}
    for update in range(len(data) // micro_batches):
        together = data[update * micro_batches : (update + 1) * micro_batches]
        tokens = sum(batch.target_tokens for batch in together)
        with window.of(update + 1, engine, tokens) as watch:
            for batch in together[engine.comm.rank :: engine.comm.world_size]:
                watch(batch)
                if truth is not None:
                    truth.watch(batch)
                engine.backward(utterance_losses(engine.forward(batch), batch, 0.1).sum(), tokens)
                engine.step(still)
        if truth is not None:
            truth.take(tokens / (engine.comm.world_size * loss_scale))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", nargs="+", required=True, help="DeepSpeed file:case")
    with started(parser) as (options, comm):
        for name in options.runs:
            settings, case = name.split(":")
            sketches = mine(comm, Path(settings), case, options.out).reduce(comm)
            if comm.is_main:
                sketches.save(options.out / f"{Path(settings).stem}-{case}.safetensors")


if __name__ == "__main__":
    main()
