"""What a split costs in every step afterwards, on a block of SeamlessM4T-Medium's size."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import SeamlessM4TConfig
from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TConformerFeedForward

from gdps_ds.model.grouped_ffn import GroupedFeedForward
from gdps_ds.model.surgery import split_model
from gdps_ds.plan import SharingPlan, SitePlan
from tests.benchmarks.timing import ratio

D, H = 1024, 4096
LANGUAGES = ("aeb", "bem", "est", "gle")
UTTERANCES, FRAMES = 8, 200


class MaskedGroups(nn.Module):
    """The usual way: every group's lane computes every utterance, and a mask keeps what counts."""

    def __init__(self, split: GroupedFeedForward) -> None:
        super().__init__()
        self.split = split

    def forward(self, x: Tensor) -> Tensor:
        total = self.split.shared(x)
        for group, lane in enumerate(self.split.private):
            mask = torch.zeros(len(x), 1, 1)
            mask[self.split.router.rows(group)] = 1.0
            total = total + mask * lane(x)
        return self.split.output_dropout(total)


def split_block(dense: nn.Module) -> GroupedFeedForward:
    """Half of the neurons shared, two groups, ``width: preserve``; routed for a mixed batch."""
    others = tuple(range(H // 2, H))
    site = SitePlan("block", H, tuple(range(H // 2)), (others, others))
    model = nn.Module()
    model.add_module("block", copy.deepcopy(dense))
    router = split_model(model, SharingPlan(LANGUAGES, (("aeb", "gle"), ("bem", "est")), (site,)), LANGUAGES, seed=1)
    router.assign(torch.arange(UTTERANCES) % len(LANGUAGES), "cpu")
    block = model.get_submodule("block")
    assert isinstance(block, GroupedFeedForward)
    return block


def measure() -> dict[str, float]:
    torch.manual_seed(0)
    dense = SeamlessM4TConformerFeedForward(SeamlessM4TConfig(hidden_size=D, speech_encoder_intermediate_size=H)).eval()
    split = split_block(dense)
    masked = MaskedGroups(split)
    x = torch.randn(UTTERANCES, FRAMES, D, requires_grad=True)
    torch.testing.assert_close(masked(x), split(x))

    def step(block: nn.Module) -> None:
        block(x).sum().backward()
        block.zero_grad()

    return {
        "step_ratio": ratio(lambda: step(split), lambda: step(dense), rounds=15),
        "vs_mask_all_groups": ratio(lambda: step(masked), lambda: step(split), rounds=15),
    }
