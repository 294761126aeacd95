"""The training loop, on one screen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

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
from gdps_ds.training.checkpoint import Best, PhaseCheckpoints, Progress
from gdps_ds.training.inputs import Inputs
from gdps_ds.training.interrupt import Interrupted, StopSignal, leave_signals_to_the_rank
from gdps_ds.training.language_losses import LanguageLosses, NonFiniteUpdates
from gdps_ds.training.loss import utterance_losses
from gdps_ds.training.metered import MeteredBatches
from gdps_ds.training.mining import MiningWindow
from gdps_ds.training.pcgrad import PCGrad
from gdps_ds.training.schedule import hyperparameters
from gdps_ds.training.selection import DevSet, better_of, is_over


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

        Args:
            plan: what the engine's model is split by.

        Raises:
            Interrupted: a signal came to some rank; on every rank, after a checkpoint.
            FloatingPointError: a loss is not finite, or a gradient is not and ``guard`` does not let it pass.
        """
        train, checkpoints, position, best = self.config.train, self.checkpoints(name), start.position, start.best
        gatherer = mining.gatherer if mining else None
        micro_batches = self.micro_batches("train")
        batches = MeteredBatches(self.loader(self.inputs.train, micro_batches, position, end - start.update, self.augmentation))
        losses = LanguageLosses(self.config.data.languages, self.comm)
        nonfinite = NonFiniteUpdates(self.config.guard, self.comm)
        with self.progress(name, phase.updates, start.update) as bar, self.watchdog.watching(name):
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
                if update % train.dev_every == 0 or update == phase.updates:
                    best = self._evaluated(engine, name, update, best)
                progress = Progress(update, position, best)
                over = update == end or is_over(progress, phase, train)
                wanted = progress.is_best and self.config.run.use == "best"
                if over or stop or wanted or update % train.checkpoint_every == 0:
                    checkpoints.save(engine, progress, plan, gatherer)
                if over:
                    break
                if stop:
                    raise Interrupted(f"stopped by a signal after update {update} of {name}; the checkpoint is written")
        if start.update == end:  # a phase without updates still leaves a checkpoint to start from
            progress = start
            checkpoints.save(engine, progress, plan, gatherer)
        return progress

    def _evaluated(self, engine: Engine, name: str, update: int, best: Best | None) -> Best:
        """Evaluate the dev set; the best evaluation of the phase by now."""
        found = DevSet(self.config, self.comm, self.inputs, self.watchdog).evaluate(engine)
        self.tracker.log(name, update, **found)
        return better_of(best, update, found, self.config.train.select)

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

    def check_stop(self) -> None:
        """Outside of training there is nothing to save: end together if a signal came to any rank. Collective."""
        if self.comm.sum_floats(self.stop.received)[0]:
            raise Interrupted("stopped by a signal; this phase starts anew when the run is resumed")

    def _seed_dropout(self, phase: PhaseConfig, update: int, number: int) -> None:
        """Randomness is arithmetic: a micro-batch draws the same dropout at every world size, after a resume, in all arms."""
        stage = "specialise" if isinstance(phase, SpecialiseConfig) else "unify"
        global_number = number * self.comm.world_size + self.comm.rank
        torch.manual_seed(seed_of(self.config.run.seed, stage, update, global_number))


def _ignore(batch: Batch) -> None:
    """What a step that is not mined does with a micro-batch."""
