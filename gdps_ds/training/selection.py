"""The dev set during training: losses and, where asked for, BLEU; which update was the best, and when to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gdps_ds.config import Config, PhaseConfig, SelectConfig, TrainConfig
from gdps_ds.data.sampling import length_batches
from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.engine import Engine
from gdps_ds.evaluation.decoding import rank_share, translate
from gdps_ds.evaluation.metrics import score_pairs
from gdps_ds.training.checkpoint import Best, Progress
from gdps_ds.training.inputs import Inputs, with_loss
from gdps_ds.training.language_losses import LanguageLosses
from gdps_ds.training.loss import utterance_losses

LOSS, BLEU = "dev", "dev_bleu"
"""Names of an evaluation's two parts, in metrics.jsonl too."""

Values = Mapping[str, Mapping[str, float]]
"""LOSS, and BLEU where it was asked for -> language -> value."""


@dataclass(frozen=True)
class DevSet:
    """The dev set of a run.

    Attributes:
        before: called with what follows, before each batch on every rank, as often on each; may raise to end the evaluation.
    """

    config: Config
    comm: Communicator
    inputs: Inputs
    before: Callable[[str], None]

    def evaluate(self, engine: Engine) -> Values:
        """Everything that ``train.select`` asks of a model. Collective."""
        losses = {LOSS: self.losses(engine)}
        return losses | {BLEU: self.bleu(engine)} if self.config.train.select.by == "bleu" else losses

    def losses(self, engine: Engine) -> dict[str, float]:
        """Loss per target token without label smoothing, by language and over ``all``, of the utterances that
        :func:`gdps_ds.training.inputs.with_loss` names."""
        losses = LanguageLosses(self.config.data.languages, self.comm)
        data, dataset = self.config.data, self.inputs.dev
        usable = with_loss(dataset, data)
        found = length_batches(dataset.lengths[usable], max_frames=data.max_frames, max_utterances=data.max_utterances)
        batches = [usable[batch] for batch in found]
        with engine.evaluating():
            for indices, real in rank_share(batches, self.comm.rank, self.comm.world_size):
                self.before("the dev loss")
                batch = self.inputs.collate([dataset[index] for index in indices])
                values = utterance_losses(engine.forward(batch), batch, 0.0)
                if real:
                    losses.add(batch, values)
        self.before("the sum of the dev losses")
        return losses.reduce("the dev loss")["loss"]

    def bleu(self, engine: Engine) -> dict[str, float]:
        """BLEU of translations with ``train.select.beams`` beams, by source language (of several targets, the mean over them);
        the same on every rank."""
        settings = self.config.decoding.model_copy(update={"beams": self.config.train.select.beams})
        inputs = self.inputs
        translations = translate(
            engine, inputs.dev, inputs.tokenizer, inputs.collate, settings, lambda batch: self.before("the dev BLEU")
        )
        rows = {name: [row for row in translations if row.source_lang == name] for name in self.config.data.languages}
        scores = {name: score_pairs(found, settings, ["BLEU"]) for name, found in rows.items()}
        return {name: found["mean"]["BLEU"] for name, found in scores.items() if found}


def better_of(best: Best | None, update: int, values: Values, select: SelectConfig) -> Best:
    """The best update so far, given an evaluation at ``update``; the first of equals.

    Its value is that of ``select.language``, or the mean over languages.
    """
    found = {language: value for language, value in values[LOSS if select.by == "loss" else BLEU].items() if language != "all"}
    value = found[select.language] if select.language else sum(found.values()) / len(found)
    if best is None or (value < best.value if select.by == "loss" else value > best.value):
        return Best(update, value)
    return best


def is_over(progress: Progress, phase: PhaseConfig, train: TrainConfig) -> bool:
    """Whether a phase has made all its updates, or as many evaluations as its patience allows without a better one.

    It has not while its last evaluation is to be made.
    """
    if progress.pending:
        return False
    if progress.update >= phase.updates:
        return True
    if phase.patience is None or progress.best is None:
        return False
    return progress.update - progress.best.update >= phase.patience * train.dev_every
