"""A feed-forward block split into one shared lane and one private lane per language group.

``y = W_out act(W_in x + b_in) + b_out`` is a sum over hidden neurons, so any partition of the neurons into a shared part S
and a private part P gives ``y = shared(x) + private(x) + b_out`` exactly. Each group owns a copy of the private part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gdps_ds.model.routing import Router

Activation = Callable[[Tensor], Tensor]


class Lane(nn.Module):
    """A feed-forward block of its own width; its linears are named as in ``transformers``' conformer."""

    def __init__(self, d_model: int, width: int, activation: Activation, dropout: float, *, bias: bool) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(d_model, width)
        self.intermediate_act_fn = activation
        self.intermediate_dropout = nn.Dropout(dropout)
        self.output_dense = nn.Linear(width, d_model, bias=bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden = self.intermediate_act_fn(self.intermediate_dense(hidden_states))
        return self.output_dense(self.intermediate_dropout(hidden))


class GroupedFeedForward(nn.Module):
    """Shared lane + private lanes; every utterance passes through the shared lane and its group's private lane.

    Every lane runs in every micro-batch, on zero utterances where its group is absent: each parameter then has a gradient
    on every rank, which ZeRO's bucketed reduction relies on (ranks that disagree corrupt gradients or hang).
    """

    def __init__(
        self,
        d_model: int,
        shared_width: int,
        private_widths: Sequence[int],
        *,
        activation: Activation,
        dropout: float,
        router: Router,
    ) -> None:
        super().__init__()
        if len(private_widths) != len(router.groups):
            raise ValueError(f"{len(private_widths)} private lanes for {len(router.groups)} groups")
        self.router = router
        self.shared = Lane(d_model, shared_width, activation, dropout, bias=True)
        self.private = nn.ModuleList(Lane(d_model, width, activation, dropout, bias=False) for width in private_widths)
        self.output_dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d), each utterance by its group in the router."""
        assignment = self.router.assignment(hidden_states.shape[0])
        parts = hidden_states.index_select(0, assignment.order).split(assignment.sizes)
        private = torch.cat([lane(part) for lane, part in zip(self.private, parts, strict=True)])
        return self.output_dropout(self.shared(hidden_states) + private.index_select(0, assignment.inverse))
