"""PCGrad at the sites that are not split: an optimiser-side rival to sharing by gradients (Yu et al. 2020, 2001.06782).

A language is a task; its gradient is its part of the update's gradient, over all parameters of the sites taken as one
vector. Where two languages' gradients oppose each other, each loses its component along the other's. Without a conflict the
update is the ordinary one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gdps_ds.analysis.sketch import seed_of
from gdps_ds.config_file import ConfigError
from gdps_ds.data.collate import Batch
from gdps_ds.distributed.engine import Engine
from gdps_ds.model.families import INPUT_LINEAR, OUTPUT_LINEAR


def pcgrad_weights(gram: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """(L,) w with which sum_l w_l g_l is the update of Algorithm 1.

    Every projected gradient is a combination of the given ones, so inner products are all that the algorithm needs.

    Args:
        gram: (L, L) inner products of the tasks' gradients g_l.
        generator: draws the order in which a task meets the others.
    """
    tasks = len(gram)
    projected = np.eye(tasks)  # row i: the i-th projected gradient in terms of the given ones
    for task in range(tasks):
        for other in generator.permutation(tasks):
            product = projected[task] @ gram[other]
            if other != task and product < 0:
                projected[task, other] -= product / gram[other, other]
    return projected.sum(axis=0)


def require_stage_zero(settings: Mapping[str, Any], source: str) -> None:
    """Only ZeRO stage 0 keeps whole gradients on every rank.

    Raises:
        ConfigError: ``settings``, the content of the DeepSpeed file ``source``, ask for another stage.
    """
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage:
        advice = "set deepspeed to a file of stage 0 such as ds_configs/zero0.json, or leave the arm out"
        raise ConfigError(source, [f"run.arms has pcgrad, which needs ZeRO stage 0, found stage {stage}; {advice}"])


class PCGrad:
    """Replaces the gradient of the dense blocks ``sites`` in every update of an engine at ZeRO stage 0.

    Args:
        languages: L, how many there are.
        seed: the order of the projections is drawn from it and the update, the same on every rank.
    """

    def __init__(self, engine: Engine, sites: Sequence[str], languages: int, seed: int) -> None:
        self._comm = engine.comm
        self._seed = seed
        self._languages = torch.empty(0, dtype=torch.long)
        names = [f"{site}.{role}" for site in sites for role in (INPUT_LINEAR, OUTPUT_LINEAR)]
        self._linears = [cast(nn.Linear, engine.module.get_submodule(name)) for name in names]
        self._parameters = [parameter for linear in self._linears for parameter in (linear.weight, linear.bias)]
        numels = [parameter.numel() for parameter in self._parameters]
        self._gradients = torch.zeros(languages, sum(numels), device=engine.comm.device)
        parts = self._gradients.split(numels, dim=1)
        self._parts = [part.view(-1, *each.shape) for part, each in zip(parts, self._parameters, strict=True)]

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on inside, all of them gone outside."""
        handles = [
            linear.register_forward_hook(self._hook(*self._parts[2 * number : 2 * number + 2]))
            for number, linear in enumerate(self._linears)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def watch(self, batch: Batch) -> None:
        """Announce the next micro-batch."""
        self._languages = batch.languages.to(self._comm.device)

    @torch.no_grad()
    def project(self, update: int) -> None:
        """Replace ``.grad`` between the last backward pass of ``update`` and its step. Collective."""
        # DeepSpeed averages over ranks, and the loss is scaled to make that a sum.
        gradients = self._comm.sum(self._gradients) / self._comm.world_size
        gram = (gradients @ gradients.T).double().cpu().numpy()
        generator = np.random.default_rng(seed_of(self._seed, "pcgrad", update))
        merged = torch.from_numpy(pcgrad_weights(gram, generator)).to(gradients) @ gradients
        numels = [parameter.numel() for parameter in self._parameters]
        for parameter, values in zip(self._parameters, merged.split(numels), strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(values.view_as(parameter))
        self._gradients.zero_()

    def _hook(self, weight: Tensor, bias: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        """Adds up the gradients of a linear layer's (L, d_out, d_in) weight and (L, d_out) bias, language by language."""

        def add(activations: Tensor, gradient: Tensor, languages: Tensor) -> None:
            with torch.autocast(gradient.device.type, enabled=False):
                for language in languages.unique().tolist():
                    rows = languages == language
                    own = gradient[rows].float().flatten(0, 1)
                    weight[language] += own.T @ activations[rows].float().flatten(0, 1)
                    bias[language] += own.sum(0)

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                activations, languages = inputs[0].detach(), self._languages
                output.register_hook(lambda gradient: add(activations, gradient.detach(), languages))

        return hook
