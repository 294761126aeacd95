"""Split models as checkpoints for others: one plain ``transformers`` checkpoint for each language group, or the whole model.

A group's model has dense blocks again: the shared neurons and the group's own, each at the place that it had before the split.
Neurons that the group does not have (``width: constant``) get zero weights, which is what their absence means.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model as load_tensors
from safetensors.torch import save_model as save_tensors
from torch import nn
from transformers import (
    AutoConfig,
    GenerationConfig,
    SeamlessM4TFeatureExtractor,
    SeamlessM4TForSpeechToText,
    SeamlessM4TTokenizer,
)

from gdps_ds.model.families import dense_block, keep_padding_out_of_adaptor, load_tokenizer
from gdps_ds.model.routing import Router
from gdps_ds.model.surgery import LaneContent, block_sources, lanes_by, split_model
from gdps_ds.plan import SharingPlan

WEIGHTS, PLAN, LANGUAGES = "model.safetensors", "plan.json", "languages.txt"


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


def save_plain(model: Any, tokenizer: SeamlessM4TTokenizer, folder: Path) -> None:
    """Write what ``SeamlessM4TForSpeechToText.from_pretrained`` and ``AutoProcessor.from_pretrained`` read."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SeamlessM4TFeatureExtractor().save_pretrained(folder)


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
