"""Linear sketches of a linear layer's gradient, and the container that holds those of a whole run.

A layer with input activations X (tokens x d_in) and output gradients D (tokens x d_out) has the weight gradient
G = D^T X. Tokens partition by utterance, so one backward pass of a mixed batch holds every language's gradient. Both
sketches are linear in G: they add up over utterances, micro-batches and ranks, and only the *sum* is ever stored.

- *Core sketch* C = P_out G P_in^T (k x k) with E[P^T P] = I keeps inner products, E<C_a, C_b> = <G_a, G_b>
  (random projections of gradients: TRAK, 2303.14186; LoGra, 2405.13954).
- *Neuron sketch* Y = Gamma Omega (h x k), where row j of Gamma (h x (2 d + 1)) stacks everything that hidden neuron j
  owns: row j of W_in, b_in[j] and column j of W_out (range finder: Halko, Martinsson & Tropp, 0909.4061).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from gdps_ds.files import atomic_path

HALVES = 2
"""Neuron sketches are kept per half of the folds (fold modulo 2), so that noise can be told from signal."""


def seed_of(*parts: object) -> int:
    """A 63-bit seed from names: the same on every rank, machine and Python (unlike ``hash``)."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def fold_of(utterance_id: str, folds: int) -> int:
    """The fold of an utterance: a stable hash of its id modulo ``folds``."""
    return seed_of("fold", utterance_id) % folds


def random_projection(rows: int, columns: int, *seed_parts: object) -> Tensor:
    """A random (rows x columns) float32 matrix P with E[P^T P] = I: scaled rows of a random rotation.

    Orthogonal rows waste nothing on measuring the same direction twice. With k rows and n > k columns,

        E <P a, P b> = <a, b>,    Var <P a, P b> = (n - k) / (k (n - 1) (n + 2)) * (n |a|^2 |b|^2 + (n - 2) <a, b>^2),

    about (1 - k / n) times that of independent entries; with n <= k, P^T P = I exactly. Drawn on the CPU in float64 from
    a seed made of names, so every rank has the same matrix. The signs of R make Q uniform (Mezzadri 2007, math-ph/0609050).
    """
    generator = torch.Generator().manual_seed(seed_of(*seed_parts))
    tall = torch.randn(max(rows, columns), min(rows, columns), generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal().sign()
    return (q if rows >= columns else q.T * (columns / rows) ** 0.5).float()


@dataclass(frozen=True)
class SiteSketch:
    """Gradient sums of one feed-forward block.

    Attributes:
        hidden: h, hidden neurons of the block.
        core: (2, L, F, k, k) float64; index 0 is the input linear (d -> h), 1 the output linear (h -> d).
        neurons: (L, 2, h, k) float64 per half of the folds, or None where neuron sketches were not taken.
    """

    hidden: int
    core: np.ndarray
    neurons: np.ndarray | None = None


@dataclass(frozen=True)
class Sketches:
    """What one mining pass found: sums over utterances, never divided.

    Attributes:
        languages: the L source languages, in the order of every language axis.
        tokens: (L, F) target tokens behind each sum; the gradient per token is ``core / tokens``.
        utterances: (L, F) utterances behind each sum.
        sites: site name -> :class:`SiteSketch`, in sorted order.
        seed: the run seed of the projections.
    """

    languages: tuple[str, ...]
    tokens: np.ndarray
    utterances: np.ndarray
    sites: dict[str, SiteSketch]
    seed: int

    def save(self, path: Path) -> None:
        """Write as safetensors (no pickle), whole or not at all; :meth:`load` reads it back."""
        tensors = {"tokens": self.tokens, "utterances": self.utterances}
        for name, site in self.sites.items():
            tensors[f"core/{name}"] = site.core
            if site.neurons is not None:
                tensors[f"neurons/{name}"] = site.neurons
        hidden = json.dumps({name: site.hidden for name, site in self.sites.items()})
        metadata = {"languages": " ".join(self.languages), "seed": str(self.seed), "hidden": hidden}
        with atomic_path(path) as aside:
            save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, aside, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> Sketches:
        with safe_open(path, framework="numpy") as file:
            metadata, keys = file.metadata(), set(file.keys())
            hidden = json.loads(metadata["hidden"])
            sites = {
                name: SiteSketch(
                    hidden[name],
                    file.get_tensor(f"core/{name}"),
                    file.get_tensor(f"neurons/{name}") if f"neurons/{name}" in keys else None,
                )
                for name in sites_of(tuple(hidden))
            }
            return cls(
                tuple(metadata["languages"].split()),
                file.get_tensor("tokens"),
                file.get_tensor("utterances"),
                sites,
                int(metadata["seed"]),
            )


def sites_of(names: Sequence[str]) -> tuple[str, ...]:
    """Sites in the one order that every rank uses: by layer number, then by name."""
    return tuple(
        sorted(set(names), key=lambda name: [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")])
    )
