"""Carries the language group of every utterance of a micro-batch to the lanes inside the model.

The lanes sit deep inside a ``transformers`` model whose ``forward`` has no argument for groups, so one
:class:`Router` is shared by all lanes of a model and set before each forward pass. It keeps its value until the next
micro-batch: activation checkpointing, which runs the forward pass again inside the backward pass, sees the same groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Assignment:
    """Utterances of a micro-batch sorted by group.

    Attributes:
        order: (B,) utterance indices, group 0 first.
        inverse: (B,) with ``x[order][inverse] == x``.
        sizes: utterances of each group, zeros included; on the host, so that lanes need no device synchronisation.
    """

    order: Tensor
    inverse: Tensor
    sizes: tuple[int, ...]

    def repeated(self, times: int) -> Assignment:
        """The assignment of a batch in which every utterance stands ``times`` times in a row, as under beam search."""
        offsets = torch.arange(times, device=self.order.device)
        order = (self.order[:, None] * times + offsets).flatten()
        return Assignment(order, torch.argsort(order), tuple(size * times for size in self.sizes))


class Router:
    """Holds the current :class:`Assignment`; one instance is shared by all lanes of a model."""

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        self.groups = tuple(tuple(group) for group in groups)
        self._assignment: Assignment | None = None

    def assign(self, groups: Sequence[int], device: torch.device | str) -> None:
        """Set the group index of each utterance of the next micro-batch.

        Raises:
            ValueError: an index is not one of the plan's groups.
        """
        indices = torch.as_tensor(groups, dtype=torch.int64)
        if indices.numel() and not (0 <= int(indices.min()) and int(indices.max()) < len(self.groups)):
            raise ValueError(
                f"an utterance has group {sorted(set(indices.tolist()))}, but the plan has groups 0..{len(self.groups) - 1}; "
                "its language belongs to no group of the plan (data.languages and plan.groups must agree)"
            )
        order = torch.argsort(indices, stable=True)
        sizes = tuple(torch.bincount(indices, minlength=len(self.groups)).tolist())
        self._assignment = Assignment(order.to(device), torch.argsort(order).to(device), sizes)

    def assignment(self, batch: int) -> Assignment:
        """The assignment of a micro-batch of ``batch`` rows (a multiple of the utterances where beams are expanded)."""
        if self._assignment is None:
            raise RuntimeError("no groups are set: call Router.assign before the forward pass of a split model")
        utterances = len(self._assignment.order)
        if batch == utterances:
            return self._assignment
        if utterances and batch % utterances == 0:
            return self._assignment.repeated(batch // utterances)
        raise RuntimeError(f"groups are set for {utterances} utterances, but the batch has {batch}")
