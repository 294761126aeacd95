"""The run: unify -> mine -> plan -> split -> specialise -> evaluate, for each arm of ``run.arms`` from one unified model.

Every phase leaves a file when it is done, and is skipped when that file is there: that is all there is to resuming.

    checkpoints/unified/      the unified model, from which all arms start
    sketches.safetensors      what mining found
    plan.json                 what rank 0 decided; plans/<arm>.json of arms but gdps and uniform
    scores/<arm>.json         an arm is trained, translated and scored
    summary.json              the run is complete
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from gdps_ds.analysis.arms import GDPS, PCGRAD, UNIFORM
from gdps_ds.config import Config, PhaseConfig
from gdps_ds.data.collate import Batch
from gdps_ds.data.sampling import Position
from gdps_ds.deepspeed_file import load_deepspeed_file
from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.replacer import replace_blocks, split_partitioned
from gdps_ds.distributed.saved_state import load_weights, restore
from gdps_ds.distributed.settings import model_loading
from gdps_ds.evaluation.arm_scores import ArmScores, read_arm_scores, write_arm_scores
from gdps_ds.evaluation.decoding import Translation, translate
from gdps_ds.evaluation.metrics import pairs_of, score_pairs, scored_pairs, signatures, unscored
from gdps_ds.evaluation.systems import translation_notes, write_translations
from gdps_ds.files import atomic_write
from gdps_ds.model.families import hidden_widths, load_model, matching_blocks
from gdps_ds.model.surgery import keeps_function
from gdps_ds.plan import SharingPlan
from gdps_ds.reporting.run_metrics import UNIFIED
from gdps_ds.reporting.score_tables import comparison_table
from gdps_ds.training.checkpoint import Checkpoint, Progress
from gdps_ds.training.inputs import with_loss
from gdps_ds.training.loss import utterance_losses
from gdps_ds.training.pcgrad import PCGrad, require_stage_zero
from gdps_ds.training.planning import check_folds, check_planning, decide, given_plan, mine_again, mining_window
from gdps_ds.training.run_dir import plan_path
from gdps_ds.training.selection import is_over
from gdps_ds.training.trainer import Trainer

START = Progress(0, Position())
MAX_LOSS_JUMP = 0.05
"""A split that must keep the function but moves the loss by more than this (in any precision) is a fault, not rounding."""


class Run:
    """One experiment in its run directory."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.config: Config = trainer.config
        self.comm: Communicator = trainer.comm
        self.dir = Path(self.config.run.dir)
        self.uniform = SharingPlan.uniform(self.config.data.languages)
        self._settings = load_deepspeed_file(self.config.deepspeed)
        if PCGRAD in self.config.run.arms:
            require_stage_zero(self._settings, self.config.deepspeed)
        self.comm.from_main(lambda: check_folds(self.config, trainer.inputs.train))

    def execute(self) -> dict[str, Any]:
        """Do what is not done yet; gives the summary. Collective."""
        engine: Engine | None = None
        if not self._is_unified():
            engine = self._used(UNIFIED, self._unify())
        for arm in self.config.run.arms:
            if not self.comm.from_main(self._scores_path(arm).is_file):
                engine = self._used(arm, self._specialise(arm, engine))
                mine_again(self.trainer, engine, arm)
                self._evaluate(arm, engine)
                _closed(engine)
                engine = None
        _closed(engine)
        summary = self.comm.from_main(self._summarise)
        if self.config.track.report:
            self._say(self.trainer.on_main("making the report", self._report))
        return summary

    # Phases -----------------------------------------------------------------------------------------------------------

    def _unify(self) -> Engine:
        phase, checkpoints = self.config.train.unify, self.trainer.checkpoints(UNIFIED)
        saved = checkpoints.latest()
        engine = self._open(saved)
        self.comm.from_main(lambda: check_planning(self.config, engine.module))
        mining = mining_window(self.trainer, engine)
        if mining is not None:
            checkpoints.load_mining(lambda: mining.gatherer)
        start = self._going_on(UNIFIED, saved, phase) if saved else START
        self.trainer.train(engine, UNIFIED, phase, start, phase.updates, self.uniform, mining)
        return engine

    def _specialise(self, arm: str, unified: Engine | None) -> Engine:
        """Train an arm to its end; ``unified`` is the live engine of the unified model, where there is one."""
        phase, saved = self.config.train.specialise, self.trainer.checkpoints(arm).latest()
        if saved is not None:
            _closed(unified)
            engine, plan, progress = self._open(saved), saved.plan, self._going_on(arm, saved, phase)
        else:
            base = self._checkpoint(UNIFIED)
            assert base is not None, "the unified phase has ended with a checkpoint"
            engine, progress = unified or self._open(base), replace(base.progress, update=0, best=None)
            if unified is None:  # trained by another run, or before this start
                self.comm.from_main(lambda: check_planning(self.config, engine.module))
            plan = decide(self.trainer, engine, self.trainer.checkpoints(UNIFIED))[arm]
            engine = self._replace(arm, engine, self.uniform, plan, 0)
        # A checkpoint at the update of a later plan was written before that plan was applied.
        for later in phase.later_plans if arm == GDPS else ():
            if later.update >= progress.update:
                if later.update > progress.update or progress.pending:
                    progress = self.trainer.train(engine, arm, phase, progress, later.update, plan)
                old, plan = plan, given_plan(self.comm, later.from_file)
                engine = self._replace(arm, engine, old, plan, later.update)
        if not is_over(progress, phase, self.config.train) or self.trainer.checkpoints(arm).latest() is None:
            pcgrad = self._pcgrad(engine) if arm == PCGRAD else None
            with pcgrad.attached() if pcgrad else contextlib.nullcontext():
                self.trainer.train(engine, arm, phase, progress, phase.updates, plan, pcgrad=pcgrad)
        return engine

    def _pcgrad(self, engine: Engine) -> PCGrad:
        sites = [site.name for site in given_plan(self.comm, plan_path(self.dir, GDPS)).sites]
        return PCGrad(engine, sites, len(self.config.data.languages), self.config.run.seed)

    def _replace(self, arm: str, engine: Engine, old: SharingPlan, plan: SharingPlan, update: int) -> Engine:
        """Change the blocks in the live engine, and show what that did to the loss of one dev batch."""
        if arm == UNIFORM:
            return engine
        self._say(plan.summary())
        groups = [list(group) for group in plan.groups]
        self.trainer.tracker.log("plan", update, arm=arm, digest=plan.digest, sites=len(plan.sites), groups=groups)
        if plan.digest == old.digest or (plan.is_uniform and old.is_uniform):
            return engine
        before = self._probe(engine)
        engine = replace_blocks(engine, old, plan, self.config.data.languages, self.config.run.seed)
        after = self._probe(engine)
        self._say(f"split: loss {before:.6f} before, {after:.6f} after (difference {after - before:+.2e})")
        self.trainer.tracker.log("split", update, arm=arm, before=before, after=after)
        if old.is_uniform and keeps_function(plan) and abs(after - before) > MAX_LOSS_JUMP:
            raise RuntimeError(
                f"the split must keep the model's function, but the loss went from {before:.6f} to {after:.6f}; the unified "
                f"checkpoint in {self.dir / 'checkpoints' / UNIFIED} is untouched"
            )
        return engine

    def _used(self, name: str, engine: Engine) -> Engine:
        """The model of a finished phase that ``run.use`` asks for; ``engine`` holds its last."""
        used, last = self._checkpoint(name), self.trainer.checkpoints(name).latest()
        if used is None or last is None or used.folder == last.folder:
            return engine
        engine.close()
        best, by = used.progress.best, self.config.train.select.by
        assert best is not None, "what is not the last is the best"
        self._say(f"{name}: update {best.update} is used, its dev {by} is the best: {best.value:.4f}")
        return self._open(used)

    def _checkpoint(self, name: str) -> Checkpoint | None:
        return self.trainer.checkpoints(name).used(self.config.run.use)

    def _evaluate(self, arm: str, engine: Engine) -> None:
        trainer, settings = self.trainer, self.config.decoding
        dataset = trainer.inputs.test
        where = f"the translation of the test set by {arm}"
        with trainer.progress(f"translate {arm}", len(dataset)) as bar, trainer.watchdog.watching(where):

            def before_batch(batch: Batch) -> None:
                trainer.check_stop(where)
                bar.saw(batch)
                bar.step(count=len(batch) * self.comm.world_size)

            inputs = trainer.inputs
            translations = translate(engine, dataset, inputs.tokenizer, inputs.collate, settings, before_batch)
        parameters = sum(getattr(each, "ds_numel", each.numel()) for each in engine.module.parameters())
        scores = trainer.on_main(f"scoring {arm}", lambda: self._score(arm, translations, parameters))
        trainer.tracker.log(f"scores-{arm}", 0, **scores)

    def _score(self, arm: str, translations: list[Translation], parameters: int) -> dict[str, Any]:
        settings = self.config.decoding
        scores = score_pairs(translations, settings)
        notes = [*filter(None, [unscored(translations)]), *translation_notes(translations)]
        for note in notes:
            self._say(f"{arm}: {note}")
        write_translations(self.dir / "hypotheses" / f"{arm}.jsonl", translations, settings)
        pairs = scored_pairs(translations) or pairs_of(translations)
        used = signatures({name: pair.target for name, pair in pairs.items()}, settings)
        write_arm_scores(self._scores_path(arm), ArmScores(scores, used, parameters, tuple(notes)))
        return scores

    def _summarise(self) -> dict[str, Any]:
        arms = {arm: read_arm_scores(self._scores_path(arm)) for arm in self.config.run.arms}
        used = next(iter(arms.values())).signatures
        summary: dict[str, Any] = {"scores": {arm: each.scores for arm, each in arms.items()}, "signatures": used}
        path = plan_path(self.dir, GDPS)
        plan = SharingPlan.load(path) if path.is_file() else None
        if plan is not None:
            summary["plan"] = {
                "digest": plan.digest,
                "groups": plan.groups,
                "sites": [site.name for site in plan.sites],
            }
        notes = [f"{arm}: {note}" for arm, each in arms.items() for note in each.notes]
        notes += [
            f"{arm} was scored in another way: {each.signatures}" for arm, each in arms.items() if each.signatures != used
        ]
        text = "\n".join([comparison_table(summary["scores"], summary["signatures"]), *notes])
        if plan is not None:
            text = f"{plan.summary()}\n\n{text}"
        with atomic_write(self.dir / "summary.txt") as file:
            file.write(text + "\n")
        with atomic_write(self.dir / "summary.json") as file:
            json.dump(summary, file, indent=2)
        print(f"\n{text}", flush=True)
        return summary

    def _report(self) -> str:
        try:  # matplotlib takes seconds, only rank 0 draws, and a run is complete without it
            from gdps_ds.reporting.run_report import finish_report
        except Exception as error:
            return f"report: {type(error).__name__}: {error}; the run itself is complete"
        return finish_report(self.dir, self.trainer.tracker)

    # Pieces -----------------------------------------------------------------------------------------------------------

    def _open(self, checkpoint: Checkpoint | None) -> Engine:
        """An engine around the model that training starts from, or exactly as it was when a checkpoint was written.

        Raises:
            CheckpointError, ForeignStateError: the checkpoint is damaged or another model's.
        """
        settings, train, model = self._settings, self.config.train, self.config.model
        if checkpoint is not None:
            checkpoint.verify(self.comm)
        with model_loading(settings, train, self.comm.world_size, model.pretrained is not None):
            module = load_model(model, self.trainer.inputs.tokenizer, self.config.run.seed)
        sites = matching_blocks(module, self.config.mine.sites)
        if checkpoint is None:
            return Engine(module, self.comm, settings, train, sites)
        router, plan, languages = None, checkpoint.plan, self.config.data.languages
        if not plan.is_uniform:
            plan.validate(hidden_widths(module), languages)
            router = split_partitioned(module, plan, languages, self.config.run.seed, self.comm)
        with checkpoint.state() as saved:
            load_weights(module, saved)
            engine = Engine(module, self.comm, settings, train, sites, router)
            restore(engine, saved)
        return engine

    def _going_on(self, name: str, saved: Checkpoint, phase: PhaseConfig) -> Progress:
        self._say(f"{name}: going on after update {saved.progress.update} of {phase.updates}")
        return saved.progress

    def _probe(self, engine: Engine) -> float:
        """Loss per token of the longest dev utterances in evaluation mode: the same batch on every rank and at every time."""
        dataset = self.trainer.inputs.dev
        data, usable = self.config.data, with_loss(dataset, self.config.data)
        longest = usable[dataset.lengths[usable].argsort(kind="stable")[::-1]]
        fitting = min(data.max_utterances, data.max_frames // int(dataset.lengths[longest[0]]))
        batch = self.trainer.inputs.collate([dataset[int(index)] for index in longest[:fitting]])
        with engine.evaluating():
            losses = utterance_losses(engine.forward(batch), batch, 0.0)
        return losses.sum().item() / batch.target_tokens

    def _is_unified(self) -> bool:
        saved = self.trainer.checkpoints(UNIFIED).latest()
        return saved is not None and is_over(saved.progress, self.config.train.unify, self.config.train)

    def _scores_path(self, arm: str) -> Path:
        return self.dir / "scores" / f"{arm}.json"

    def _say(self, text: str) -> None:
        if self.comm.is_main:
            print(text, flush=True)


def _closed(engine: Engine | None) -> None:
    """Free an engine before another is built."""
    if engine is not None:
        engine.close()
