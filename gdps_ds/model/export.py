"""Split models as checkpoints for others: one plain ``transformers`` checkpoint for each language group, or the whole model.

A group's model has dense blocks again: the shared neurons and the group's own, each at the place that it had before the split.
Neurons that the group does not have (``width: constant``) get zero weights, which is what their absence means.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model as load_tensors
from safetensors.torch import save_model as save_tensors
from torch import nn
from transformers import (
    AutoConfig,
    AutoProcessor,
    GenerationConfig,
    SeamlessM4TFeatureExtractor,
    SeamlessM4TForSpeechToText,
    SeamlessM4TProcessor,
    SeamlessM4TTokenizer,
)

from gdps_ds.files import atomic_folder
from gdps_ds.model.families import dense_block, keep_padding_out_of_adaptor, with_codes
from gdps_ds.model.routing import Router
from gdps_ds.model.surgery import LaneContent, block_sources, lanes_by, split_model
from gdps_ds.model.tokens import language_codes, load_tokenizer
from gdps_ds.plan import SharingPlan

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty")
"""Fields of a generation config that sampling and a search with several beams alone read."""
WEIGHTS, PLAN, LANGUAGES = "model.safetensors", "plan.json", "languages.txt"


class ExportError(RuntimeError):
    """A plain checkpoint that transformers would not read as the model that was written; nothing is left of it."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained model outside of any engine, in fp32.

    Attributes:
        module: plain, with the lanes of ``plan``.
        languages: source languages in the order of the indices that the router takes.
        router: None where the plan is uniform.
    """

    module: nn.Module
    tokenizer: SeamlessM4TTokenizer
    plan: SharingPlan
    languages: tuple[str, ...]
    router: Router | None


@contextlib.contextmanager
def as_group(model: nn.Module, plan: SharingPlan, group: int) -> Iterator[nn.Module]:
    """Inside the context the model has dense blocks that compute what it computes for ``plan.groups[group]``."""
    split = {site.name: model.get_submodule(site.name) for site in plan.sites}
    for site in plan.sites:
        model.set_submodule(site.name, _group_block(model, plan, site.name, site.hidden, group))
    try:
        yield model
    finally:
        for name, block in split.items():
            model.set_submodule(name, block)


@torch.no_grad()
def _group_block(model: nn.Module, plan: SharingPlan, name: str, hidden: int, group: int) -> nn.Module:
    split: Any = model.get_submodule(name)
    lanes = lanes_by(plan, name, hidden)
    own = {prefix: lanes[prefix] for prefix in ("shared.", f"private.{group}.")}
    sources = block_sources(own, {"": LaneContent(tuple(range(hidden)), plan.groups[group])})
    parameters = dict(split.named_parameters())
    block = dense_block(model, split.shared.intermediate_act_fn, split.shared.intermediate_dropout.p)
    block.load_state_dict({each: source.assemble(parameters.__getitem__) for each, source in sources.items()})
    return block.to(split.shared.output_dense.weight).train(split.training)


def save_plain(model: Any, tokenizer: SeamlessM4TTokenizer, folder: Path, generation: Mapping[str, Any] | None = None) -> None:
    """Write what ``SeamlessM4TForSpeechToText.from_pretrained`` and ``AutoProcessor.from_pretrained`` read, and read it again.

    Args:
        folder: appears whole or not at all.
        generation: what ``generate`` does by default, on top of the model's own generation config.

    Raises:
        ExportError: what transformers reads of it is not ``model``.
    """
    with atomic_folder(folder) as partial:
        own = model.generation_config
        try:
            model.generation_config = _generation_config(model, tokenizer, generation or {})
            model.save_pretrained(partial, state_dict=_tensors(model))
        finally:
            model.generation_config = own
        _processor(tokenizer).save_pretrained(partial)
        if faults := _export_faults(model, tokenizer, partial):
            raise ExportError(f"{folder}: transformers would read another model: {'; '.join(faults[:5])}")


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    """The state of a model with a tensor of its own for each name that ``from_pretrained`` reads by itself."""
    tensors: dict[str, torch.Tensor] = model.state_dict()
    if not model.config.tie_word_embeddings:
        # One in our models, and told apart by the class when it reads them.
        tensors["text_decoder.embed_tokens.weight"] = tensors["text_decoder.embed_tokens.weight"].clone()
    return tensors


def _processor(tokenizer: SeamlessM4TTokenizer) -> SeamlessM4TProcessor:
    """Gives the features of :mod:`gdps_ds.data.features`, an utterance at a time."""
    tokenizer = copy.deepcopy(tokenizer)
    # The processor takes its defaults from here. The extractor's own is 2: where the windows are odd in number, that puts a
    # padded frame behind the last, which the adaptor's convolutions read in spite of the mask.
    tokenizer.init_kwargs["pad_to_multiple_of"] = None
    return SeamlessM4TProcessor(SeamlessM4TFeatureExtractor(), tokenizer)


def _generation_config(model: Any, tokenizer: SeamlessM4TTokenizer, options: Mapping[str, Any]) -> GenerationConfig:
    config, default = copy.deepcopy(model.generation_config), GenerationConfig()
    config.update(**options)
    # The library refuses to save what the search would not read.
    unread = (() if config.do_sample else SAMPLING) + (BEAMS if config.num_beams == 1 else ())
    for name in unread:
        setattr(config, name, getattr(default, name))
    return with_codes(config, tokenizer)


def _codes(config: GenerationConfig) -> dict[str, int]:
    return getattr(config, "text_decoder_lang_to_code_id", None) or {}


def _export_faults(model: Any, tokenizer: SeamlessM4TTokenizer, folder: Path) -> list[str]:
    """What transformers, reading ``folder``, has otherwise than ``model`` and its tokenizer have it."""
    plain, processor = SeamlessM4TForSpeechToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    read, written = plain.state_dict(), model.state_dict()
    faults = [f"{name} is missing" for name in written.keys() - read.keys()]
    faults += [f"{name} is not in the model" for name in read.keys() - written.keys()]
    faults += [
        f"{name} has other values"
        for name in read.keys() & written.keys()
        if read[name].is_meta or not torch.equal(read[name], written[name].to(read[name].device))
    ]
    codes = language_codes(tokenizer)
    if not isinstance(processor, SeamlessM4TProcessor) or language_codes(processor.tokenizer) != codes:
        faults.append("its processor has another tokenizer")
    if not codes.items() <= _codes(plain.generation_config).items():
        faults.append("its generation config lacks target languages")
    return sorted(faults)


def save_whole(trained: TrainedModel, folder: Path) -> None:
    """Write a model with its lanes for :func:`load_whole`."""
    module: Any = trained.module
    folder.mkdir(parents=True, exist_ok=True)
    module.config.save_pretrained(folder)
    module.generation_config.save_pretrained(folder)
    trained.tokenizer.save_pretrained(folder)
    trained.plan.save(folder / PLAN)
    (folder / LANGUAGES).write_text("\n".join(trained.languages) + "\n")
    save_tensors(module, str(folder / WEIGHTS))


def is_whole(folder: str | Path) -> bool:
    """Whether :func:`save_whole` wrote ``folder``."""
    return (Path(folder) / PLAN).is_file() and (Path(folder) / LANGUAGES).is_file()


def load_whole(folder: str | Path) -> TrainedModel:
    """Read what :func:`save_whole` wrote.

    Raises:
        PlanError: the plan cannot be read.
        RuntimeError: the weights are not those of a model of this plan.
    """
    folder = Path(folder)
    plan, languages = SharingPlan.load(folder / PLAN), tuple((folder / LANGUAGES).read_text().split())
    module = SeamlessM4TForSpeechToText(AutoConfig.from_pretrained(folder))
    module.generation_config = GenerationConfig.from_pretrained(folder)
    keep_padding_out_of_adaptor(module)
    router = None if plan.is_uniform else split_model(module, plan, languages, seed=0)
    load_tensors(module, str(folder / WEIGHTS))
    return TrainedModel(module, load_tokenizer(folder), plan, languages, router)
