from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdps_ds.analysis.sketch import SiteSketch, Sketches, fold_of, random_projection, seed_of, sites_of

K, ROWS, COLUMNS = 16, 40, 24


def core(gradient: torch.Tensor, seed: int) -> torch.Tensor:
    p_in, p_out = (random_projection(K, size, seed, role).double() for role, size in (("in", COLUMNS), ("out", ROWS)))
    return p_out @ gradient @ p_in.T


def test_seeds_are_the_same_on_every_machine() -> None:
    """Pinned: ranks of different machines and Python versions must draw the same projections."""
    assert seed_of(1, "layer.weight", "in") == 4694736522261274282
    assert [fold_of(f"utterance-{number}", 16) for number in range(6)] == [6, 1, 12, 2, 15, 14]
    torch.testing.assert_close(random_projection(2, 3, 1, "x"), torch.tensor(PROJECTION), atol=1e-6, rtol=0)


PROJECTION = [[0.571847, -0.3424094, -1.0274954], [-0.861564, -0.8478924, -0.1969415]]


def test_folds_are_about_equal() -> None:
    counts = np.bincount([fold_of(f"id-{number}", 8) for number in range(8000)], minlength=8)
    assert abs(counts - 1000).max() < 150


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(-3, 3), st.floats(-3, 3))
def test_sketches_are_linear(seed: int, a: float, b: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(core(a * left + b * right, seed), a * core(left, seed) + b * core(right, seed))


def test_inner_products_are_unbiased_with_the_predicted_variance() -> None:
    """E<C_a, C_b> = <G_a, G_b>, and the variance of :func:`random_projection`'s docstring. Checked for rank-one gradients,
    whose two sides are projected vectors."""
    generator = torch.Generator().manual_seed(0)
    u, v, x, y = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (ROWS, ROWS, COLUMNS, COLUMNS))
    draws = torch.stack([(core(torch.outer(u, x), s) * core(torch.outer(v, y), s)).sum() for s in range(3000)])
    truth = (u @ v) * (x @ y)

    def second_moment(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        n, squares, product = len(a), a.square().sum() * b.square().sum(), a @ b
        variance = (n - K) / (K * (n - 1) * (n + 2)) * (n * squares + (n - 2) * product**2)
        return variance + product**2

    predicted = second_moment(u, v) * second_moment(x, y) - truth**2
    assert abs(draws.mean() - truth) < 4 * (predicted / len(draws)).sqrt()
    assert draws.var().item() == pytest.approx(predicted.item(), rel=0.15)


@pytest.mark.parametrize(("rows", "columns"), [(8, 32), (32, 32), (48, 16), (5, 1)])
def test_projections_are_scaled_rotations_with_the_identity_as_their_mean(rows: int, columns: int) -> None:
    """Orthogonal rows; with at least as many rows as columns nothing is lost at all."""
    p = random_projection(rows, columns, 3, "p").double()
    if rows >= columns:
        torch.testing.assert_close(p.T @ p, torch.eye(columns, dtype=torch.float64), atol=1e-6, rtol=0)
    else:
        torch.testing.assert_close(p @ p.T, torch.eye(rows, dtype=torch.float64) * columns / rows, atol=1e-6, rtol=0)
    drawn = torch.stack([random_projection(rows, columns, seed).double() for seed in range(400)])
    torch.testing.assert_close((drawn.mT @ drawn).mean(0), torch.eye(columns, dtype=torch.float64), atol=0.2, rtol=0)


def test_sites_are_ordered_by_number() -> None:
    assert sites_of(["layers.10.ffn2", "layers.9.ffn2", "layers.9.ffn1"]) == (
        "layers.9.ffn1",
        "layers.9.ffn2",
        "layers.10.ffn2",
    )


def test_a_file_gives_the_sketches_back(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sites = {
        "layers.9.ffn2": SiteSketch(5, generator.normal(size=(2, 2, 3, 4, 4)), generator.normal(size=(2, 2, 5, 4))),
        "layers.10.ffn2": SiteSketch(7, generator.normal(size=(2, 2, 3, 4, 4))),
    }
    sketches = Sketches(("aeb", "bem"), np.ones((2, 3)), np.arange(6.0).reshape(2, 3), sites, seed=7)
    sketches.save(tmp_path / "sketches.safetensors")
    loaded = Sketches.load(tmp_path / "sketches.safetensors")
    assert (loaded.languages, loaded.seed, list(loaded.sites)) == (sketches.languages, 7, list(sites))
    np.testing.assert_array_equal(loaded.utterances, sketches.utterances)
    np.testing.assert_array_equal(loaded.sites["layers.9.ffn2"].neurons, sites["layers.9.ffn2"].neurons)
    assert loaded.sites["layers.10.ffn2"].neurons is None
    assert [site.hidden for site in loaded.sites.values()] == [5, 7]
