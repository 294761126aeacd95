"""Comparing fp32 weights with the parameters that are made of them."""

from __future__ import annotations

import pytest
import torch

from gdps_ds.distributed.shards import equal_to_rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [2.5e-8, 1e-6, 1e-3, 1.0, 100.0])
def test_rounding_is_told_from_other_values(dtype: torch.dtype, size: float) -> None:
    """fp16 has a constant step of 6e-8 below 6e-5, where values of new biases lie."""
    exact = size * torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert equal_to_rounding(exact, exact.to(dtype))
    assert equal_to_rounding(exact[:0], exact[:0].to(dtype))
    if size >= 1e-3 or dtype != torch.float16:
        assert not equal_to_rounding(exact, exact.roll(1).to(dtype))
        assert not equal_to_rounding(exact, -exact.to(dtype))
