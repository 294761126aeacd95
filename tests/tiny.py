"""A tiny SeamlessM4T, made-up batches and recipes that the tests share."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import SeamlessM4TConfig, SeamlessM4TForSpeechToText

from gdps_ds.config import TrainConfig
from gdps_ds.data.collate import Batch
from gdps_ds.distributed.comm import Communicator
from gdps_ds.model import families
from gdps_ds.plan import SharingPlan, SitePlan

LANGUAGES = ("aeb", "bem", "est", "gle")
SITES = ("speech_encoder.encoder.layers.0.ffn2", "speech_encoder.encoder.layers.1.ffn2")
HIDDEN = 48
ALONE = Communicator(0, 1, 0, torch.device("cpu"))
"""The only rank, in this process."""

# The default initialiser range (.02) is so small at this size that an error in one block would not show in the loss.
ARCHITECTURE = {
    "hidden_size": 16,
    "speech_encoder_layers": 2, "speech_encoder_attention_heads": 2, "speech_encoder_intermediate_size": HIDDEN,
    "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 32, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "conv_depthwise_kernel_size": 7, "max_source_positions": 256, "max_position_embeddings": 64,
    "initializer_range": 0.2, "speech_encoder_dropout": 0.0, "adaptor_dropout": 0.0, "dropout": 0.0, "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}  # fmt: skip


def tiny_model(seed: int = 0, vocab_size: int = 60, checkpointing: bool = False) -> SeamlessM4TForSpeechToText:
    torch.manual_seed(seed)
    model = SeamlessM4TForSpeechToText(SeamlessM4TConfig(vocab_size=vocab_size, **ARCHITECTURE, **families.NO_LAYERDROP))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    families.keep_padding_out_of_adaptor(model)
    return model


def tiny_train(micro_batches: int = 2, **changes: object) -> TrainConfig:
    phase = {"updates": 4, "lr": 5e-3, "warmup": 2}
    return TrainConfig.model_validate({"micro_batches": micro_batches, "unify": phase, "specialise": phase} | changes)


def tiny_plan(width: str = "preserve", init: str = "neurons", sites: tuple[str, ...] = SITES[-1:]) -> SharingPlan:
    """Two groups; neurons interleaved between the lanes, so that a wrong order shows."""
    shared = tuple(range(0, HIDDEN, 2))
    others = tuple(range(1, HIDDEN, 2))
    private = (others, others) if width == "preserve" else (others[::2], others[1::2])
    return SharingPlan(
        LANGUAGES,
        (("aeb", "gle"), ("bem", "est")),
        tuple(SitePlan(site, HIDDEN, shared, private) for site in sites),
        width,
        init,
    )


def wider_plan(added: int = 24) -> SharingPlan:
    """No private lanes, but the last site has ``added`` neurons more."""
    neurons = tuple(range(HIDDEN + added))
    site = SitePlan(SITES[-1], HIDDEN, neurons[:HIDDEN], (neurons[HIDDEN:],))
    return SharingPlan(LANGUAGES, (LANGUAGES,), (site,), "added")


def random_batch(seed: int, size: int = 4, frames: int = 40, labels: int = 7, languages: Tensor | None = None) -> Batch:
    """``size`` utterances of different lengths in mixed languages."""
    generator = torch.Generator().manual_seed(1000 + seed)
    lengths = torch.randint(frames // 2, frames + 1, (size,), generator=generator)
    lengths[0] = frames
    mask = (torch.arange(frames) < lengths[:, None]).long()
    features = torch.randn(size, frames, 160, generator=generator) * mask.unsqueeze(-1)
    target_lengths = torch.randint(2, labels + 1, (size,), generator=generator)
    target_lengths[0] = labels
    target_mask = torch.arange(labels) < target_lengths[:, None]
    ids = torch.randint(5, 60, (size, labels), generator=generator)
    shifted = torch.cat([torch.full((size, 1), 3), ids[:, :-1]], dim=1)
    return Batch(
        input_features=features,
        attention_mask=mask,
        labels=ids.masked_fill(~target_mask, -100),
        decoder_input_ids=shifted.masked_fill(~target_mask, 0),
        languages=torch.arange(size) % len(LANGUAGES) if languages is None else languages,
        folds=torch.randint(0, 4, (size,), generator=generator),
        target_languages=("eng",) * size,
        utterances=tuple(f"utterance-{seed}-{row}" for row in range(size)),
        seconds=float(mask.sum()) * 0.02,
        frames=int(mask.sum()),
        target_tokens=int(target_mask.sum()),
    )
