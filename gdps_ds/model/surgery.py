"""Splits the feed-forward blocks that a plan names: where each tensor of the new lanes comes from, and the split itself.

:func:`lane_sources` says it once for weights *and* for Adam's moments: every parameter of a lane is a selection of neurons
of one parameter of the dense block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gdps_ds.analysis.sketch import seed_of
from gdps_ds.model.families import INPUT_LINEAR, OUTPUT_LINEAR
from gdps_ds.model.grouped_ffn import GroupedFeedForward
from gdps_ds.model.routing import Router
from gdps_ds.plan import SharingPlan, SitePlan

BLOCK_PARAMETERS = tuple(f"{linear}.{kind}" for linear in (INPUT_LINEAR, OUTPUT_LINEAR) for kind in ("weight", "bias"))


@dataclass(frozen=True)
class Source:
    """Where a parameter of a lane comes from: ``neurons`` along dimension ``dim`` of the dense block's ``name``."""

    name: str
    dim: int
    neurons: tuple[int, ...] | None

    def select(self, dense: Tensor) -> Tensor:
        """The lane's tensor, given the dense block's (a copy; None as neurons takes all of it)."""
        if self.neurons is None:
            return dense.clone()
        return dense.index_select(self.dim, torch.tensor(self.neurons, device=dense.device))


def lane_sources(site: SitePlan) -> dict[str, Source]:
    """Parameter of the split block -> its :class:`Source` in the dense block, names relative to the block."""
    lanes = {"shared": site.shared} | {f"private.{group}": neurons for group, neurons in enumerate(site.private)}
    sources = {}
    for lane, neurons in lanes.items():
        sources[f"{lane}.{INPUT_LINEAR}.weight"] = Source(f"{INPUT_LINEAR}.weight", 0, neurons)
        sources[f"{lane}.{INPUT_LINEAR}.bias"] = Source(f"{INPUT_LINEAR}.bias", 0, neurons)
        sources[f"{lane}.{OUTPUT_LINEAR}.weight"] = Source(f"{OUTPUT_LINEAR}.weight", 1, neurons)
    sources[f"shared.{OUTPUT_LINEAR}.bias"] = Source(f"{OUTPUT_LINEAR}.bias", 0, None)
    return sources


def keeps_function(plan: SharingPlan) -> bool:
    """Whether the split model computes exactly what the uniform one does."""
    return plan.width == "preserve" and plan.init == "neurons"


def build_block(
    dense: Any, weights: Mapping[str, Tensor], site: SitePlan, plan: SharingPlan, router: Router, seed: int
) -> GroupedFeedForward:
    """The split block of ``site``, initialised by ``plan.init``.

    Args:
        dense: the block that is replaced; gives the activation and the dropout, never its weights (they may be partitioned).
        weights: the dense block's full tensors by :data:`BLOCK_PARAMETERS`.
        seed: run seed of ``init: random`` and of what ``init: svd`` leaves open.
    """
    reference = weights[f"{INPUT_LINEAR}.weight"]
    with torch.device("meta"):
        block = GroupedFeedForward(
            reference.shape[1],
            len(site.shared),
            [len(neurons) for neurons in site.private],
            activation=dense.intermediate_act_fn,
            dropout=dense.intermediate_dropout.p,
            router=router,
        )
    block = block.to_empty(device=reference.device).to(reference.dtype)
    generator = torch.Generator().manual_seed(seed_of(seed, "lanes", site.name))
    values = {
        "neurons": lambda: {name: source.select(weights[source.name]) for name, source in lane_sources(site).items()},
        "svd": lambda: _svd_lanes(weights, site, plan.energy_shares, generator),
        "random": lambda: _random_lanes(weights, site, generator),
    }[plan.init]()
    block.load_state_dict(values)
    for name, parameter in block.named_parameters():
        # A lane is trained where the dense parameter that it comes from was.
        parameter.requires_grad_(dense.get_parameter(lane_sources(site)[name].name).requires_grad)
    return block.train(dense.training)


def split_model(model: nn.Module, plan: SharingPlan, languages: Sequence[str], seed: int) -> Router:
    """Split every site of ``plan`` in a plain (unpartitioned) model in place; the router that the caller must set."""
    router = Router(plan.groups, languages)
    for site in plan.sites:
        dense = model.get_submodule(site.name)
        weights = {name: dense.get_parameter(name).detach() for name in BLOCK_PARAMETERS}
        model.set_submodule(site.name, build_block(dense, weights, site, plan, router, seed))
    return router


def _svd_lanes(
    weights: Mapping[str, Tensor], site: SitePlan, energy_shares: tuple[float, ...], generator: torch.Generator
) -> dict[str, Tensor]:
    """The published energy-driven initialisation (paper, Section 3.4): lanes from the SVD of W = W_out W_in.

    The top components, split as sqrt(S) on both sides, fill the shared lane; each group's private lane gets the residual
    scaled by its energy share. W has at most d components where the lanes have h neurons, so the components are divided in
    proportion to the lanes' widths, and neurons beyond them start with random inputs and zero outputs. Ignores the
    activation, so the model's function changes: that is the published method.
    """
    w_in, w_out = weights[f"{INPUT_LINEAR}.weight"].double(), weights[f"{OUTPUT_LINEAR}.weight"].double()
    u, s, vh = torch.linalg.svd(w_out @ w_in, full_matrices=False)
    top = max(1, round(len(s) * len(site.shared) / site.hidden))
    values = _lane_of_components("shared", u[:, :top], s[:top], vh[:top], len(site.shared), weights, generator)
    values[f"shared.{OUTPUT_LINEAR}.bias"] = weights[f"{OUTPUT_LINEAR}.bias"].clone()
    for group, (neurons, share) in enumerate(zip(site.private, energy_shares, strict=True)):
        lane = f"private.{group}"
        values |= _lane_of_components(lane, u[:, top:], share * s[top:], vh[top:], len(neurons), weights, generator)
    return values


def _lane_of_components(
    lane: str, u: Tensor, s: Tensor, vh: Tensor, width: int, weights: Mapping[str, Tensor], generator: torch.Generator
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
        f"{lane}.{INPUT_LINEAR}.weight": incoming,
        f"{lane}.{INPUT_LINEAR}.bias": torch.zeros(width, dtype=w_in.dtype, device=w_in.device),
        f"{lane}.{OUTPUT_LINEAR}.weight": outgoing,
    }


def _random_lanes(weights: Mapping[str, Tensor], site: SitePlan, generator: torch.Generator) -> dict[str, Tensor]:
    """Control: lanes drawn afresh with the mean and spread of the dense block's tensors."""
    values = {}
    for name, source in lane_sources(site).items():
        like = source.select(weights[source.name])
        drawn = torch.randn(like.shape, generator=generator).to(like)
        dense = weights[source.name]
        values[name] = like if source.neurons is None else drawn * dense.std() + dense.mean()
    return values
