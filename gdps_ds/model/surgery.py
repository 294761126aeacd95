"""Changes which lanes a model's feed-forward blocks have: splits dense blocks, divides lanes further, merges them back.

:func:`block_sources` says once, for weights *and* for Adam's moments, where every tensor of a new block comes from. Hidden
neurons keep their numbers through every split, so one rule covers all changes: a neuron of a lane is the mean of that neuron
over the languages that the lane serves. Where those languages shared it before, that is the neuron itself, and the model's
function stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gdps_ds.analysis.sketch import seed_of
from gdps_ds.model.families import INPUT_LINEAR, OUTPUT_LINEAR, dense_block
from gdps_ds.model.grouped_ffn import GroupedFeedForward
from gdps_ds.model.routing import Router
from gdps_ds.plan import SharingPlan

_NEURON_DIMENSIONS = {f"{INPUT_LINEAR}.weight": 0, f"{INPUT_LINEAR}.bias": 0, f"{OUTPUT_LINEAR}.weight": 1}
OUTPUT_BIAS = f"{OUTPUT_LINEAR}.bias"


@dataclass(frozen=True)
class LaneContent:
    """The hidden neurons of a lane, and the languages that pass through it."""

    neurons: tuple[int, ...]
    languages: tuple[str, ...]


Lanes = Mapping[str, LaneContent]
"""Prefix of the parameters of a lane within its block (empty for a dense block, which is one lane) -> its content."""


@dataclass(frozen=True)
class Part:
    """Neurons at positions ``take`` of an old parameter, which enter positions ``put`` of the new one with ``weight``."""

    name: str
    take: tuple[int, ...]
    put: tuple[int, ...]
    weight: tuple[float, ...]


@dataclass(frozen=True)
class Source:
    """Where a parameter of a block comes from: parts of old ones along dimension ``dim``; None copies the one part whole."""

    dim: int | None
    width: int
    parts: tuple[Part, ...]

    @property
    def is_new(self) -> bool:
        """Whether nothing of the parameter comes from the old block."""
        return self.dim is not None and not any(part.put for part in self.parts)

    def assemble(self, read: Callable[[str], Tensor]) -> Tensor:
        """The new tensor (a copy); ``read`` gives the old block's tensors by name, and one at a time is held."""
        if self.dim is None:
            return read(self.parts[0].name).clone()
        new: Tensor | None = None
        for part in self.parts:
            old = read(part.name)
            if new is None:
                new = old.new_zeros([self.width if dim == self.dim else size for dim, size in enumerate(old.shape)])
            values = old.index_select(self.dim, torch.tensor(part.take, dtype=torch.long, device=old.device))
            weight = torch.tensor(part.weight, dtype=old.dtype, device=old.device)
            values *= weight if self.dim == old.dim() - 1 else weight.unsqueeze(-1)
            new.index_add_(self.dim, torch.tensor(part.put, dtype=torch.long, device=old.device), values)
        assert new is not None
        return new


def lanes_by(plan: SharingPlan, site: str, hidden: int) -> Lanes:
    """The lanes that ``plan`` gives the block ``site`` of ``hidden`` neurons: one dense lane where it is not split."""
    for each in plan.sites:
        if each.name == site:
            private = zip(each.private, plan.groups, strict=True)
            return {"shared.": LaneContent(each.shared, plan.languages)} | {
                f"private.{index}.": LaneContent(neurons, group) for index, (neurons, group) in enumerate(private)
            }
    return {"": LaneContent(tuple(range(hidden)), plan.languages)}


def block_sources(old: Lanes, new: Lanes) -> dict[str, Source]:
    """Parameter of the new block -> its :class:`Source` in the old one, names relative to the block.

    Raises:
        ValueError: the new block is a dense one without a place for neurons that ``width: added`` gave the old one.
    """
    held = {neuron for lane in old.values() for neuron in lane.neurons}
    if "" in new and (lost := held - set(new[""].neurons)):
        raise ValueError(f"a dense block of the old width has no room for the {len(lost)} neurons that width added gave it")
    sources = {}
    for prefix, lane in new.items():
        flows = _flows(lane, old)
        for name, dim in _NEURON_DIMENSIONS.items():
            parts = tuple(Part(f"{origin}{name}", *flow) for origin, flow in flows.items())
            sources[f"{prefix}{name}"] = Source(dim, len(lane.neurons), parts)
    bias = Part(f"{_first(old)}{OUTPUT_BIAS}", (), (), ())
    return sources | {f"{_first(new)}{OUTPUT_BIAS}": Source(None, 0, (bias,))}


def _first(lanes: Lanes) -> str:
    """The lane that every utterance passes through owns the output bias: the dense one or the shared one."""
    return next(iter(lanes))


def _flows(lane: LaneContent, old: Lanes) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]]:
    """Old lane -> (positions there, positions here, weights) of the neurons that come from it.

    An old lane counts by how many of the lane's languages pass through it. A neuron that none of them had (``width:
    constant`` gives each group neurons of its own) is the mean over those that had it. One that no lane had is new: nothing
    flows to it.
    """
    places = {prefix: {neuron: place for place, neuron in enumerate(content.neurons)} for prefix, content in old.items()}
    served = {prefix: len(set(lane.languages) & set(content.languages)) for prefix, content in old.items()}
    flows: dict[str, tuple[list[int], list[int], list[float]]] = {prefix: ([], [], []) for prefix in old}
    for put, neuron in enumerate(lane.neurons):
        holders = [prefix for prefix in old if neuron in places[prefix]]
        counts = {prefix: served[prefix] for prefix in holders if served[prefix]}
        counts = counts or {prefix: len(old[prefix].languages) for prefix in holders}
        for prefix, count in counts.items():
            take, puts, weights = flows[prefix]
            take.append(places[prefix][neuron])
            puts.append(put)
            weights.append(count / sum(counts.values()))
    found = {prefix: (tuple(take), tuple(put), tuple(weight)) for prefix, (take, put, weight) in flows.items() if take}
    return found or {_first(old): ((), (), ())}  # a lane of new neurons has the shapes of an old one all the same


def keeps_function(plan: SharingPlan) -> bool:
    """Whether a dense model that is split by ``plan`` computes exactly what it did."""
    return plan.width in ("preserve", "added") and plan.init == "neurons"


def changed_blocks(old: SharingPlan, new: SharingPlan) -> dict[str, tuple[Lanes, Lanes]]:
    """Block whose lanes under ``new`` are not those under ``old`` -> its lanes before and after, in one order on all ranks."""
    hidden = {site.name: site.hidden for site in (*old.sites, *new.sites)}
    lanes = {name: (lanes_by(old, name, width), lanes_by(new, name, width)) for name, width in sorted(hidden.items())}
    return {name: pair for name, pair in lanes.items() if pair[0] != pair[1]}


def new_block(
    model: nn.Module, name: str, lanes: tuple[Lanes, Lanes], new: SharingPlan, router: Router | None, seed: int
) -> nn.Module:
    """What takes the place of the block ``name``, whose parameters must be whole; the model is not touched.

    Args:
        lanes: before and after, see :func:`changed_blocks`.
        router: of the new plan; None where the new plan is uniform.
        seed: run seed of ``init: random``, of what ``init: svd`` leaves open and of neurons that ``width: added`` adds.
    """
    before, after = lanes
    old = model.get_submodule(name)
    parameters, sources = dict(old.named_parameters()), block_sources(before, after)
    with torch.no_grad():
        if new.init == "neurons" or "" in after:
            values = {each: source.assemble(parameters.__getitem__) for each, source in sources.items()}
            values |= _random_inputs(values, sources, seed_of(seed, "lanes", name))
        else:
            to_dense = block_sources(before, lanes_by(SharingPlan.uniform(new.languages), name, _hidden(new, name)))
            dense = {each: source.assemble(parameters.__getitem__) for each, source in to_dense.items()}
            values = _fresh_lanes(dense, new, name, seed)
        block = _empty_block(model, old, after, router, values)
    for each, parameter in block.named_parameters():
        # A lane is trained where the parameter that it comes from was.
        parameter.requires_grad_(parameters[sources[each].parts[0].name].requires_grad)
    return block


def split_model(model: nn.Module, plan: SharingPlan, languages: Sequence[str], seed: int) -> Router:
    """Split a plain, uniform model by ``plan`` in place; the router that the caller must set before each batch."""
    router = Router(plan.groups, languages, plan.fallback)
    changed = changed_blocks(SharingPlan.uniform(plan.languages), plan)
    install(model, {name: new_block(model, name, lanes, plan, router, seed) for name, lanes in changed.items()}, router)
    return router


def install(model: nn.Module, blocks: Mapping[str, nn.Module], router: Router | None) -> None:
    """Put ``blocks`` in their places; split blocks that stay follow the new router too."""
    for name, block in blocks.items():
        model.set_submodule(name, block)
    for module in model.modules():
        if isinstance(module, GroupedFeedForward) and router is not None:
            module.router = router


def _hidden(plan: SharingPlan, name: str) -> int:
    return next(site.hidden for site in plan.sites if site.name == name)


def _empty_block(
    model: nn.Module, like: nn.Module, lanes: Lanes, router: Router | None, values: Mapping[str, Tensor]
) -> nn.Module:
    """A block of these lanes that holds ``values``, with the activation, dropout and mode of ``like``."""
    lane: Any = like.shared if isinstance(like, GroupedFeedForward) else like
    reference = next(iter(values.values()))
    block: nn.Module
    with torch.device("meta"):
        if router is None or "" in lanes:
            block = dense_block(model, lane.intermediate_act_fn, lane.intermediate_dropout.p)
        else:
            shared, *private = (len(content.neurons) for content in lanes.values())
            block = GroupedFeedForward(
                values[f"shared.{INPUT_LINEAR}.weight"].shape[1],
                shared,
                private,
                activation=lane.intermediate_act_fn,
                dropout=lane.intermediate_dropout.p,
                router=router,
            )
    block = block.to_empty(device=reference.device).to(reference.dtype)
    block.load_state_dict(dict(values))
    return block.train(like.training)


def _random_inputs(values: Mapping[str, Tensor], sources: Mapping[str, Source], seed: int) -> dict[str, Tensor]:
    """Input weights of new neurons, as spread as the shared lane's. Their outputs stay zero, and so the function stays.

    With zeros on both sides no gradient would ever reach them. Lanes of equal width start alike.
    """
    drawn = {}
    for name, source in sources.items():
        if source.is_new and name.endswith(f"{INPUT_LINEAR}.weight"):
            like, generator = values[f"shared.{INPUT_LINEAR}.weight"], torch.Generator().manual_seed(seed)
            drawn[name] = torch.randn(values[name].shape, generator=generator).to(like) * like.std()
    return drawn


def _fresh_lanes(dense: Mapping[str, Tensor], plan: SharingPlan, name: str, seed: int) -> dict[str, Tensor]:
    """Lanes by ``init: svd`` or ``init: random`` from the tensors of a dense block."""
    lanes = lanes_by(plan, name, _hidden(plan, name))
    generator = torch.Generator().manual_seed(seed_of(seed, "lanes", name))
    return (
        _svd_lanes(dense, lanes, plan.energy_shares, generator)
        if plan.init == "svd"
        else _random_lanes(dense, lanes, generator)
    )


def _svd_lanes(
    weights: Mapping[str, Tensor], lanes: Lanes, energy_shares: tuple[float, ...], generator: torch.Generator
) -> dict[str, Tensor]:
    """The published energy-driven initialisation (paper, Section 3.4): lanes from the SVD of W = W_out W_in.

    The top components, split as sqrt(S) on both sides, fill the shared lane; each group's private lane gets the residual
    scaled by its energy share. W has at most d components where the lanes have h neurons, so the components are divided in
    proportion to the lanes' widths, and neurons beyond them start with random inputs and zero outputs. Ignores the
    activation, so the model's function changes: that is the published method.
    """
    w_in, w_out = weights[f"{INPUT_LINEAR}.weight"].double(), weights[f"{OUTPUT_LINEAR}.weight"].double()
    u, s, vh = torch.linalg.svd(w_out @ w_in, full_matrices=False)
    top = max(1, round(len(s) * len(lanes["shared."].neurons) / w_in.shape[0]))
    values = {f"shared.{OUTPUT_BIAS}": weights[OUTPUT_BIAS].clone()}
    for (prefix, lane), share in zip(lanes.items(), (None, *energy_shares), strict=True):
        part = slice(None, top) if share is None else slice(top, None)
        scaled = s[part] * (1.0 if share is None else share)
        values |= _lane_of_components(prefix, u[:, part], scaled, vh[part], len(lane.neurons), weights, generator)
    return values


def _lane_of_components(
    prefix: str, u: Tensor, s: Tensor, vh: Tensor, width: int, weights: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """A lane of ``width`` neurons whose linear equivalent is u diag(s) vh, cut to the top ``width`` components."""
    w_in = weights[f"{INPUT_LINEAR}.weight"]
    rank = min(width, len(s))
    root = s[:rank].sqrt()
    incoming = torch.randn(width, w_in.shape[1], generator=generator).to(w_in) * w_in.std()
    incoming[:rank] = (root[:, None] * vh[:rank]).to(w_in)
    outgoing = torch.zeros(u.shape[0], width, dtype=w_in.dtype, device=w_in.device)
    outgoing[:, :rank] = (u[:, :rank] * root).to(w_in)
    return {
        f"{prefix}{INPUT_LINEAR}.weight": incoming,
        f"{prefix}{INPUT_LINEAR}.bias": torch.zeros(width, dtype=w_in.dtype, device=w_in.device),
        f"{prefix}{OUTPUT_LINEAR}.weight": outgoing,
    }


def _random_lanes(weights: Mapping[str, Tensor], lanes: Lanes, generator: torch.Generator) -> dict[str, Tensor]:
    """Control: lanes drawn afresh with the mean and spread of the dense block's tensors."""
    values = {f"shared.{OUTPUT_BIAS}": weights[OUTPUT_BIAS].clone()}
    for prefix, lane in lanes.items():
        for name, dim in _NEURON_DIMENSIONS.items():
            dense = weights[name]
            shape = [len(lane.neurons) if each == dim else size for each, size in enumerate(dense.shape)]
            values[f"{prefix}{name}"] = torch.randn(shape, generator=generator).to(dense) * dense.std() + dense.mean()
    return values
