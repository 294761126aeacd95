"""Beam search over all ranks: every rank translates its share of a set, and all get all translations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, SeamlessM4TTokenizer

from gdps_ds.config import DecodeConfig
from gdps_ds.data.collate import Batch, Collator, SpeechDataset
from gdps_ds.data.manifest import DataError, Utterance
from gdps_ds.data.pieces import Pieces
from gdps_ds.data.sampling import Indices
from gdps_ds.distributed.comm import Communicator
from gdps_ds.evaluation.metrics import is_spaceless
from gdps_ds.model.tokens import language_code


@dataclass(frozen=True)
class Translation:
    """One utterance, translated.

    Attributes:
        reference: None where the set has none.
        pieces: how many pieces of audio were translated and joined; 0 where no audio can be, and ``hypothesis`` is empty.
        cut: the search ended at ``decode.max_new_tokens`` before the translation did, in one piece at least.
    """

    id: str
    source_lang: str
    target_lang: str
    hypothesis: str
    reference: str | None
    pieces: int = 1
    cut: bool = False


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

    Audio longer than ``decode.max_seconds`` is translated in pieces (:mod:`gdps_ds.data.pieces`), which are joined; a
    piece that does not fit into ``decode.max_frames`` is a batch of its own (:func:`oversized` tells). An utterance without a
    frame, such as one whose audio cannot be read, has an empty translation in no pieces.

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
    pieces = Pieces(dataset, settings.piece_seconds)
    ranks = engine.comm.world_size
    batches = pieces.batches(ranks, max_frames=settings.max_frames, max_utterances=settings.max_utterances)
    texts: dict[int, tuple[str, bool]] = {}
    with engine.evaluating():
        for indices, real in rank_share(batches, engine.comm.rank, ranks):
            batch = collate([pieces[place] for place in indices])
            before_batch(batch)
            hypotheses = _generate(engine, batch, tokenizer, settings)
            if real:
                texts.update(zip(indices, hypotheses, strict=True))
    merged = {place: text for share in engine.comm.gather(texts) for place, text in share.items()}
    missing = [dataset.utterances[piece.index].id for place, piece in enumerate(pieces.pieces) if place not in merged]
    if missing:
        raise RuntimeError(f"{len(missing)} utterances were not translated, such as {missing[0]}")
    found: list[list[tuple[str, bool]]] = [[] for _ in pieces.counts]
    for place, piece in enumerate(pieces.pieces):
        found[piece.index].append(merged[place])
    return [_translation(utterance, parts) for utterance, parts in zip(dataset.utterances, found, strict=True)]


def oversized(dataset: SpeechDataset, settings: DecodeConfig) -> str:
    """A line that tells which utterances are translated alone, as one is more than ``decode.max_frames``; empty without any."""
    pieces = Pieces(dataset, settings.piece_seconds)
    large = np.flatnonzero(pieces.lengths > settings.max_frames)
    if not large.size:
        return ""
    longest = int(pieces.lengths.argmax())
    name = dataset.utterances[pieces.pieces[longest].index].id
    return (
        f"decode.max_frames is {settings.max_frames}, but {large.size} utterances or pieces of decode.max_seconds are longer, "
        f"up to {pieces.lengths[longest]} frames ({name}): each is translated alone"
    )


def _translation(utterance: Utterance, parts: Sequence[tuple[str, bool]]) -> Translation:
    space = "" if is_spaceless(utterance.target_lang) else " "
    return Translation(
        utterance.id,
        utterance.source_lang,
        utterance.target_lang,
        space.join(text for text, _ in parts if text),
        utterance.target_text,
        pieces=len(parts),
        cut=any(cut for _, cut in parts),
    )


def rank_share(batches: Sequence[Indices], rank: int, world_size: int) -> Iterator[tuple[list[int], bool]]:
    """This rank's batches and whether they count. All ranks get equally many, because at ZeRO-3 every forward pass gathers
    weights on all ranks; a rank that runs out repeats a batch that does not count."""
    for first in range(0, len(batches), world_size):
        index = first + rank
        yield batches[min(index, len(batches) - 1)].tolist(), index < len(batches)


def _generate(
    engine: Generator, batch: Batch, tokenizer: SeamlessM4TTokenizer, settings: DecodeConfig
) -> list[tuple[str, bool]]:
    """Each translation, and whether it was cut: its last place holds neither ``</s>`` nor padding behind one."""
    ids = engine.generate(
        batch,
        decoder_input_ids=torch.tensor([language_code(tokenizer, language) for language in batch.target_languages])[:, None],
        logits_processor=LogitsProcessorList([_RefuseNaN(batch.utterances)]),
        **generation_options(settings),
    )
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    cut = [last not in ends for last in ids[:, -1].tolist()]
    return list(zip(tokenizer.batch_decode(ids, skip_special_tokens=True), cut, strict=True))


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
