"""What mining costs, on a speech encoder of SeamlessM4T-Medium's block size (d = 1024, h = 4096), one thread.

Time per layer does not depend on how many layers there are, so two conformer layers stand for the twelve; the optimiser's
step is left out, which makes the ratio larger, not smaller.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import SeamlessM4TConfig
from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TSpeechEncoder

from gdps_ds.config import MineConfig
from gdps_ds.distributed.gatherer import GradientGatherer
from gdps_ds.model.families import set_training_mode
from tests.benchmarks.timing import ratio

D, H, LAYERS = 1024, 4096, 2
LANGUAGES = ("aeb", "bem", "est", "gle")
UTTERANCES, FRAMES = 8, 200
SETTINGS = MineConfig()
SITES = [f"encoder.layers.{layer}.ffn2" for layer in range(LAYERS)]


def encoder() -> nn.Module:
    torch.manual_seed(0)
    config = SeamlessM4TConfig(hidden_size=D, speech_encoder_intermediate_size=H, speech_encoder_layers=LAYERS)
    config.speech_encoder_layerdrop = 0.0
    model = SeamlessM4TSpeechEncoder(config)
    set_training_mode(model, True)
    return model


def measure() -> dict[str, float]:
    model = encoder()
    features, mask = torch.randn(UTTERANCES, FRAMES, 160), torch.ones(UTTERANCES, FRAMES, dtype=torch.long)
    languages = torch.arange(UTTERANCES) % len(LANGUAGES)
    gatherer = GradientGatherer(model, SITES, LANGUAGES, SETTINGS, 1, torch.device("cpu"))

    def loss() -> Tensor:
        """(B,) one number an utterance."""
        return model(features, attention_mask=mask).last_hidden_state.square().mean((1, 2))

    def step() -> None:
        loss().sum().backward()
        model.zero_grad()

    def mined_step() -> None:
        with gatherer.attached():
            gatherer.watch(languages, torch.zeros_like(languages), mask, torch.full_like(languages, 10))
            step()

    def backward_per_language() -> None:
        """The usual way: one backward pass a language into ``.grad``, over one forward pass."""
        losses = loss()
        for language in range(len(LANGUAGES)):
            (losses * (languages == language)).sum().backward(retain_graph=language < len(LANGUAGES) - 1)
            model.zero_grad()

    step_ratio, usual = ratio(mined_step, step), ratio(backward_per_language, step, rounds=3)
    full = len(LANGUAGES) * 2 * D * H
    core = len(LANGUAGES) * SETTINGS.folds * 2 * SETTINGS.sketch**2
    neurons = len(LANGUAGES) * 2 * H * SETTINGS.sketch
    return {
        "step_ratio": step_ratio,
        "vs_per_language_backward": (usual - 1) / max(step_ratio - 1, 1e-3),
        "bytes_ratio_core": full / core,
        "bytes_ratio_with_neurons": full / (core + neurons),
    }
