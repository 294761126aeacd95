"""What a split costs in every step afterwards, on a block of SeamlessM4T-Medium's size."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import SeamlessM4TConfig
from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TConformerFeedForward

from gdps_ds.model.surgery import split_model
from gdps_ds.plan import SharingPlan, SitePlan
from tests.benchmarks.timing import ratio

D, H = 1024, 4096
LANGUAGES = ("aeb", "bem", "est", "gle")
UTTERANCES, FRAMES = 8, 200


def split_block(dense: nn.Module) -> nn.Module:
    """Half of the neurons shared, two groups, ``width: preserve``; routed for a mixed batch."""
    others = tuple(range(H // 2, H))
    site = SitePlan("block", H, tuple(range(H // 2)), (others, others))
    model = nn.Module()
    model.add_module("block", copy.deepcopy(dense))
    router = split_model(model, SharingPlan(LANGUAGES, (("aeb", "gle"), ("bem", "est")), (site,)), LANGUAGES, seed=1)
    router.assign(torch.arange(UTTERANCES) % len(LANGUAGES), "cpu")
    return model.get_submodule("block")


def measure() -> dict[str, float]:
    torch.manual_seed(0)
    dense = SeamlessM4TConformerFeedForward(SeamlessM4TConfig(hidden_size=D, speech_encoder_intermediate_size=H))
    split = split_block(dense)
    x = torch.randn(UTTERANCES, FRAMES, D, requires_grad=True)

    def step(block: nn.Module) -> None:
        block(x).sum().backward()
        block.zero_grad()

    return {"step_ratio": ratio(lambda: step(split), lambda: step(dense))}
