"""The training loop, on one screen."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils.data import DataLoader

from gdps_ds.analysis.sketch import seed_of
from gdps_ds.config import Config, PhaseConfig, SpecialiseConfig
from gdps_ds.data.augmentation import NONE, Augmentation, AugmentedSpeech
from gdps_ds.data.collate import Batch, Collator, SpeechDataset
from gdps_ds.data.sampling import MicroBatches, Position, UpdateSampler
from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.watchdog import Watchdog
from gdps_ds.plan import SharingPlan
from gdps_ds.reporting.progress import Progress as ProgressBar
from gdps_ds.reporting.tracking import Tracker
from gdps_ds.training.checkpoint import PhaseCheckpoints, Progress
from gdps_ds.training.inputs import Inputs
from gdps_ds.training.interrupt import Interrupted, Interruptible, StopSignal, leave_signals_to_the_rank
from gdps_ds.training.language_losses import LanguageLosses, NonFiniteUpdates
from gdps_ds.training.loss import utterance_losses
from gdps_ds.training.metered import MeteredBatches
from gdps_ds.training.mining import MiningWindow
from gdps_ds.training.pcgrad import PCGrad
from gdps_ds.training.schedule import hyperparameters
from gdps_ds.training.selection import DevSet, better_of, is_over

T = TypeVar("T")


@dataclass(frozen=True)
class Trainer:
    """What every phase needs: the configuration, the data, and where to report."""

    config: Config
    comm: Communicator
    inputs: Inputs
    tracker: Tracker
    stop: StopSignal
    watchdog: Watchdog

    def train(
        self,
        engine: Engine,
        name: str,
        phase: PhaseConfig,
        start: Progress,
        end: int,
        plan: SharingPlan,
        mining: MiningWindow | None = None,
        pcgrad: PCGrad | None = None,
    ) -> Progress:
        """Train from ``start`` to update ``end`` of ``phase``, or while its patience lasts; saves on the way and at the end.

        A checkpoint is written before the dev set is evaluated; ``start`` may be one whose evaluation is still to be made.

        Args:
            plan: what the engine's model is split by.

        Raises:
            Interrupted: a signal came to some rank; on every rank, after a checkpoint.
            FloatingPointError: a loss is not finite, or a gradient is not and ``guard`` does not let it pass.
        """
        train, progress, position = self.config.train, start, start.position
        micro_batches = self.micro_batches("train")
        batches = MeteredBatches(self.loader(self.inputs.train, micro_batches, position, end - start.update, self.augmentation))
        losses = LanguageLosses(self.config.data.languages, self.comm)
        nonfinite = NonFiniteUpdates(self.config.guard, self.comm)
        with self.progress(name, phase.updates, start.update) as bar, self.watchdog.watching(name):
            if start.pending:
                progress = self._evaluated(engine, name, start)
                self.checkpoints(name).record(progress)
                if is_over(progress, phase, train):
                    return progress
            for update in range(start.update + 1, end + 1):
                where = f"update {update} of {name}"
                self.watchdog.beat(f"waiting for the data of {where}")
                share = [next(batches) for _ in range(engine.accumulation)]
                self.watchdog.beat(where)
                # One collective a step: the tokens that the update averages over, and whether a signal came to any rank.
                tokens, stop = self.comm.sum_floats(sum(batch.target_tokens for batch in share), self.stop.received)
                rates = hyperparameters(phase, update)
                with mining.of(update, engine, tokens) if mining else contextlib.nullcontext(_ignore) as watch:
                    for number, batch in enumerate(share):
                        self.watchdog.beat(f"micro-batch {number + 1} of {where}")
                        self._seed_dropout(phase, update, number)
                        watch(batch)
                        if pcgrad:
                            pcgrad.watch(batch)
                        loss = losses.add(batch, utterance_losses(engine.forward(batch), batch, train.label_smoothing))
                        engine.backward(loss, tokens)
                        if pcgrad and number == len(share) - 1:
                            pcgrad.project(update)
                        applied = engine.step(rates)
                        bar.saw(batch)
                mined = mining is not None and mining.covers(update)
                nonfinite.saw(where, applied, losses, by_loss_scale=engine.scales_loss, mined=mined)
                bar.step(losses.mean)
                position = micro_batches.advance(position, train.micro_batches)
                if update % train.log_every == 0 or update == end:
                    values = losses.reduce(where) | batches.reduce(self.comm) | {"skipped": nonfinite.count()}
                    self.tracker.log(name, update, **values, lr=rates["trunk"]["lr"], gradient_norm=engine.gradient_norm)
                pending = update % train.dev_every == 0 or update == phase.updates
                progress = Progress(update, position, progress.best, pending)
                save = partial(self._save, engine, name, plan, mining)
                progress = self._reached(engine, name, phase, progress, save, last=update == end, stop=bool(stop))
                if is_over(progress, phase, train):
                    break
        if start.update == end and not start.pending:  # a phase without updates still leaves a checkpoint to start from
            self._save(engine, name, plan, mining, start)
        return progress

    def _reached(
        self,
        engine: Engine,
        name: str,
        phase: PhaseConfig,
        progress: Progress,
        save: Callable[[Progress], None],
        *,
        last: bool,
        stop: bool,
    ) -> Progress:
        """After an update: first save what a signal or a kill would lose, then evaluate the dev set, where these are due.

        Raises:
            Interrupted: a signal came to some rank, by now (``stop``) or in the evaluation, which is then made on going on.
        """
        due = last or stop or progress.update % self.config.train.checkpoint_every == 0
        where = f"after update {progress.update} of {name}; the checkpoint is written"
        if due:
            save(progress)
        if stop:
            raise Interrupted(f"stopped by a signal {where}")
        if not progress.pending:
            return progress
        try:
            evaluated = self._evaluated(engine, name, progress)
        except Interrupted:
            if not due:
                save(progress)
            raise Interrupted(f"stopped by a signal in the dev evaluation {where}") from None
        if due:
            self.checkpoints(name).record(evaluated)
        elif is_over(evaluated, phase, self.config.train) or (evaluated.is_best and self.config.run.use == "best"):
            save(evaluated)
        return evaluated

    def _evaluated(self, engine: Engine, name: str, progress: Progress) -> Progress:
        """Evaluate the dev set; ``progress`` with the best evaluation of the phase by now."""
        began = time.monotonic()
        found = DevSet(self.config, self.comm, self.inputs, self.check_stop).evaluate(engine)
        self.tracker.log(name, progress.update, **found, dev_seconds=round(time.monotonic() - began, 3))
        best = better_of(progress.best, progress.update, found, self.config.train.select)
        return replace(progress, best=best, pending=False)

    def _save(self, engine: Engine, name: str, plan: SharingPlan, mining: MiningWindow | None, progress: Progress) -> None:
        gatherer = mining.saved(progress.update) if mining else None
        self.checkpoints(name).save(engine, progress, plan, gatherer)

    def checkpoints(self, name: str) -> PhaseCheckpoints:
        run = self.config.run
        return PhaseCheckpoints(Path(run.dir) / "checkpoints" / name, run.keep_checkpoints, self.comm)

    def progress(self, name: str, total: int, start: int = 0) -> ProgressBar:
        enabled = self.comm.is_main and self.config.track.progress
        return ProgressBar(name, total, start, enabled=enabled, ranks=self.comm.world_size)

    def micro_batches(self, role: str) -> MicroBatches:
        """The global micro-batches of the training set; mining draws another order from the same utterances."""
        data, dataset = self.config.data, self.inputs.train
        return MicroBatches(
            self.augmentation.longest(dataset.lengths) if role == "train" else dataset.lengths,
            dataset.language_ids,
            seed=seed_of(self.config.run.seed, role),
            temperature=data.temperature,
            max_frames=data.max_frames,
            max_utterances=data.max_utterances,
            rows=dataset.rows,
        )

    @property
    def augmentation(self) -> Augmentation:
        """What training, and nothing else, does to utterances."""
        data = self.config.data
        return Augmentation(self.config.run.seed, data.speeds, data.spec_augment)

    def loader(
        self,
        dataset: SpeechDataset,
        micro_batches: MicroBatches,
        start: Position,
        updates: int,
        augmentation: Augmentation = NONE,
    ) -> Iterator[Batch]:
        """This rank's micro-batches of the next ``updates`` updates."""
        workers = self.config.data.workers
        sampler = UpdateSampler(
            micro_batches,
            start,
            updates=updates,
            per_update=self.config.train.micro_batches,
            rank=self.comm.rank,
            world_size=self.comm.world_size,
        )
        return iter(
            DataLoader(
                AugmentedSpeech(dataset, augmentation),
                batch_sampler=sampler,
                collate_fn=self.collate,
                num_workers=workers,
                timeout=self.config.guard.timeout if workers else 0,
                worker_init_fn=leave_signals_to_the_rank,
                pin_memory=self.comm.device.type != "cpu",
                # A fork of a process that holds threads of the collective library may hang.
                multiprocessing_context=get_context("spawn") if workers else None,
            )
        )

    @property
    def collate(self) -> Collator:
        return self.inputs.collate

    def check_stop(self, doing: str) -> None:
        """Before a batch of anything but training: the watchdog hears of it, and all end together if a signal came to any rank.

        Collective: a number is summed over ranks.

        Raises:
            Interrupted: there is nothing to save.
        """
        self.watchdog.beat(f"waiting for other ranks before {doing}")
        if self.comm.sum_floats(self.stop.received)[0]:
            raise Interrupted(f"stopped by a signal in {doing}; it starts anew when the run is resumed")
        self.watchdog.beat(doing)

    def on_main(self, what: str, compute: Callable[[], T]) -> T:
        """:meth:`Communicator.from_main` for long work, for which the others wait up to ``guard.setup_timeout``. Collective.

        Raises:
            RankZeroError: it failed. Interrupted: a signal came to some rank.
        """
        guard = self.config.guard
        self.comm.limit_waiting(max(guard.setup_timeout, guard.timeout))
        try:
            with self.watchdog.alone(what):
                return Interruptible(self.comm, self.stop).from_main(compute)
        finally:
            self.comm.limit_waiting(guard.timeout)

    def _seed_dropout(self, phase: PhaseConfig, update: int, number: int) -> None:
        """Randomness is arithmetic: a micro-batch draws the same dropout at every world size, after a resume, in all arms."""
        stage = "specialise" if isinstance(phase, SpecialiseConfig) else "unify"
        global_number = number * self.comm.world_size + self.comm.rank
        torch.manual_seed(seed_of(self.config.run.seed, stage, update, global_number))


def _ignore(batch: Batch) -> None:
    """What a step that is not mined does with a micro-batch."""
