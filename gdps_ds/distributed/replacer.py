"""The ZeRO-compatible module replacer: splits blocks in a live engine and carries the optimiser's state over.

Route: keep views of the old engine's shards, take the engine down, replace the blocks, start a new engine, hand the state
over. A flat shard whose parameters did not change goes by reference; otherwise one full tensor at a time is gathered,
selected and scattered, so no rank ever holds more than one full tensor beside its own shards.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping, Sequence
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.shards import MASTER, MOMENTS, Flat, Fragment, ShardedState
from gdps_ds.model.families import hidden_widths
from gdps_ds.model.routing import Router
from gdps_ds.model.surgery import BLOCK_PARAMETERS, Source, build_block, lane_sources
from gdps_ds.plan import SharingPlan

SCALERS = ("loss_scaler", "torch_autocast_gradscaler")
COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")

Sources = Mapping[str, tuple[str, Source]]
"""Full name of a new parameter -> (full name of the dense parameter that it comes from, selection of neurons)."""


def replace_blocks(engine: Engine, plan: SharingPlan, languages: Sequence[str], seed: int) -> Engine:
    """Split the blocks of ``plan`` in a live engine; the old engine must not be used afterwards.

    Parameters, Adam's moments and step counts of everything else, and the engine's counters, stay as they are. With
    ``init: neurons`` a lane's moments are those of its neurons; other initialisations start with zero moments.

    Raises:
        PlanError: before anything is touched, if the plan does not fit the model or the run.
    """
    plan.validate(hidden_widths(engine.module), languages)
    engine.comm.agree(plan.digest, "the sharing plan")
    old = ShardedState(engine.deepspeed, engine.comm)
    counters = {name: getattr(engine.deepspeed, name) for name in COUNTERS}
    scalers = {name: getattr(engine.deepspeed.optimizer, name, None) for name in SCALERS}
    module = engine.close()
    new_engine = engine.rebuilt(module, split_partitioned(module, plan, languages, seed))
    for name, value in counters.items():
        setattr(new_engine.deepspeed, name, value)
    for name, scaler in scalers.items():
        if scaler is not None:
            setattr(new_engine.deepspeed.optimizer, name, scaler)
    carry_over(ShardedState(new_engine.deepspeed, engine.comm), old, plan)
    if new_engine.stage in (1, 2):
        new_engine.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()
    gc.collect()
    return new_engine


def split_partitioned(module: nn.Module, plan: SharingPlan, languages: Sequence[str], seed: int) -> Router:
    """As :func:`gdps_ds.model.surgery.split_model`, also where ZeRO-3 has partitioned the module; one block at a time."""
    router = Router(plan.groups, languages)
    for site in plan.sites:
        dense = module.get_submodule(site.name)
        parameters = {name: dense.get_parameter(name) for name in BLOCK_PARAMETERS}
        partitioned = hasattr(parameters[BLOCK_PARAMETERS[0]], "ds_id")
        with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=partitioned):
            weights = {name: parameter.detach() for name, parameter in parameters.items()}
            block = build_block(dense, weights, site, plan, router, seed)
        if partitioned:
            first: Any = parameters[BLOCK_PARAMETERS[0]]
            first.convert_to_zero_parameters(list(block.parameters()))
        module.set_submodule(site.name, block)
    return router


@torch.no_grad()
def carry_over(new: ShardedState, old: ShardedState, plan: SharingPlan) -> None:
    """Fill the new engine's shards from the old one's. Collective: all ranks walk the same flats in the same order."""
    sources = plan_sources(plan)
    unchanged = {flat.layout: flat for flat in old.flats}
    moments = MOMENTS if old.has_moments else ()  # there are none before the first step
    step = old.step if moments else None
    for flat in new.flats:
        twin = unchanged.get(flat.layout)
        if twin is not None:
            _hand_over(flat, twin, moments)
        else:
            for key in (MASTER, *moments):
                _fill(flat, key, old, sources, keep_neurons=plan.init == "neurons")
        if moments:
            # Each flat needs a step of its own: a shared tensor would be counted up once for every flat.
            flat.state["step"] = copy.deepcopy(step)


def plan_sources(plan: SharingPlan) -> dict[str, tuple[str, Source]]:
    return {
        f"{site.name}.{name}": (f"{site.name}.{source.name}", source)
        for site in plan.sites
        for name, source in lane_sources(site).items()
    }


def _hand_over(flat: Flat, twin: Flat, moments: Sequence[str]) -> None:
    """Same parameters, same shard: moments by reference, the fp32 weights by a local copy."""
    if flat.master.data_ptr() != twin.master.data_ptr():
        flat.master.data.copy_(twin.master.data)
    for key in moments:
        flat.state[key] = twin.state.pop(key)


def _fill(flat: Flat, key: str, old: ShardedState, sources: Sources, *, keep_neurons: bool) -> None:
    """Assemble one tensor of a flat whose parameters changed, from whole tensors of the old engine, one at a time."""
    target = flat.master.data.view(-1) if key == MASTER else torch.zeros_like(flat.master.data).view(-1)
    cached: tuple[str, Tensor] | None = None
    for fragment in flat.fragments:
        if fragment.name not in sources:
            _copy_untouched(target, fragment, key, old)
        elif keep_neurons:
            name, source = sources[fragment.name]
            if cached is None or cached[0] != name:
                cached = (name, old.full(name, key))
            _copy_fragment(target, fragment, source.select(cached[1]))
    if key != MASTER:
        flat.state[key] = target.view_as(flat.master)


def _copy_untouched(target: Tensor, fragment: Fragment, key: str, old: ShardedState) -> None:
    if old.stage in (0, 3):  # the same values lie on this rank already
        target.narrow(0, fragment.offset, fragment.numel).copy_(old.local(fragment.name, key))
    else:
        _copy_fragment(target, fragment, old.full(fragment.name, key))


def _copy_fragment(target: Tensor, fragment: Fragment, whole: Tensor) -> None:
    values = whole.reshape(-1).narrow(0, fragment.start, fragment.numel)
    target.narrow(0, fragment.offset, fragment.numel).copy_(values)
