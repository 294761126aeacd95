"""Translating with a whole model on every rank: decoding needs neither DeepSpeed's optimiser nor its partitions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gdps_ds.config import DecodeConfig, ModelConfig
from gdps_ds.data.collate import Batch, Collator, SpeechDataset
from gdps_ds.data.features import OnTheFlyFeatures
from gdps_ds.data.manifest import DataError, Utterance
from gdps_ds.data.preparation import prepare
from gdps_ds.data.table import UtteranceTable
from gdps_ds.distributed.comm import Communicator
from gdps_ds.evaluation.decoding import Translation, oversized, translate
from gdps_ds.model.export import TrainedModel, is_whole, load_whole
from gdps_ds.model.families import load_config, load_model, set_training_mode
from gdps_ds.model.pretrained import UnfitCheckpointError
from gdps_ds.model.routing import Router
from gdps_ds.model.tokens import load_tokenizer
from gdps_ds.plan import SharingPlan


class Replica:
    """A model as :func:`gdps_ds.evaluation.decoding.translate` takes it, on the rank's device.

    Args:
        model: plain module, in the precision that it computes in.
        router: routes utterances to lanes where the model is split.
    """

    def __init__(self, model: nn.Module, comm: Communicator, router: Router | None = None) -> None:
        self.comm = comm
        self._module: Any = model.to(comm.device)
        self._router = router

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        set_training_mode(self._module, False)
        with torch.no_grad():
            yield

    def generate(self, batch: Batch, decoder_input_ids: Tensor, **options: Any) -> Tensor:
        """Token ids by ``transformers``' generate, from (B, 1) target language codes."""
        if self._router is not None:
            self._router.assign(batch.languages, self.comm.device)
        batch, device = batch.to(self.comm.device), self.comm.device
        ids: Tensor = self._module.generate(
            input_features=batch.input_features,
            attention_mask=batch.attention_mask,
            decoder_input_ids=decoder_input_ids.to(device),
            **options,
        )
        return ids


def load_checkpoint(name: str, comm: Communicator) -> TrainedModel:
    """A SeamlessM4T checkpoint in fp32: a plain one from a folder or the hub, or an exported one with its lanes. Collective.

    Raises:
        RankZeroError: it cannot be loaded; names it.
    """

    def load() -> TrainedModel:
        if is_whole(name):
            return load_whole(name)
        settings = ModelConfig(pretrained=name)
        try:
            load_config(settings, None)  # its message is the clearest where there is nothing of this name
            tokenizer = load_tokenizer(name)
            return TrainedModel(load_model(settings, tokenizer, seed=0), tokenizer, SharingPlan.uniform(()), (), None)
        except UnfitCheckpointError as error:
            raise DataError(f"{name}: {error}") from None
        except Exception as error:  # of many types, as what is there may be anything
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{name}: no SeamlessM4T checkpoint on disk or on the hub ({reason})") from error

    # Rank 0 goes first, so that one process downloads and one message tells what is wrong.
    loaded: list[TrainedModel] = []
    comm.from_main(lambda: loaded.append(load()))
    return loaded[0] if loaded else load()


def measured(utterances: Sequence[Utterance]) -> list[Utterance]:
    """A test set with true durations, and none for audio that cannot be used: those utterances are printed, and their
    translations empty.

    All but :class:`~gdps_ds.data.manifest.Measured` are decoded: a duration that people write may not be the audio's.

    Raises:
        DataError: no utterance of a language has usable audio.
    """
    found, report = prepare(
        utterances, languages=None, min_seconds=0.0, max_seconds=float("inf"), require_text=False, training=False
    )
    if any(each.untranslatable for each in report.languages.values()):
        print(report.summary({}), flush=True)
    report.require(sorted({each.source_lang for each in utterances}))
    return found


def translate_with(
    trained: TrainedModel,
    utterances: Sequence[Utterance],
    comm: Communicator,
    settings: DecodeConfig,
    before_batch: Callable[[Batch], None] = lambda batch: None,
) -> list[Translation]:
    """Translate with a whole model on every rank. Collective."""
    languages = trained.languages or sorted({each.source_lang for each in utterances})
    table = UtteranceTable.of(utterances)
    dataset = SpeechDataset(table, OnTheFlyFeatures(table), None, languages=languages, folds=2)
    if comm.is_main and (line := oversized(dataset, settings)):
        print(line, flush=True)
    config: Any = trained.module.config
    collate = Collator(pad_id=config.pad_token_id, start_id=config.decoder_start_token_id)
    return translate(Replica(trained.module, comm, trained.router), dataset, trained.tokenizer, collate, settings, before_batch)
