"""Rank program: train, split in the live engine, train on; rank 0 writes what it saw for every ZeRO stage as JSON."""

from __future__ import annotations

import argparse
import gc
import json
import weakref
from pathlib import Path

import torch

from gdps_ds.config_file import load_deepspeed_file
from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.replacer import replace_blocks
from gdps_ds.distributed.shards import MASTER, MOMENTS, ShardedState
from gdps_ds.training.loss import utterance_losses
from tests.tiny import LANGUAGES, SITES, random_batch, tiny_model, tiny_plan, tiny_train

RATES = {name: {"lr": 5e-3, "weight_decay": 0.01} for name in ("trunk", "sites", "private")}
MICRO_BATCHES = 2


def train(engine: Engine, updates: range) -> list[float]:
    """Mean loss over the tokens of each update, over all ranks."""
    losses = []
    for update in updates:
        batches = [random_batch(update * MICRO_BATCHES + number) for number in range(MICRO_BATCHES)]
        tokens = sum(batch.target_tokens for batch in batches)
        total = 0.0
        for batch in batches[engine.comm.rank :: engine.comm.world_size]:
            loss = utterance_losses(engine.forward(batch), batch, 0.1).sum()
            engine.backward(loss, tokens)
            engine.step(RATES)
            total += loss.item()
        losses.append(engine.comm.sum_floats(total)[0] / tokens)
    return losses


def probe(engine: Engine) -> float:
    batch = random_batch(999)
    with engine.evaluating():
        losses = utterance_losses(engine.forward(batch), batch, 0.0)
    return losses.sum().item() / batch.target_tokens


def snapshot(engine: Engine) -> dict[tuple[str, str], torch.Tensor]:
    state = ShardedState(engine.deepspeed, engine.comm)
    keys = (MASTER, *MOMENTS) if state.has_moments else (MASTER,)
    names = [fragment.name for flat in state.flats for fragment in flat.fragments]
    return {(name, key): state.full(name, key).clone() for name in names for key in keys}


def run(comm: Communicator, settings: Path, mode: str) -> dict:
    warm = 0 if mode == "cold" else 3
    plan = tiny_plan(sites=SITES if mode == "two-sites" else SITES[-1:])
    engine = Engine(
        tiny_model(checkpointing=mode == "checkpointing"),
        comm,
        load_deepspeed_file(settings),
        tiny_train(MICRO_BATCHES),
        SITES,
    )
    losses = train(engine, range(warm))
    before, probe_before = snapshot(engine), probe(engine)
    old, old_zero = weakref.ref(engine.deepspeed), weakref.ref(engine.deepspeed.optimizer)
    if mode != "unsplit":
        engine = replace_blocks(engine, plan, LANGUAGES, seed=1)
        gc.collect()
    after, probe_after = snapshot(engine), probe(engine)
    untouched = [key for key in before if key in after]
    losses += train(engine, range(warm, warm + 4))
    result = {
        "losses": losses,
        "probe": [probe_before, probe_after],
        "untouched": len(untouched),
        "changed": [key for key in untouched if not torch.equal(before[key], after[key])],
        "leaked": mode != "unsplit" and engine.stage > 0 and (old() is not None or old_zero() is not None),
        "steps": engine.deepspeed.global_steps,
    }
    if warm and engine.router is not None:
        neurons = torch.tensor(plan.sites[0].private[1])
        name = plan.sites[0].name
        result["lane"] = {
            key: torch.equal(
                after[f"{name}.private.1.intermediate_dense.weight", key],
                before[f"{name}.intermediate_dense.weight", key][neurons],
            )
            for key in (MASTER, *MOMENTS)
        }
    engine.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--local_rank", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", required=True, help="DeepSpeed file:mode")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    comm = Communicator.start(arguments.local_rank)
    results = {}
    for name in arguments.runs:
        settings, mode = name.split(":")
        results[f"{Path(settings).stem}:{mode}"] = run(comm, Path(settings), mode)
    if comm.is_main:
        arguments.out.write_text(json.dumps(results))
    comm.barrier()
    comm.stop()


if __name__ == "__main__":
    main()
