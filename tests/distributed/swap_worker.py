"""Rank program: train, split in the live engine, train on; rank 0 writes what it saw for every ZeRO stage as JSON."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import torch
from deepspeed import DeepSpeedEngine

from gdps_ds.deepspeed_file import load_deepspeed_file
from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.replacer import ReplacementError, replace_blocks
from gdps_ds.distributed.shards import MASTER, MOMENTS, ShardedState
from gdps_ds.plan import SharingPlan, SitePlan
from gdps_ds.training.loss import utterance_losses
from tests.rank_program import started
from tests.tiny import LANGUAGES, SITES, random_batch, tiny_model, tiny_plan, tiny_train, wider_plan

RATES = {name: {"lr": 5e-3, "weight_decay": 0.01} for name in ("trunk", "sites", "private")}
MICRO_BATCHES = 2
UNIFORM = SharingPlan.uniform(LANGUAGES)


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
    names = [fragment.name for fragment in state.fragments]
    return {(name, key): state.full(name, key).clone() for name in names for key in state.keys}


def swap(engine: Engine, *plans: SharingPlan) -> Engine:
    """Apply one plan after the other, starting from a uniform model."""
    for old, new in pairwise((UNIFORM, *plans)):
        engine = replace_blocks(engine, old, new, LANGUAGES, seed=1)
    return engine


def split_again(engine: Engine) -> dict:
    """Split, split further, regroup twice, merge; some training and a probe between all of them."""
    base = tiny_plan()
    further = replace(base, groups=(("aeb",), ("gle",), ("bem", "est")), energy_shares=(), sites=_lanes(base.sites, (0, 0, 1)))
    regrouped = replace(base, groups=(("aeb", "bem"), ("gle", "est")), energy_shares=(), sites=tiny_plan(sites=SITES).sites)
    losses, probes, previous = train(engine, range(2)), [], UNIFORM
    exchanged = replace(regrouped, groups=base.groups)
    for number, plan in enumerate((base, further, regrouped, exchanged, UNIFORM)):
        before = probe(engine)
        engine = replace_blocks(engine, previous, plan, LANGUAGES, seed=1)
        probes.append([before, probe(engine)])
        start = 2 * number + 2
        losses += train(engine, range(start, start + 2))
        previous = plan
    blocks = [type(engine.module.get_submodule(site)).__name__ for site in SITES]
    engine.close()
    return {"losses": losses, "probes": probes, "blocks": blocks}


def _lanes(sites: tuple[SitePlan, ...], order: tuple[int, ...]) -> tuple[SitePlan, ...]:
    return tuple(replace(site, private=tuple(site.private[index] for index in order)) for site in sites)


def swap_ten_times(engine: Engine) -> dict:
    """Split and merge again and again: everything is bit-equal in the end, and nothing accumulates."""
    losses, before = train(engine, range(3)), snapshot(engine)
    held = []
    for _ in range(5):
        engine = swap(engine, tiny_plan(sites=SITES), UNIFORM)
        held.append(_bytes_of_tensors())
    after = snapshot(engine)
    alive = sum(isinstance(each, DeepSpeedEngine) for each in gc.get_objects())
    losses += train(engine, range(3, 7))
    engine.close()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    return {"losses": losses, "changed": changed, "names": len(after), "alive": alive, "held": held}


def _bytes_of_tensors() -> int:
    """What all tensors hold; the memory of the process also depends on the size of its pages and on its allocator."""
    gc.collect()
    storages = [each.untyped_storage() for each in gc.get_objects() if isinstance(each, torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def fail_to_build(engine: Engine) -> dict:
    """One rank cannot build its blocks: all ranks say so, and the old engine goes on."""
    losses, error = train(engine, range(3)), ""
    broken = patch("gdps_ds.distributed.replacer.new_block", side_effect=MemoryError("no room"))
    with broken if engine.comm.rank == engine.comm.world_size - 1 else contextlib.nullcontext():
        try:
            swap(engine, tiny_plan())
        except ReplacementError as caught:
            error = str(caught)
    losses += train(engine, range(3, 7))
    engine.close()
    return {"losses": losses, "error": error}


SCENARIOS = {"again": split_again, "ten-swaps": swap_ten_times, "failing": fail_to_build}


def run(comm: Communicator, settings: Path, mode: str) -> dict:
    warm = 0 if mode == "cold" else 3
    plan = wider_plan() if mode == "wider" else tiny_plan(sites=SITES if mode == "two-sites" else SITES[-1:])
    engine = Engine(
        tiny_model(checkpointing=mode == "checkpointing"),
        comm,
        load_deepspeed_file(settings),
        tiny_train(MICRO_BATCHES),
        SITES,
    )
    if mode in SCENARIOS:
        return SCENARIOS[mode](engine)
    losses = train(engine, range(warm))
    before, probe_before = snapshot(engine), probe(engine)
    old, old_zero = weakref.ref(engine.deepspeed), weakref.ref(engine.deepspeed.optimizer)
    if mode != "unsplit":
        engine = swap(engine, plan)
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
    if mode == "wider":
        new = [f"{SITES[-1]}.private.0.{linear}.weight" for linear in ("intermediate_dense", "output_dense")]
        result["new"] = {key: [bool(after[name, key].any()) for name in new] for key in (MASTER, *MOMENTS)}
    elif warm and engine.router is not None:
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
    parser.add_argument("--runs", nargs="+", required=True, help="DeepSpeed file:mode")
    with started(parser) as (options, comm):
        results = {}
        for name in options.runs:
            settings, mode = name.split(":")
            results[f"{Path(settings).stem}:{mode}"] = run(comm, Path(settings), mode)
        if comm.is_main:
            options.out.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
