"""The ZeRO-compatible module replacer: changes blocks in a live engine and carries the optimiser's state over.

Route: build the new blocks beside the model, keep views of the old engine's shards, take the engine down, put the blocks in
their places, start a new engine, hand the state over. A flat shard whose parameters did not change goes by reference;
otherwise one full tensor at a time is gathered, selected and scattered, so no rank ever holds more than one full tensor beside
its own shards and the new blocks.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gdps_ds.distributed.comm import Communicator, RankError
from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.shards import Flat, Fragment, ShardedState, begin_moments, gathered, is_partitioned
from gdps_ds.model.families import hidden_widths
from gdps_ds.model.routing import Router
from gdps_ds.model.surgery import Source, block_sources, changed_blocks, install, new_block
from gdps_ds.plan import SharingPlan

Sources = Mapping[str, tuple[str, Source]]
"""Full name of a new parameter -> (its block, where in the old block it comes from)."""


class ReplacementError(RuntimeError):
    """The blocks could not be replaced; the message says which model is left."""


def replace_blocks(engine: Engine, old: SharingPlan, new: SharingPlan, languages: Sequence[str], seed: int) -> Engine:
    """Turn a live engine of plan ``old`` into one of plan ``new``: split, split further, regroup or merge. Collective.

    The old engine must not be used afterwards. Parameters, Adam's moments and step counts of everything else, the engine's
    counters and the loss scale stay as they are. With ``init: neurons`` the moments travel with their neurons; new lanes of
    other initialisations start with zero moments.

    Raises:
        PlanError: the new plan does not fit the model or the run; nothing has been touched.
        ReplacementError: on every rank. Up to the point where all ranks hold their new blocks, the old engine is whole and
            usable; after it, this process has no model, and the run goes on from its last checkpoint.
    """
    new.validate(hidden_widths(engine.module) | {site.name: site.hidden for site in old.sites}, languages)
    engine.comm.agree(new.digest, "the sharing plan")
    router = None if new.is_uniform else Router(new.groups, languages, new.fallback)
    try:
        blocks = partitioned_blocks(engine.module, old, new, router, seed, engine.comm)
    except RankError as error:
        raise ReplacementError(f"{error}; no rank has changed its model") from error
    try:
        return _exchange(engine, blocks, router, old, new)
    except Exception as error:
        raise ReplacementError(
            f"rank {engine.comm.rank} failed while it started the engine of the new model: {type(error).__name__}: {error}; "
            "the model of this process is lost, start the run again to go on from the last checkpoint"
        ) from error


def _exchange(
    engine: Engine, blocks: Mapping[str, nn.Module], router: Router | None, old: SharingPlan, new: SharingPlan
) -> Engine:
    before, runtime = engine.state(), engine.runtime_state()
    module = engine.close()
    install(module, blocks, router)
    replaced = engine.rebuilt(module, router)
    state = replaced.state()
    carry_over(state, before, old, new)
    if before.has_moments:
        begin_moments(replaced.deepspeed, state, before.step)
    replaced.load_runtime_state(runtime)
    replaced.verify()
    gc.collect()
    return replaced


def partitioned_blocks(
    module: nn.Module, old: SharingPlan, new: SharingPlan, router: Router | None, seed: int, comm: Communicator
) -> dict[str, nn.Module]:
    """The blocks that turn a model of plan ``old``, partitioned or not, into one of plan ``new``. Collective.

    Raises:
        RankError: on every rank if a block could not be built on any. Ranks ask each other before the next collective, which
            a rank that has failed would not come to.
    """
    blocks = {}
    for name, lanes in changed_blocks(old, new).items():
        parameters = list(module.get_submodule(name).parameters())
        with gathered(parameters):
            blocks[name] = comm.everywhere(
                lambda name=name, lanes=lanes: new_block(module, name, lanes, new, router, seed),  # type: ignore[misc]
                f"building the new block {name}",
            )
        if is_partitioned(parameters[0]):
            first: Any = parameters[0]
            first.convert_to_zero_parameters(list(blocks[name].parameters()))
    return blocks


def split_partitioned(module: nn.Module, plan: SharingPlan, languages: Sequence[str], seed: int, comm: Communicator) -> Router:
    """:func:`gdps_ds.model.surgery.split_model`, also where ZeRO-3 has partitioned the module. Collective."""
    router = Router(plan.groups, languages, plan.fallback)
    install(module, partitioned_blocks(module, SharingPlan.uniform(plan.languages), plan, router, seed, comm), router)
    return router


@torch.no_grad()
def carry_over(state: ShardedState, before: ShardedState, old: SharingPlan, new: SharingPlan) -> None:
    """Fill the new engine's shards from the old one's. Collective: all ranks walk the same flats in the same order."""
    sources = {
        f"{block}.{name}": (block, source)
        for block, lanes in changed_blocks(old, new).items()
        for name, source in block_sources(*lanes).items()
    }
    # A regrouped block may have lanes of the old names and shapes with other content.
    unchanged = {flat.layout: flat for flat in before.flats if not any(each.name in sources for each in flat.fragments)}
    keys = before.keys
    # Lanes that start afresh, and neurons that are new, keep the weights that the new engine began with.
    travels = new.init == "neurons" or new.is_uniform
    for flat in state.flats:
        twin = unchanged.get(flat.layout)
        if twin is not None:
            _hand_over(flat, twin, keys[1:])
        else:
            for key in keys:
                _fill(flat, key, before, sources, travels=travels)


def _hand_over(flat: Flat, twin: Flat, moments: Sequence[str]) -> None:
    """Same parameters, same shard: moments by reference, the fp32 weights by a local copy."""
    if flat.master.data_ptr() != twin.master.data_ptr():
        flat.master.data.copy_(twin.master.data)
    for key in moments:
        flat.state[key] = twin.state[key]


def _fill(flat: Flat, key: str, before: ShardedState, sources: Sources, *, travels: bool) -> None:
    """Assemble one tensor of a flat whose parameters changed, from whole tensors of the old engine, one at a time."""
    target = flat.writable(key)
    for fragment in flat.fragments:
        if fragment.name not in sources:
            _copy_untouched(target, fragment, key, before)
        elif travels and not sources[fragment.name][1].is_new:
            block, source = sources[fragment.name]
            whole = source.assemble(lambda name, block=block: before.full(f"{block}.{name}", key))  # type: ignore[misc]
            _copy_fragment(target, fragment, whole)


def _copy_untouched(target: Tensor, fragment: Fragment, key: str, before: ShardedState) -> None:
    if before.stage in (0, 3):  # the same values lie on this rank already
        target.narrow(0, fragment.offset, fragment.numel).copy_(before.local(fragment.name, key))
    else:
        _copy_fragment(target, fragment, before.full(fragment.name, key))


def _copy_fragment(target: Tensor, fragment: Fragment, whole: Tensor) -> None:
    values = whole.reshape(-1).narrow(0, fragment.start, fragment.numel)
    target.narrow(0, fragment.offset, fragment.numel).copy_(values)
