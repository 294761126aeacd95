"""The distributed gradient gatherer: hooks -> per-language sketches -> one all-reduce.

For every linear of every candidate block, a forward hook projects the input activations and a hook on the output projects the
output gradients; their per-utterance products are summed by language and fold. Nothing reads ``.grad``, so the result does
not depend on the ZeRO stage, and sums over utterances do not depend on the world size or on how batches were made up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gdps_ds.analysis.sketch import HALVES, SiteSketch, Sketches, sign_projection
from gdps_ds.config import MineConfig
from gdps_ds.distributed.comm import Communicator
from gdps_ds.model.families import INPUT_LINEAR, OUTPUT_LINEAR


@dataclass(frozen=True)
class _Watched:
    """What the hooks need to know about the current micro-batch.

    Attributes:
        mask: (B, T, 1) float, zero at padded frames.
        slots: (B,) language * folds + fold.
        halves: (B,) language * 2 + fold modulo 2.
        scale: factor from the incoming gradients to those of the summed token loss.
    """

    mask: Tensor
    slots: Tensor
    halves: Tensor
    scale: float


class GradientGatherer:
    """Accumulates sketches on this rank while attached; :meth:`reduce` adds them up over ranks.

    Args:
        model: the module whose blocks are watched (partitioned or not).
        sites: names of feed-forward blocks, in the same order on every rank.
        languages: order of the language axis.
        settings: sketch size and folds.
        seed: run seed; projections are drawn from (seed, linear, role), the same on every rank.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[str],
        languages: Sequence[str],
        settings: MineConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        self.sites = tuple(sites)
        self.languages = tuple(languages)
        self.seed = seed
        self._folds = settings.folds
        self._device = device
        self._watched: _Watched | None = None
        slots = len(languages) * settings.folds
        self._tokens = torch.zeros(slots, dtype=torch.float64)
        self._utterances = torch.zeros(slots, dtype=torch.float64)
        self._linears: dict[str, _LinearSketch] = {}
        for site in self.sites:
            block = model.get_submodule(site)
            for role in (INPUT_LINEAR, OUTPUT_LINEAR):
                name = f"{site}.{role}"
                self._linears[name] = _LinearSketch(
                    cast(nn.Linear, block.get_submodule(role)),
                    name,
                    settings.sketch,
                    slots,
                    len(languages) * HALVES,
                    seed,
                    device,
                    hidden_out=role == INPUT_LINEAR,
                )

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on inside, all of them gone outside."""
        handles = [sketch.linear.register_forward_hook(self._forward_hook(sketch)) for sketch in self._linears.values()]
        try:
            yield
        finally:
            _remove(handles)
            self._watched = None

    def watch(self, languages: Tensor, folds: Tensor, mask: Tensor, tokens: Tensor, scale: float = 1.0) -> None:
        """Announce the next micro-batch: language, fold and target tokens (B,), frame mask (B, T), on the host.

        ``scale`` turns the gradients of the loss that will be differentiated into those of the summed token loss; it undoes
        loss scaling, accumulation and token averaging.
        """
        slots = languages * self._folds + folds
        self._tokens.index_add_(0, slots, tokens.double())
        self._utterances.index_add_(0, slots, torch.ones_like(tokens, dtype=torch.float64))
        halves = languages * HALVES + folds % HALVES
        self._watched = _Watched(
            mask.unsqueeze(-1).float().to(self._device), slots.to(self._device), halves.to(self._device), scale
        )

    def reduce(self, comm: Communicator) -> Sketches:
        """Sum over ranks, one flat buffer a linear, in the fixed order of the sites; ranks without data add zeros."""
        shape = (len(self.languages), self._folds)
        tokens, utterances = (comm.sum(counts).cpu().numpy().reshape(shape) for counts in (self._tokens, self._utterances))
        sites = {}
        for site in self.sites:
            parts = [self._linears[f"{site}.{role}"].reduced(comm) for role in (INPUT_LINEAR, OUTPUT_LINEAR)]
            core = np.stack([core.reshape(*shape, *core.shape[1:]) for core, _ in parts])
            neurons = parts[0][1] + parts[1][1]
            sites[site] = SiteSketch(core, neurons.reshape(len(self.languages), HALVES, *neurons.shape[1:]))
        return Sketches(self.languages, tokens, utterances, sites, self.seed)

    def _forward_hook(self, sketch: _LinearSketch) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            watched = self._watched
            if watched is None or not output.requires_grad:
                return  # the first, gradient-free pass of re-entrant activation checkpointing, or evaluation
            activations = inputs[0].detach()
            projected = sketch.project_input(activations, watched.mask)

            def on_gradient(gradient: Tensor) -> None:
                sketch.add(activations, projected, gradient.detach(), watched)

            output.register_hook(on_gradient)

        return hook


class _LinearSketch:
    """Sums of one linear layer: its core sketch, and its share of the block's neuron sketch.

    With ``hidden_out`` the layer's outputs are the hidden neurons (d -> h) and its neuron sketch is D^T (X P_in^T + 1 omega^T),
    the bias counted as one more input; otherwise its inputs are (h -> d), and it is X^T (D P_out^T).
    """

    def __init__(
        self,
        linear: nn.Linear,
        name: str,
        k: int,
        slots: int,
        halves: int,
        seed: int,
        device: torch.device,
        *,
        hidden_out: bool,
    ) -> None:
        self.linear = linear
        self._hidden_out = hidden_out
        # Transposed once, (d x k), so that projecting is a plain product.
        self._p_in = sign_projection(k, linear.in_features, seed, name, "in").T.contiguous().to(device)
        self._p_out = sign_projection(k, linear.out_features, seed, name, "out").T.contiguous().to(device)
        self._omega = sign_projection(k, 1, seed, name, "bias").T.contiguous().to(device)
        hidden = linear.out_features if hidden_out else linear.in_features
        self._core = torch.zeros(slots, k, k, device=device)
        self._neurons = torch.zeros(halves, hidden, k, device=device)

    def project_input(self, activations: Tensor, mask: Tensor) -> Tensor:
        """(B, T, d_in) -> (B, T, k) in fp32, zero at padding."""
        with _full_precision(activations):
            return (activations.float() @ self._p_in) * mask

    @torch.no_grad()
    def add(self, activations: Tensor, projected: Tensor, gradient: Tensor, watched: _Watched) -> None:
        with _full_precision(gradient):
            gradient = gradient.float()
            # The mask and the scale go into the thin factors: nothing of the hidden width is copied.
            weights = watched.mask * watched.scale
            out = (gradient @ self._p_out) * weights
            self._core.index_add_(0, watched.slots, out.transpose(1, 2) @ projected)
            if self._hidden_out:
                neurons = gradient.transpose(1, 2) @ ((projected + self._omega) * weights)
            else:
                neurons = activations.float().transpose(1, 2) @ out
            self._neurons.index_add_(0, watched.halves, neurons)

    def reduced(self, comm: Communicator) -> tuple[np.ndarray, np.ndarray]:
        """Core (slots, k, k) and neuron (halves, h, k) sums over ranks as float64."""
        flat = comm.sum(torch.cat([self._core.flatten(), self._neurons.flatten()])).double().cpu()
        core, neurons = flat.split([self._core.numel(), self._neurons.numel()])
        return core.view(self._core.shape).numpy(), neurons.view(self._neurons.shape).numpy()


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Sketches are accumulated in fp32 whatever the precision of the model."""
    return torch.autocast(tensor.device.type, enabled=False)


def _remove(handles: Sequence[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
