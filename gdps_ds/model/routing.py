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
    """Holds the current :class:`Assignment`; one instance is shared by all lanes of a model.

    Args:
        groups: the plan's language groups.
        languages: the run's source languages, in the order of the indices that :meth:`assign` takes.
        fallback: a language of the groups whose lane takes the utterances of languages that are in no group.

    Raises:
        ValueError: a language belongs to no group, and there is no fallback.
    """

    def __init__(self, groups: Sequence[Sequence[str]], languages: Sequence[str], fallback: str | None = None) -> None:
        self.groups = tuple(tuple(group) for group in groups)
        group_of: dict[str | None, int] = {lang: index for index, group in enumerate(self.groups) for lang in group}
        missing = [language for language in languages if language not in group_of]
        if missing and fallback is None:
            raise ValueError(
                f"no group of the plan has {', '.join(missing)} (data.languages and the plan's groups must agree, or the plan "
                "must name a fallback)"
            )
        self._group_of_language = torch.tensor([group_of[lang if lang in group_of else fallback] for lang in languages])
        self._assignment: Assignment | None = None

    def assign(self, languages: Tensor, device: torch.device | str) -> None:
        """Route the next micro-batch by the language index of each utterance, (B,) on the host."""
        groups = self._group_of_language[languages]
        order = torch.argsort(groups, stable=True)
        sizes = tuple(torch.bincount(groups, minlength=len(self.groups)).tolist())
        self._assignment = Assignment(order.to(device), torch.argsort(order).to(device), sizes)

    def rows(self, group: int) -> Tensor:
        """The utterances of the current micro-batch that pass through a group's private lane, in the lane's order."""
        if self._assignment is None:
            raise RuntimeError("no groups are set: call Router.assign before the forward pass of a split model")
        start = sum(self._assignment.sizes[:group])
        return self._assignment.order[start : start + self._assignment.sizes[group]]

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
