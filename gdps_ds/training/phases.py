"""The run: unify -> mine -> plan -> split -> specialise -> evaluate, and the uniform arm beside it.

Every phase leaves a file when it is done, and is skipped when that file is there: that is all there is to resuming.

    checkpoints/unified/      the unified model, from which both arms start
    sketches.safetensors      what mining found
    plan.json                 what rank 0 decided
    scores/<arm>.json         an arm is trained, translated and scored
    summary.json              the run is complete
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gdps_ds.config import Config, PhaseConfig
from gdps_ds.config_file import load_deepspeed_file
from gdps_ds.data.collate import Batch
from gdps_ds.data.manifest import atomic_write
from gdps_ds.data.sampling import Position
from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.engine import Engine, model_loading
from gdps_ds.distributed.replacer import replace_blocks, split_partitioned
from gdps_ds.evaluation.decoding import Translation, translate
from gdps_ds.evaluation.metrics import score_languages, signatures
from gdps_ds.model.families import find_sites, hidden_widths, load_model
from gdps_ds.model.surgery import keeps_function
from gdps_ds.plan import SharingPlan
from gdps_ds.reporting.summary import comparison_table
from gdps_ds.training.checkpoint import Progress
from gdps_ds.training.loss import utterance_losses
from gdps_ds.training.mining import MiningWindow
from gdps_ds.training.planning import decide, mining_window
from gdps_ds.training.trainer import Trainer

UNIFIED = "unified"
START = Progress(0, Position(), 0, 0)
MAX_LOSS_JUMP = 0.05
"""A split that must keep the function but moves the loss by more than this (in any precision) is a fault, not rounding."""


class Run:
    """One experiment in its run directory."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.config: Config = trainer.config
        self.comm: Communicator = trainer.comm
        self.dir = Path(self.config.run.dir)
        self._settings = load_deepspeed_file(self.config.deepspeed)

    def execute(self) -> dict[str, Any]:
        """Do what is not done yet; gives the summary. Collective."""
        engine: Engine | None = None
        if not self._is_unified():
            engine = self._unify()
        for arm in self.config.run.arms:
            if not self._scores_path(arm).is_file():
                engine = self._specialise(arm, engine)
                self._evaluate(arm, engine)
                _closed(engine)
                engine = None
        _closed(engine)
        return self.comm.from_main(self._summarise)

    # Phases -----------------------------------------------------------------------------------------------------------

    def _unify(self) -> Engine:
        engine = self._engine()
        return self._train(UNIFIED, self.config.train.unify, engine, START, mining=mining_window(self.trainer, engine))

    def _specialise(self, arm: str, unified: Engine | None) -> Engine:
        """Train an arm to its end; ``unified`` is the live engine of the unified model, where there is one."""
        saved = self.trainer.checkpoints(arm)
        if saved.latest() is not None:
            _closed(unified)
            return self._train(arm, self.config.train.specialise, self._engine(saved.plan()), START, saved.plan())
        engine = unified or self._engine()
        unified_progress = self.trainer.checkpoints(UNIFIED).load(engine) if unified is None else self._unified_progress()
        plan = None
        if arm == "gdps":
            plan = self._plan(engine)
            if plan is not None:
                engine = self._split(engine, plan)
        return self._train(arm, self.config.train.specialise, engine, replace(unified_progress, update=0), plan)

    def _plan(self, engine: Engine) -> SharingPlan | None:
        """What to split, or None where the plan leaves the model uniform."""
        plan = decide(self.trainer, engine, self.trainer.checkpoints(UNIFIED))
        self._say(plan.summary())
        self.trainer.tracker.log("plan", 0, digest=plan.digest, sites=len(plan.sites), groups=[list(g) for g in plan.groups])
        return None if plan.is_uniform else plan

    def _split(self, engine: Engine, plan: SharingPlan) -> Engine:
        """Replace the plan's blocks in the live engine, and show what that did to the loss of one dev batch."""
        before = self._probe(engine)
        engine = replace_blocks(engine, plan, self.config.data.languages, self.config.run.seed)
        after = self._probe(engine)
        self._say(f"split: loss {before:.6f} before, {after:.6f} after (difference {after - before:+.2e})")
        self.trainer.tracker.log("split", 0, before=before, after=after)
        if keeps_function(plan) and abs(after - before) > MAX_LOSS_JUMP:
            raise RuntimeError(
                f"the split must keep the model's function, but the loss went from {before:.6f} to {after:.6f}; the unified "
                f"checkpoint in {self.dir / 'checkpoints' / UNIFIED} is untouched"
            )
        return engine

    def _evaluate(self, arm: str, engine: Engine) -> None:
        trainer, settings = self.trainer, self.config.decode
        dataset = trainer.inputs.test
        with trainer.progress(f"translate {arm}", len(dataset)) as bar:

            def before_batch(batch: Batch) -> None:
                trainer.check_stop()
                bar.saw(batch)
                bar.step(count=len(batch) * self.comm.world_size)

            inputs = trainer.inputs
            translations = translate(engine, dataset, inputs.tokenizer, inputs.collate, settings, before_batch)
        scores = self.comm.from_main(lambda: self._score(arm, translations))
        trainer.tracker.log(f"scores-{arm}", 0, **scores)

    def _score(self, arm: str, translations: list[Translation]) -> dict[str, Any]:
        languages = self.config.data.languages
        normaliser = self.config.decode.normaliser
        by_language = {lang: [row for row in translations if row.source_lang == lang] for lang in languages}
        scores = score_languages(
            {lang: [row.hypothesis for row in rows] for lang, rows in by_language.items()},
            {lang: [str(row.reference) for row in rows] for lang, rows in by_language.items()},
            normaliser,
        )
        with atomic_write(self.dir / "hypotheses" / f"{arm}.jsonl") as file:
            file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in translations)
        with atomic_write(self._scores_path(arm)) as file:
            json.dump({"scores": scores, "signatures": signatures(normaliser)}, file, indent=2)
        return scores

    def _summarise(self) -> dict[str, Any]:
        arms = {arm: json.loads(self._scores_path(arm).read_text()) for arm in self.config.run.arms}
        summary: dict[str, Any] = {"scores": {arm: each["scores"] for arm, each in arms.items()}}
        summary["signatures"] = next(iter(arms.values()))["signatures"]
        plan_path = self.dir / "plan.json"
        plan = SharingPlan.load(plan_path) if plan_path.is_file() else None
        if plan is not None:
            summary["plan"] = {
                "digest": plan.digest,
                "groups": plan.groups,
                "sites": [site.name for site in plan.sites],
            }
        text = comparison_table(summary["scores"], summary["signatures"])
        if plan is not None:
            text = f"{plan.summary()}\n\n{text}"
        with atomic_write(self.dir / "summary.txt") as file:
            file.write(text + "\n")
        with atomic_write(self.dir / "summary.json") as file:
            json.dump(summary, file, indent=2)
        print(f"\n{text}", flush=True)
        return summary

    # Pieces -----------------------------------------------------------------------------------------------------------

    def _engine(self, plan: SharingPlan | None = None) -> Engine:
        """A new engine around a freshly loaded model, split by ``plan`` where there is one."""
        settings, train, model = self._settings, self.config.train, self.config.model
        with model_loading(settings, train, self.comm.world_size, model.pretrained is not None):
            module = load_model(model, self.trainer.inputs.tokenizer, self.config.run.seed)
        sites = find_sites(module, self.config.mine.sites)
        router = None
        if plan is not None:
            plan.validate(hidden_widths(module), self.config.data.languages)
            router = split_partitioned(module, plan, self.config.data.languages, self.config.run.seed)
        return Engine(module, self.comm, settings, train, sites, router)

    def _train(
        self,
        name: str,
        phase: PhaseConfig,
        engine: Engine,
        start: Progress,
        plan: SharingPlan | None = None,
        mining: MiningWindow | None = None,
    ) -> Engine:
        """Train a phase to its end, from its newest checkpoint if it has one, else from ``start``."""
        checkpoints = self.trainer.checkpoints(name)
        if checkpoints.latest() is not None:
            start = checkpoints.load(engine)
            if mining is not None:
                checkpoints.load_mining(mining.gatherer, self.comm.rank)
            self._say(f"{name}: going on after update {start.update} of {phase.updates}")
        if start.update < phase.updates or checkpoints.latest() is None:
            self.trainer.train(engine, name, phase, start, plan, mining)
        return engine

    def _probe(self, engine: Engine) -> float:
        """Loss per token of the longest dev utterances in evaluation mode: the same batch on every rank and at every time."""
        dataset = self.trainer.inputs.dev
        longest = dataset.lengths.argsort(kind="stable")[::-1]
        fitting = min(self.config.data.max_utterances, self.config.data.max_frames // int(dataset.lengths.max()))
        batch = self.trainer.inputs.collate([dataset[int(index)] for index in longest[:fitting]])
        with engine.evaluating():
            losses = utterance_losses(engine.forward(batch), batch, 0.0)
        return losses.sum().item() / batch.target_tokens

    def _is_unified(self) -> bool:
        progress = self.trainer.checkpoints(UNIFIED).latest()
        return progress is not None and progress.update >= self.config.train.unify.updates

    def _unified_progress(self) -> Progress:
        progress = self.trainer.checkpoints(UNIFIED).latest()
        assert progress is not None, "the unified phase has just ended with a checkpoint"
        return progress

    def _scores_path(self, arm: str) -> Path:
        return self.dir / "scores" / f"{arm}.json"

    def _say(self, text: str) -> None:
        if self.comm.is_main:
            print(text, flush=True)


def _closed(engine: Engine | None) -> None:
    """Free an engine before another is built."""
    if engine is not None:
        engine.close()
