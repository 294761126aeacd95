"""Where the SeamlessM4T family keeps its feed-forward blocks, and how its models are made.

Facts that this module takes care of, so that nothing else has to: LayerDrop draws differently on every rank and is set to
0; BatchNorm keeps its statistics (one policy at every world size); the adaptor's convolutions must not see padding.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    GenerationConfig,
    SeamlessM4TConfig,
    SeamlessM4TForSpeechToText,
    SeamlessM4TTokenizer,
)
from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TConformerFeedForward

from gdps_ds.analysis.sketch import sites_of
from gdps_ds.config import ModelConfig
from gdps_ds.model.grouped_ffn import GroupedFeedForward, Lane
from gdps_ds.model.pretrained import UnfitCheckpointError, check_tokenizer, check_weights
from gdps_ds.model.routing import Router
from gdps_ds.model.tokens import language_codes

INPUT_LINEAR, OUTPUT_LINEAR = "intermediate_dense", "output_dense"
NO_LAYERDROP = {"speech_encoder_layerdrop": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}


def load_config(settings: ModelConfig, vocab_size: int | None) -> SeamlessM4TConfig:
    """The checkpoint's configuration (or, for a new model, the class's) with ``model.config`` on top.

    Raises:
        ValueError: the checkpoint is of another model, or the model has no such field.
        OSError: there is no such checkpoint.
    """
    if settings.pretrained is None:
        config = SeamlessM4TConfig(vocab_size=vocab_size)
    else:
        config = AutoConfig.from_pretrained(settings.pretrained)
        if not isinstance(config, SeamlessM4TConfig):
            raise ValueError(f"'{settings.pretrained}' is of type {config.model_type}, not {SeamlessM4TConfig.model_type}")
    unknown = sorted(field for field in settings.config if not hasattr(config, field))
    if unknown:
        raise ValueError(f"model.config: {type(config).__name__} has no field {', '.join(unknown)}")
    config.update(settings.config | NO_LAYERDROP)
    return config


def load_model(settings: ModelConfig, tokenizer: SeamlessM4TTokenizer, seed: int) -> SeamlessM4TForSpeechToText:
    """A pretrained model, or a new one with weights drawn from ``seed``; ready for training, in fp32.

    Raises:
        UnfitCheckpointError: the checkpoint is not the whole model, or the tokenizer is not its own.
        ValueError: ``model.freeze`` or ``model.config`` does not fit the model.
        OSError: there is no such checkpoint, or it has no weights.
    """
    check_model(settings, tokenizer)
    if settings.pretrained is None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = SeamlessM4TForSpeechToText(load_config(settings, len(tokenizer)))
    else:
        model = SeamlessM4TForSpeechToText.from_pretrained(
            settings.pretrained, config=load_config(settings, None), dtype=torch.float32
        )
    if not model.config.tie_word_embeddings:
        # The class makes them one in a new model, and reads them apart; it uses the decoder's alone.
        model.shared.weight = model.text_decoder.embed_tokens.weight
    model.generation_config = with_codes(model.generation_config, tokenizer)
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    _freeze(model, settings.freeze)
    keep_padding_out_of_adaptor(model)
    return model


def check_model(settings: ModelConfig, tokenizer: SeamlessM4TTokenizer | None) -> None:
    """Whether :func:`load_model` will give the model that the settings describe, from the headers of the checkpoint's files.

    Args:
        tokenizer: None for a new model whose tokenizer is not made yet.

    Raises:
        UnfitCheckpointError, ValueError, OSError: see :func:`load_model`.
    """
    config = load_config(settings, settings.vocab_size if tokenizer is None else len(tokenizer))
    if tokenizer is not None:
        check_tokenizer(tokenizer, config.vocab_size)
    with torch.device("meta"):
        model = SeamlessM4TForSpeechToText(config)
    _freeze(model, settings.freeze)
    if settings.pretrained is not None:
        check_weights(settings.pretrained, model)
        if tokenizer is not None:
            with_codes(_generation_config(settings.pretrained), tokenizer)


def set_training_mode(model: nn.Module, training: bool) -> None:
    """``model.train(training)`` with BatchNorm always in evaluation mode.

    BatchNorm would see padded frames, update even when frozen and drift apart between ranks; its statistics stay those of
    the checkpoint, so that every world size and batch make-up computes the same function.
    """
    model.train(training)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def find_sites(model: nn.Module, patterns: Sequence[str], option: str = "mine.sites") -> tuple[str, ...]:
    """Names of the feed-forward blocks (whole or split) that match any glob pattern and learn, in the order all ranks use.

    ``option`` is where the patterns come from.

    Raises:
        ValueError: a pattern matches no feed-forward block, or frozen ones alone.
    """
    found, frozen = matching_blocks(model, patterns, option), frozen_blocks(model)
    refuse_frozen(patterns, found, frozen, option)
    return tuple(site for site in found if site not in frozen)


def matching_blocks(model: nn.Module, patterns: Sequence[str], option: str = "mine.sites") -> tuple[str, ...]:
    """What :func:`find_sites` gives, and the frozen blocks that match.

    Raises:
        ValueError: a pattern matches no feed-forward block.
    """
    blocks = [name for name, module in model.named_modules() if is_block(module)]
    for pattern in patterns:
        if not fnmatch.filter(blocks, pattern):
            raise ValueError(f"{option}: '{pattern}' matches no feed-forward block; there are {_shorten(blocks)}")
    return sites_of([name for pattern in patterns for name in fnmatch.filter(blocks, pattern)])


def refuse_frozen(patterns: Sequence[str], blocks: Sequence[str], frozen: Set[str], option: str) -> None:
    """Raise a :class:`ValueError` that names a pattern by which nothing but frozen blocks are found."""
    for pattern in patterns:
        matched = fnmatch.filter(blocks, pattern)
        if matched and set(matched) <= frozen:
            raise ValueError(
                f"{option}: '{pattern}' matches frozen blocks alone (model.freeze), whose lanes would stay copies: "
                f"{_shorten(matched)}"
            )


def frozen_blocks(model: nn.Module) -> Set[str]:
    """Feed-forward blocks that cannot be split to any use, because a weight of theirs is not trained.

    A lane owns columns of the one weight and rows of the other, and the gradients of both decide about it; where one of them
    never moves, that would be about nothing. Biases alone may be frozen.
    """
    return {
        name
        for name, module in model.named_modules()
        if is_block(module)
        and not all(linear.weight.requires_grad for linear in module.modules() if isinstance(linear, nn.Linear))
    }


def is_block(module: nn.Module) -> bool:
    return isinstance(module, SeamlessM4TConformerFeedForward | GroupedFeedForward)


def lanes_of(model: nn.Module, site: str) -> dict[str, nn.Module]:
    """The parts of a site that own an input and an output linear: the block itself, or each lane of a split block."""
    block = model.get_submodule(site)
    if not isinstance(block, GroupedFeedForward):
        return {site: block}
    return {f"{site}.{name}": lane for name, lane in block.named_modules() if isinstance(lane, Lane)}


def route_of(model: nn.Module, lane: str) -> tuple[Router, int] | None:
    """The router and the group of a private lane; None for anything that every utterance passes through."""
    block, private, group = lane.rpartition(".private.")
    if not private:
        return None
    parent = model.get_submodule(block)
    assert isinstance(parent, GroupedFeedForward)
    return parent.router, int(group)


def dense_block(model: Any, activation: nn.Module, dropout: float) -> nn.Module:
    """An undivided feed-forward block of the model's speech encoder."""
    return SeamlessM4TConformerFeedForward(model.config, act_fn=activation, dropout=dropout)


def hidden_widths(model: nn.Module) -> dict[str, int]:
    """Every block that can be split -> its hidden neurons."""
    return {
        name: getattr(module, INPUT_LINEAR).out_features
        for name, module in model.named_modules()
        if isinstance(module, SeamlessM4TConformerFeedForward)
    }


def _generation_config(name: str) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(name)
    except OSError:  # a checkpoint need not have any
        return GenerationConfig()


def with_codes(generation: GenerationConfig, tokenizer: SeamlessM4TTokenizer) -> GenerationConfig:
    """``generation`` with the tokenizer's language codes, by which ``generate`` knows target languages.

    Raises:
        UnfitCheckpointError: the model goes by other codes.
    """
    known, codes = getattr(generation, "text_decoder_lang_to_code_id", None) or {}, language_codes(tokenizer)
    for language in sorted(known.keys() & codes.keys()):
        if known[language] != codes[language]:
            raise UnfitCheckpointError(
                f"the code of '{language}' is {codes[language]} in the tokenizer, but {known[language]} in "
                "generation_config.json: the tokenizer is another model's"
            )
    generation.text_decoder_lang_to_code_id = known | codes
    # Of a configuration that is marked as made from the model's, transformers reads nothing but its own fields.
    generation._from_model_config = False
    return generation


def _freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"model.freeze: '{pattern}' matches no parameter")
    for name, parameter in model.named_parameters():
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"model.freeze: {', '.join(patterns)} leave nothing to train")


def keep_padding_out_of_adaptor(model: SeamlessM4TForSpeechToText) -> None:
    """Zero padded frames where the adaptor's strided convolutions read them.

    ``transformers`` lets the last window of a padded utterance read padded frames, so its output would depend on how long
    the *other* utterances of the batch are. With the padded frames at zero, as the convolution's own padding is, an utterance
    gives the same output alone and in any batch.
    """
    current: dict[str, Tensor | None] = {"mask": None}

    def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current["mask"] = kwargs.get("attention_mask")

    def mask_output(module: nn.Module, args: tuple[Any, ...], output: Tensor, reductions: int) -> Tensor:
        mask = current["mask"]
        if mask is None:
            return output
        lengths = mask.sum(1)
        for _ in range(reductions):
            lengths = after_adaptor(lengths, model.config)
        frames = torch.arange(output.shape[1], device=output.device)
        return output.masked_fill((frames >= lengths[:, None]).unsqueeze(-1), 0.0)

    encoder = model.speech_encoder
    encoder.register_forward_pre_hook(remember, with_kwargs=True)
    if encoder.adapter is not None:
        for number, layer in enumerate(encoder.adapter.layers):
            for norm in (layer.residual_layer_norm, layer.self_attn_layer_norm):
                norm.register_forward_hook(partial(mask_output, reductions=number))


def after_adaptor(lengths: Tensor, config: SeamlessM4TConfig) -> Tensor:
    """Frames left by one adaptor layer: its padding is half the kernel."""
    kernel, stride = config.adaptor_kernel_size, config.adaptor_stride
    return (lengths + 2 * (kernel // 2) - kernel) // stride + 1


def _shorten(names: Sequence[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
