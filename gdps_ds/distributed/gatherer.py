"""The distributed gradient gatherer: hooks -> per-language sketches -> one all-reduce.

For every linear of every candidate block, a forward hook projects the input activations and a hook on the output projects
the output gradients; their per-utterance products are summed by language and fold. Nothing reads ``.grad``, so the result
does not depend on the ZeRO stage, and sums over utterances do not depend on the world size or on how batches were made up.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from gdps_ds.analysis.sketch import HALVES, SiteSketch, Sketches, random_projection
from gdps_ds.config import MineConfig
from gdps_ds.distributed.comm import Communicator
from gdps_ds.model.families import INPUT_LINEAR, OUTPUT_LINEAR, after_adaptor, route_of
from gdps_ds.model.routing import Router

ROLES = (INPUT_LINEAR, OUTPUT_LINEAR)


@dataclass(frozen=True)
class _Watched:
    """What the hooks need to know about the current micro-batch.

    Attributes:
        weights: by number of frames T, (B, T, 1) the scale at real frames and zero at padded ones; the adaptor's blocks
            see fewer frames than the encoder's.
        languages: (B,) language.
        slots: (B,) language * folds + fold.
        halves: (B,) language * 2 + fold modulo 2.
    """

    weights: Mapping[int, Tensor]
    languages: Tensor
    slots: Tensor
    halves: Tensor

    def of_rows(self, rows: Tensor) -> _Watched:
        """What a private lane sees: only its group's utterances."""
        weights = {frames: weight[rows] for frames, weight in self.weights.items()}
        return _Watched(weights, self.languages[rows], self.slots[rows], self.halves[rows])


class GradientGatherer:
    """Accumulates sketches on this rank while attached; :meth:`reduce` adds them up over ranks.

    Args:
        model: the module whose blocks are watched (partitioned or not).
        sites: names of feed-forward blocks or lanes, in the same order on every rank.
        languages: order of the language axis.
        settings: sketch size and folds.
        seed: run seed; projections are drawn from (seed, linear, role), the same on every rank.
        exact: sites whose full gradient per language is kept as well; for single layers and as the tests' oracle.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[str],
        languages: Sequence[str],
        settings: MineConfig,
        seed: int,
        device: torch.device,
        exact: Sequence[str] = (),
    ) -> None:
        self.sites = tuple(sites)
        self.languages = tuple(languages)
        self.seed = seed
        self._folds = settings.folds
        self._device = device
        self._config = getattr(model, "config", None)
        self._watched: _Watched | None = None
        slots = len(languages) * settings.folds
        self._counts = torch.zeros(2, slots, dtype=torch.float64)  # target tokens, utterances
        self._linears: dict[str, _LinearSketch] = {}
        self._neurons: dict[str, Tensor] = {}
        for site in self.sites:
            block, route = model.get_submodule(site), route_of(model, site)
            hidden = cast(nn.Linear, block.get_submodule(INPUT_LINEAR)).out_features
            self._neurons[site] = torch.zeros(len(languages) * HALVES, settings.sketch, hidden, device=device)
            for role in ROLES:
                self._linears[f"{site}.{role}"] = _LinearSketch(
                    cast(nn.Linear, block.get_submodule(role)),
                    f"{site}.{role}",
                    settings.sketch,
                    slots,
                    self._neurons[site],
                    seed,
                    hidden_out=role == INPUT_LINEAR,
                    exact_languages=len(languages) if site in exact else 0,
                    route=route,
                )

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on inside, all of them gone outside."""
        handles = [sketch.linear.register_forward_hook(self._forward_hook(sketch)) for sketch in self._linears.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._watched = None

    def watch(self, languages: Tensor, folds: Tensor, mask: Tensor, tokens: Tensor, scale: float = 1.0) -> None:
        """Announce the next micro-batch: language, fold and target tokens (B,), frame mask (B, T), on the host.

        ``scale`` turns the gradients of the loss that will be differentiated into those of the summed token loss; it
        undoes loss scaling, accumulation and token averaging.
        """
        slots = languages * self._folds + folds
        self._counts.index_add_(1, slots, torch.stack([tokens.double(), torch.ones_like(tokens, dtype=torch.float64)]))
        indices = (languages, slots, languages * HALVES + folds % HALVES)
        masks = [mask]
        if self._config is not None:
            frames = torch.arange(int(after_adaptor(torch.tensor(mask.shape[1]), self._config)))
            masks.append(frames < after_adaptor(mask.sum(1), self._config)[:, None])
        weights = {each.shape[1]: each.unsqueeze(-1).float().to(self._device) * scale for each in masks}
        self._watched = _Watched(weights, *(index.to(self._device) for index in indices))

    def reduce(self, comm: Communicator, neurons: bool = True) -> Sketches:
        """Sum over ranks: counts and core sketches in one collective, then neuron sketches, unless left to
        :meth:`with_neurons`. Ranks without data add zeros; the order is that of the sites, on every rank.

        Raises:
            ValueError: on every rank, naming the site, if a gradient was not finite.
        """
        shape = (len(self.languages), self._folds)
        # Counts are whole numbers: exact in fp32 up to 2^24 tokens a slot, and beyond in the halves they are sent as.
        tensors = [*_exact_halves(self._counts), *(self._linears[name].core for name in self._names(self.sites))]
        high, low, *cores = _sum_flat(comm, tensors)
        tokens, utterances = (high + low).reshape(2, *shape)
        sites = {}
        for number, site in enumerate(self.sites):
            core = np.stack([part.reshape(*shape, *part.shape[1:]) for part in cores[2 * number : 2 * number + 2]])
            if not np.isfinite(core).all():
                raise ValueError(
                    f"mining met a gradient that is not finite at '{site}'; lower the loss scale or mine in a pass"
                )
            sites[site] = SiteSketch(self._neurons[site].shape[2], core)
        sketches = Sketches(self.languages, tokens, utterances, sites, self.seed)
        return self.with_neurons(sketches, self.sites, comm) if neurons else sketches

    def with_neurons(self, sketches: Sketches, sites: Sequence[str], comm: Communicator) -> Sketches:
        """Add the neuron sketches of some sites, summed over ranks; the others' never leave their rank."""
        sites = [site for site in self.sites if site in sites]
        shape = (len(self.languages), HALVES)
        updated = dict(sketches.sites)
        for site, neurons in zip(sites, _sum_flat(comm, [self._neurons[site] for site in sites]), strict=True):
            by_neuron = np.ascontiguousarray(neurons.transpose(0, 2, 1))
            updated[site] = replace(updated[site], neurons=by_neuron.reshape(*shape, *by_neuron.shape[1:]))
        return replace(sketches, sites=updated)

    def exact(self, site: str, comm: Communicator) -> tuple[np.ndarray, np.ndarray]:
        """Full gradients of the summed token loss of a site in ``exact``: (L, h, d) and (L, d, h), float64."""
        gradients = [self._linears[name].gradients for name in self._names([site])]
        first, second = _sum_flat(comm, [gradient for gradient in gradients if gradient is not None])
        return first, second

    def collapse(self, comm: Communicator) -> None:
        """Add up the sums of all ranks on rank 0; the others go on from zero. Collective.

        Nothing is counted twice or lost, and a run that goes on from rank 0's sums, at the same number of ranks, adds the same
        terms in the same order as the one that has collapsed them. Where it has not at that update (a signal saves where
        nothing else would), the order of fp32 sums over ranks is another one, and the last bits may be.

        What it sends is an all-reduce of the sums, tensor by tensor: of k x k for each linear, language and fold, and of k x h
        for each block, language and half; .23 GB for SeamlessM4T-Medium with four languages, 5.8 GB with a hundred.
        """
        for tensor in self.state().values():
            total = comm.sum(tensor)
            tensor.copy_(total) if comm.is_main else tensor.zero_()

    def state(self) -> dict[str, Tensor]:
        """This rank's sums; rank 0's go into checkpoints."""
        cores = {f"{name}.core": sketch.core for name, sketch in self._linears.items()}
        gradients = {f"{name}.gradients": s.gradients for name, s in self._linears.items() if s.gradients is not None}
        return {"counts": self._counts} | cores | gradients | {f"{site}.neurons": each for site, each in self._neurons.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the sums of :meth:`state`.

        Raises:
            ValueError: they belong to other sites or sketch settings.
        """
        own = self.state()
        if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in tensors.items()}:
            raise ValueError("the checkpoint's mining sums are of other sites or another mine.sketch, mine.folds")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    @staticmethod
    def _names(sites: Sequence[str]) -> list[str]:
        return [f"{site}.{role}" for site in sites for role in ROLES]

    def _forward_hook(self, sketch: _LinearSketch) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            watched = self._watched
            if watched is None or not output.requires_grad:
                return  # evaluation, or the first, gradient-free pass of re-entrant activation checkpointing
            if sketch.route is not None:
                router, group = sketch.route
                watched = watched.of_rows(router.rows(group))
            seen = watched
            activations = inputs[0].detach()  # kept by autograd anyway, for the weight's gradient
            output.register_hook(lambda gradient: sketch.add(activations, gradient.detach(), seen))

        return hook


class _LinearSketch:
    """Sums of one linear layer: its core sketch, and what it adds to the block's neuron sketch.

    With ``hidden_out`` the layer's outputs are the hidden neurons (d -> h) and its neuron sketch is
    D^T (X P_in^T + 1 omega^T), the bias counted as one more input; otherwise its inputs are (h -> d), and it is
    X^T (D P_out^T).

    Attributes:
        core: (slots, k, k). gradients: (languages, d_out, d_in), or None if not exact.
    """

    def __init__(
        self,
        linear: nn.Linear,
        name: str,
        k: int,
        slots: int,
        neurons: Tensor,
        seed: int,
        *,
        hidden_out: bool,
        exact_languages: int,
        route: tuple[Router, int] | None,
    ) -> None:
        self.linear = linear
        self.route = route
        self._hidden_out = hidden_out
        self._neurons = neurons  # (languages * 2, k, h), shared with the block's other linear
        device = neurons.device
        d_in, d_out = linear.in_features, linear.out_features
        # Transposed once, (d x k), so that projecting is a plain product.
        self._p_in = random_projection(k, d_in, seed, name, "in").T.contiguous().to(device)
        self._p_out = random_projection(k, d_out, seed, name, "out").T.contiguous().to(device)
        self._omega = random_projection(k, 1, seed, name, "bias").to(device)
        self.core = torch.zeros(slots, k, k, device=device)
        self.gradients = torch.zeros(exact_languages, d_out, d_in, device=device) if exact_languages else None

    @torch.no_grad()
    def add(self, activations: Tensor, gradient: Tensor, watched: _Watched) -> None:
        """Count a micro-batch: activations (B, T, d_in) and output gradients (B, T, d_out).

        Only the d side of the layer is projected frame by frame. The h side is projected once an utterance, from its
        neuron sketch: h k^2 instead of T h k operations, and utterances have more frames than k. That sketch is held as
        (k x h), the layout in which its product is several times faster than in (h x k).
        """
        weights = watched.weights[gradient.shape[1]]
        with torch.autocast(gradient.device.type, enabled=False):  # fp32 whatever the precision of the model
            activations, gradient = activations.float(), gradient.float()
            # Mask and scale go into the thin factor: nothing of the hidden width is copied.
            if self._hidden_out:
                neurons = ((activations @ self._p_in) * weights).transpose(1, 2) @ gradient
                self.core.index_add_(0, watched.slots, (neurons @ self._p_out).transpose(1, 2))
                neurons += self._omega * (weights.transpose(1, 2) @ gradient)
            else:
                neurons = ((gradient @ self._p_out) * weights).transpose(1, 2) @ activations
                self.core.index_add_(0, watched.slots, neurons @ self._p_in)
            self._neurons.index_add_(0, watched.halves, neurons)
            if self.gradients is not None:
                weighted = (gradient * weights).transpose(1, 2)
                self.gradients.index_add_(0, watched.languages, weighted @ activations)


def _exact_halves(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Whole float64 numbers as two fp32 tensors that sums over ranks keep exact: multiples of 2^20, and the rest."""
    high = torch.floor(counts / 2**20) * 2**20
    return high.float(), (counts - high).float()


def _sum_flat(comm: Communicator, tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Sums over ranks of fp32 tensors in one collective, as float64 arrays of their shapes."""
    if not tensors:
        return []
    flat = comm.sum(torch.cat([tensor.flatten().to(comm.device) for tensor in tensors])).double().cpu()
    parts = flat.split([math.prod(tensor.shape) for tensor in tensors])
    return [part.view(tensor.shape).numpy() for part, tensor in zip(parts, tensors, strict=True)]
