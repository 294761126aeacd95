"""What a sketch must hold: gradients by language and fold, by autograd alone, of the very pass that is sketched."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gdps_ds.analysis.sketch import random_projection
from gdps_ds.data.collate import Batch
from gdps_ds.model.families import INPUT_LINEAR, OUTPUT_LINEAR


class PlainGradients:
    """Gives each linear of some blocks one weight of zeros more for each slot (language and fold): y + x W_slot^T.

    That changes nothing, but the gradient of W_slot is the layer's own over the utterances of the slot. It is taken in
    fp64, from the activations and output gradients that the pass itself has rounded: sketches of a pass in half precision
    are compared without the rounding of any other pass, which differs from processor to processor.
    """

    def __init__(self, model: nn.Module, sites: Sequence[str], languages: int, folds: int) -> None:
        self._folds, self._slots = folds, torch.empty(0, dtype=torch.int64)
        self._weights: dict[str, Tensor] = {}
        for name in (f"{site}.{role}" for site in sites for role in (INPUT_LINEAR, OUTPUT_LINEAR)):
            linear = model.get_submodule(name)
            zeros = torch.zeros(languages, folds, *linear.weight.shape, dtype=torch.float64, requires_grad=True)
            self._weights[name] = zeros
            linear.forward = partial(self._forward, linear, zeros)
        self.sums = {name: torch.zeros_like(zeros) for name, zeros in self._weights.items()}
        """(languages, folds, d_out, d_in) of each linear."""

    def watch(self, batch: Batch) -> None:
        """Announce the next micro-batch."""
        self._slots = batch.languages * self._folds + batch.folds

    def _forward(self, linear: nn.Linear, zeros: Tensor, states: Tensor) -> Tensor:
        output = F.linear(states, linear.weight, linear.bias)
        with torch.autocast(states.device.type, enabled=False):
            return output + torch.einsum("btd,bod->bto", states.double(), zeros.flatten(0, 1)[self._slots]).to(output.dtype)

    def take(self, scale: float = 1.0) -> None:
        """Add up what has been differentiated since the last time, ``scale`` times."""
        for name, zeros in self._weights.items():
            self.sums[name] += scale * zeros.grad
            zeros.grad = None

    def core(self, site: str, sketch: int, seed: int) -> np.ndarray:
        """(2, languages, folds, k, k) as :attr:`gdps_ds.analysis.sketch.SiteSketch.core` holds them: P_out G P_in^T."""
        cores = []
        for name in (f"{site}.{role}" for role in (INPUT_LINEAR, OUTPUT_LINEAR)):
            d_out, d_in = self.sums[name].shape[2:]
            p_out, p_in = (random_projection(sketch, size, seed, name, end) for size, end in ((d_out, "out"), (d_in, "in")))
            cores.append(p_out.double() @ self.sums[name] @ p_in.double().T)
        return torch.stack(cores).detach().numpy()
