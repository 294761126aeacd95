"""Where the SeamlessM4T family keeps its feed-forward blocks, and how its models, tokenizers and labels are made.

Facts that this module takes care of, so that nothing else has to: LayerDrop draws differently on every rank and is set to
0; BatchNorm keeps its statistics (one policy at every world size); the adaptor's convolutions must not see padding.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor, nn
from transformers import AutoConfig, SeamlessM4TConfig, SeamlessM4TForSpeechToText, SeamlessM4TTokenizer
from transformers.models.seamless_m4t.modeling_seamless_m4t import SeamlessM4TConformerFeedForward

from gdps_ds.analysis.sketch import sites_of
from gdps_ds.config import ModelConfig
from gdps_ds.model.grouped_ffn import GroupedFeedForward, Lane
from gdps_ds.model.routing import Router

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
    """A pretrained model, or a new one with weights drawn from ``seed``; ready for training, in fp32."""
    if settings.pretrained is None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = SeamlessM4TForSpeechToText(load_config(settings, len(tokenizer)))
        model.generation_config.text_decoder_lang_to_code_id = _language_codes(tokenizer)
    else:
        model = SeamlessM4TForSpeechToText.from_pretrained(
            settings.pretrained, config=load_config(settings, None), torch_dtype=torch.float32
        )
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    _freeze(model, settings.freeze)
    keep_padding_out_of_adaptor(model)
    return model


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
    """Names of the feed-forward blocks (whole or split) that match any glob pattern, in the order all ranks use.

    ``option`` is where the patterns come from.

    Raises:
        ValueError: a pattern matches no feed-forward block.
    """
    blocks = [name for name, module in model.named_modules() if is_block(module)]
    for pattern in patterns:
        if not fnmatch.filter(blocks, pattern):
            raise ValueError(f"{option}: '{pattern}' matches no feed-forward block; there are {_shorten(blocks)}")
    return sites_of([name for pattern in patterns for name in fnmatch.filter(blocks, pattern)])


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


def train_tokenizer(texts: Iterable[str], languages: Sequence[str], folder: Path, vocab_size: int) -> SeamlessM4TTokenizer:
    """A SentencePiece model of ``texts`` wrapped as SeamlessM4T's tokenizer, with a code for each target language.

    Byte pair encoding: on a small text it keeps whole words, where a unigram model falls apart into characters.

    Raises:
        ValueError: ``vocab_size`` is below the number of characters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_prefix=str(folder / "sentencepiece"),
            vocab_size=vocab_size,
            model_type="bpe",
            hard_vocab_limit=False,
            character_coverage=1.0,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"model.vocab_size: no tokenizer of {vocab_size} pieces can be made ({error})") from None
    tokenizer = SeamlessM4TTokenizer(
        str(folder / "sentencepiece.model"),
        additional_special_tokens=[f"__{language}__" for language in languages],
        src_lang=languages[0],
        tgt_lang=languages[0],
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def load_tokenizer(path: str | Path) -> SeamlessM4TTokenizer:
    return SeamlessM4TTokenizer.from_pretrained(str(path))


def target_ids(tokenizer: SeamlessM4TTokenizer, texts: Sequence[str], language: str) -> list[list[int]]:
    """Label ids ``__lang__ w1 .. wn </s>``.

    The tokenizer also puts ``</s>`` first; the model shifts labels right again with that very token as its decoder start,
    so it is dropped here.
    """
    tokenizer.tgt_lang = language
    return [ids[1:] for ids in tokenizer(text_target=list(texts), padding=False)["input_ids"]]


def _language_codes(tokenizer: SeamlessM4TTokenizer) -> dict[str, int]:
    codes = tokenizer.additional_special_tokens
    return {code.strip("_"): tokenizer.convert_tokens_to_ids(code) for code in codes}


def _freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"model.freeze: '{pattern}' matches no parameter")
    for name, parameter in model.named_parameters():
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)


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
