"""Beam search over all ranks: every rank translates its share of a set, and all get all translations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, SeamlessM4TTokenizer

from gdps_ds.config import DecodeConfig
from gdps_ds.data.collate import Batch, Collator, SpeechDataset
from gdps_ds.data.manifest import DataError
from gdps_ds.data.sampling import Indices, length_batches
from gdps_ds.distributed.comm import Communicator
from gdps_ds.model.tokens import language_code


@dataclass(frozen=True)
class Translation:
    """One utterance, translated; ``reference`` is None where the set has none."""

    id: str
    source_lang: str
    target_lang: str
    hypothesis: str
    reference: str | None


class Generator(Protocol):
    """A model that all ranks generate with: an :class:`~gdps_ds.distributed.engine.Engine`, or a replica on each rank."""

    @property
    def comm(self) -> Communicator: ...

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode without gradients."""

    def generate(self, batch: Batch, decoder_input_ids: Tensor, **options: Any) -> Tensor:
        """Token ids by ``transformers``' generate, from (B, 1) target language codes."""


def translate(
    engine: Generator,
    dataset: SpeechDataset,
    tokenizer: SeamlessM4TTokenizer,
    collate: Collator,
    settings: DecodeConfig,
    before_batch: Callable[[Batch], None] = lambda batch: None,
) -> list[Translation]:
    """Translate a set with beam search; in the order of the set, the same on every rank. Collective.

    Raises:
        DataError: the tokenizer lacks a target language.
        RuntimeError: an utterance was not translated, or a score was not a number; nothing is ever scored as an empty line
            instead.
    """
    try:
        for language in dataset.utterances.target_languages():
            language_code(tokenizer, language)
    except ValueError as error:
        raise DataError(str(error)) from None
    batches = length_batches(dataset.lengths, max_frames=settings.max_frames, max_utterances=settings.max_utterances)
    texts: dict[int, str] = {}
    with engine.evaluating():
        for indices, real in rank_share(batches, engine.comm.rank, engine.comm.world_size):
            batch = collate([dataset[index] for index in indices])
            before_batch(batch)
            hypotheses = _generate(engine, batch, tokenizer, settings)
            if real:
                texts.update(zip(indices, hypotheses, strict=True))
    merged = {index: text for share in engine.comm.gather(texts) for index, text in share.items()}
    missing = [dataset.utterances[index].id for index in range(len(dataset)) if index not in merged]
    if missing:
        raise RuntimeError(f"{len(missing)} utterances were not translated, such as {missing[0]}")
    return [
        Translation(utterance.id, utterance.source_lang, utterance.target_lang, merged[index], utterance.target_text)
        for index, utterance in enumerate(dataset.utterances)
    ]


def rank_share(batches: Sequence[Indices], rank: int, world_size: int) -> Iterator[tuple[list[int], bool]]:
    """This rank's batches and whether they count. All ranks get equally many, because at ZeRO-3 every forward pass gathers
    weights on all ranks; a rank that runs out repeats a batch that does not count."""
    for first in range(0, len(batches), world_size):
        index = first + rank
        yield batches[min(index, len(batches) - 1)].tolist(), index < len(batches)


def _generate(engine: Generator, batch: Batch, tokenizer: SeamlessM4TTokenizer, settings: DecodeConfig) -> list[str]:
    ids = engine.generate(
        batch,
        decoder_input_ids=torch.tensor([language_code(tokenizer, language) for language in batch.target_languages])[:, None],
        logits_processor=LogitsProcessorList([_RefuseNaN(batch.utterances)]),
        **generation_options(settings),
    )
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def generation_options(settings: DecodeConfig) -> dict[str, Any]:
    """The settings as ``transformers``' generate takes them."""
    return {
        "num_beams": settings.beams,
        "max_new_tokens": settings.max_new_tokens,
        "length_penalty": settings.length_penalty,
        "repetition_penalty": settings.repetition_penalty,
        "no_repeat_ngram_size": settings.no_repeat_ngram_size,
        "do_sample": False,
    }


class _RefuseNaN(LogitsProcessor):
    """Beam search goes on with scores that are NaN, and its output looks like any other."""

    def __init__(self, utterances: Sequence[str]) -> None:
        self._utterances = utterances

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if scores.isnan().any():
            raise RuntimeError(f"translating gave NaN in the batch of utterances {', '.join(self._utterances)}")
        return scores
