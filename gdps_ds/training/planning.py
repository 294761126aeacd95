"""Mine and plan: from a unified model to a sharing plan that every rank holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from torch import nn

from gdps_ds.analysis.arms import GDPS, UNIFORM, Origin, arm_plan
from gdps_ds.analysis.capacity import shared_width
from gdps_ds.analysis.planner import make_plan, sites_to_split
from gdps_ds.analysis.sites import offered_sites
from gdps_ds.analysis.sketch import HALVES, Sketches, fold_of
from gdps_ds.config import Config
from gdps_ds.data.collate import SpeechDataset
from gdps_ds.data.sampling import MicroBatches, Position
from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.gatherer import GradientGatherer
from gdps_ds.files import atomic_path
from gdps_ds.model.families import find_sites, frozen_blocks, hidden_widths, lanes_of, matching_blocks, refuse_frozen
from gdps_ds.plan import PlanError, SharingPlan
from gdps_ds.training.checkpoint import PhaseCheckpoints
from gdps_ds.training.mining import MiningWindow, mine_batch
from gdps_ds.training.run_dir import SKETCHES, plan_path
from gdps_ds.training.trainer import Trainer


def check_planning(config: Config, model: nn.Module) -> None:
    """What plans will ask of the model, so that it shows before the unified model is trained.

    Raises:
        PlanError: a plan that is given does not fit the model, or splits a frozen block.
        ValueError: the model has no such blocks, or none that learn, or no such widths; names the option.
    """
    hidden, settings, frozen = hidden_widths(model), config.plan, frozen_blocks(model)
    for path in (settings.from_file, *(later.from_file for later in config.train.specialise.later_plans)):
        if path is not None:
            plan = SharingPlan.load(path)
            plan.validate(hidden, config.data.languages, path)
            if faults := [
                f"sites.{number}.name: '{site.name}' is frozen (model.freeze), so its lanes would stay copies"
                for number, site in enumerate(plan.sites)
                if site.name in frozen
            ]:
                raise PlanError(path, faults)
    if set(config.run.arms) == {UNIFORM}:
        return
    sites = find_sites(model, config.mine.sites)
    if beside := set(find_sites(model, config.mine.exact, "mine.exact")) - set(sites):
        raise ValueError(f"mine.exact: '{min(beside)}' is not among the candidates; name it in mine.sites too")
    if left_out := sorted(frozen & set(matching_blocks(model, config.mine.sites))):
        print(f"mine.sites: {len(left_out)} frozen blocks (model.freeze) are no candidates, {len(sites)} are", flush=True)
    if settings.from_file is None:
        if not isinstance(settings.sites, int):
            refuse_frozen(settings.sites, sorted(hidden), frozen, "plan.sites")
        groups = (
            settings.groups if isinstance(settings.groups, int) else 1 if settings.groups == "auto" else len(settings.groups)
        )
        for site in offered_sites(sites, settings):
            shared_width(0.5, hidden[site], groups, settings.round_to, settings.width)


def decide(trainer: Trainer, engine: Engine, unified: PhaseCheckpoints) -> dict[str, SharingPlan]:
    """Arm -> its plan, the same on every rank: already made, given, or made by rank 0 from what is mined. Collective.

    All arms are planned at once, so that one that cannot be planned stops the run before any of them is trained.

    Raises:
        RankZeroError: rank 0 could not plan, or the given plan cannot be read.
        PlanError: a plan does not fit the model or the run.
    """
    config, comm, folder = trainer.config, trainer.comm, Path(trainer.config.run.dir)
    plans: dict[str, SharingPlan] = {UNIFORM: SharingPlan.uniform(config.data.languages)}
    split = [arm for arm in config.run.arms if arm != UNIFORM]
    if not split:
        return plans
    todo = comm.from_main(lambda: [arm for arm in dict.fromkeys([GDPS, *split]) if not plan_path(folder, arm).is_file()])
    if todo:
        needed = config.plan.from_file is None or set(split) != {GDPS}
        if needed and not comm.from_main((folder / SKETCHES).is_file):
            mine(trainer, engine, unified)
        trainer.on_main("planning", lambda: _write_plans(config, folder, todo))
    for arm in split:
        plans[arm] = given_plan(comm, plan_path(folder, arm))
        plans[arm].validate(hidden_widths(engine.module), config.data.languages)
        comm.agree(plans[arm].digest, f"the sharing plan of arm {arm}")
    return plans


def _write_plans(config: Config, folder: Path, arms: Sequence[str]) -> None:
    sketches = Sketches.load(folder / SKETCHES) if (folder / SKETCHES).is_file() else None
    if sketches is not None:
        require_gradients(sketches)
    if GDPS in arms:
        if config.plan.from_file is not None:
            ours = SharingPlan.load(config.plan.from_file)
        else:
            assert sketches is not None, "mined by now"
            ours = make_plan(sketches, config.plan)
        ours.save(plan_path(folder, GDPS))
    origin = Origin(SharingPlan.load(plan_path(folder, GDPS)), sketches, config.plan, config.run.seed)
    for arm in arms:
        if arm != GDPS:
            plan_path(folder, arm).parent.mkdir(exist_ok=True)
            arm_plan(arm, origin).save(plan_path(folder, arm))


def check_folds(config: Config, train: SpeechDataset) -> None:
    """Every language has utterances in both halves of the folds, without which neurons cannot be ranked.

    More mining does not help where the training set holds no other utterances, so that this shows before anything is trained.

    Raises:
        ValueError: names the languages, how many utterances they have, and the options that help.
    """
    mined = set(config.run.arms) - ({UNIFORM} if config.plan.from_file is None else {UNIFORM, GDPS})
    ranked = config.plan.init == "neurons" or config.mine.neurons == "all"
    if not mined or not ranked or len(config.data.languages) == 1:
        return
    rows = np.arange(len(train)) if train.rows is None else train.rows
    ids, poor = train.language_ids[rows], []
    for index, language in enumerate(config.data.languages):
        own, halves = rows[ids == index], set()
        for row in own:
            halves.add(fold_of(train.utterances[int(row)].id, train.folds) % HALVES)
            if len(halves) == HALVES:
                break
        else:
            poor.append(f"{language} ({len(own)} utterances)")
    if poor:
        raise ValueError(
            f"mining needs utterances of every language in an even and in an odd one of the {train.folds} folds (mine.folds) "
            f"that ids fall into, and the training set has none in one of the two for {', '.join(poor)}; add utterances, leave "
            "the language out of data.languages, give a plan (plan.from), or train run.arms=[uniform] alone"
        )


def given_plan(comm: Communicator, path: str | Path) -> SharingPlan:
    """The plan in a file that rank 0 can read, on every rank. Collective."""
    return SharingPlan.from_json(comm.from_main(lambda: Path(path).read_text(encoding="utf-8")), str(path))


def mine(trainer: Trainer, engine: Engine, unified: PhaseCheckpoints) -> None:
    """Write the sketches of the run to :data:`SKETCHES`. Collective."""
    config, comm = trainer.config, trainer.comm
    if config.mine.during == "training":
        gatherer, expected = _mined_in_training(trainer, engine, unified)
    else:
        gatherer, expected = _mine_in_a_pass(trainer, engine, _exact_sites(trainer, engine))
    sketches = _reduced(gatherer, expected, comm, neurons=config.mine.neurons == "all")
    comm.from_main(lambda: require_gradients(sketches))
    if config.mine.neurons == "chosen" and config.plan.init == "neurons":
        chosen = trainer.on_main("choosing sites", lambda: sites_to_split(sketches, config.plan))
        sketches = gatherer.with_neurons(sketches, chosen, comm)
    folder = Path(config.run.dir)
    gradients = {
        f"{site}/{number}": gradient
        for site in _exact_sites(trainer, engine)
        for number, gradient in enumerate(gatherer.exact(site, comm))
    }
    if gradients:
        comm.from_main(lambda: _save_gradients(gradients, folder / "gradients.safetensors"))
    comm.from_main(lambda: sketches.save(folder / SKETCHES))


def _reduced(gatherer: GradientGatherer, expected: int, comm: Communicator, *, neurons: bool) -> Sketches:
    """The sums over all ranks, which must hold as many utterances as were to be mined. Collective."""
    sketches = gatherer.reduce(comm, neurons=neurons)
    if sketches.utterances.sum() != expected:
        raise RuntimeError(f"mining counted {sketches.utterances.sum():.0f} utterances, but its batches hold {expected}")
    return sketches


def require_gradients(sketches: Sketches) -> None:
    """Raise a :class:`ValueError` that names a site which no gradient of a mined language has reached."""
    mined = sketches.tokens.sum(axis=1) > 0
    for name, site in sketches.sites.items():
        silent = mined & ~site.core.any(axis=(0, 2, 3, 4))
        if silent.any():
            languages = ", ".join(language for language, none in zip(sketches.languages, silent, strict=True) if none)
            raise ValueError(
                f"mining found no gradient at '{name}' for {languages}, the sketch is all zeros: the block is frozen "
                "(model.freeze), or gradients vanish in the precision of the DeepSpeed file"
            )


def _save_gradients(gradients: Mapping[str, np.ndarray], path: Path) -> None:
    with atomic_path(path) as aside:
        save_file(dict(gradients), aside)


def mine_again(trainer: Trainer, engine: Engine, arm: str) -> None:
    """What the languages of a trained arm still disagree on, by lanes where it is split: ``sketches.<arm>.safetensors``.

    Collective.
    """
    comm, path = trainer.comm, Path(trainer.config.run.dir) / f"sketches.{arm}.safetensors"
    if trainer.config.mine.again and _sites(engine, trainer.config.mine.sites) and not comm.from_main(path.is_file):
        sketches = _reduced(*_mine_in_a_pass(trainer, engine), comm, neurons=False)
        comm.from_main(lambda: sketches.save(path))


def mining_window(trainer: Trainer, engine: Engine) -> MiningWindow | None:
    """The window of the unified phase in which gradients are mined, if ``mine.during`` is training."""
    mine, unify = trainer.config.mine, trainer.config.train.unify
    if mine.during != "training":
        return None
    exact = _exact_sites(trainer, engine)
    return MiningWindow(lambda: _gatherer(trainer, engine, exact), unify.updates - mine.updates, mine.every)


def _mine_in_a_pass(trainer: Trainer, engine: Engine, exact: Sequence[str] = ()) -> tuple[GradientGatherer, int]:
    """Gradients at the model as it is, on batches in an order of their own; and how many utterances those hold."""
    updates, per_update = trainer.config.mine.updates, trainer.config.train.micro_batches
    micro_batches = trainer.micro_batches("mine")
    gatherer = _gatherer(trainer, engine, exact)
    batches, count = trainer.loader(trainer.inputs.train, micro_batches, Position(), updates), updates * engine.accumulation
    with gatherer.attached(), trainer.progress("mine", count) as bar, trainer.watchdog.watching("mining"):
        for number in range(count):
            trainer.check_stop(f"batch {number + 1} of mining")
            batch = next(batches)
            mine_batch(engine, gatherer, batch, trainer.config.train.label_smoothing)
            bar.saw(batch)
            bar.step()
        trainer.check_stop("the end of mining")
    return gatherer, _utterances(micro_batches, Position(), updates * per_update)


def _mined_in_training(trainer: Trainer, engine: Engine, unified: PhaseCheckpoints) -> tuple[GradientGatherer, int]:
    """The sums that the unified phase left in its last checkpoint; and how many utterances they should hold."""
    window = mining_window(trainer, engine)
    assert window is not None
    unified.load_mining(lambda: window.gatherer)
    micro_batches, per_update = trainer.micro_batches("train"), trainer.config.train.micro_batches
    position = micro_batches.advance(Position(), window.first * per_update)
    expected = 0
    for update in range(window.first + 1, trainer.config.train.unify.updates + 1):
        if window.covers(update):
            expected += _utterances(micro_batches, position, per_update)
        position = micro_batches.advance(position, per_update)
    return window.gatherer, expected


def _gatherer(trainer: Trainer, engine: Engine, exact: Sequence[str]) -> GradientGatherer:
    config = trainer.config
    sites = [lane for site in _sites(engine, config.mine.sites) for lane in lanes_of(engine.module, site)]
    return GradientGatherer(
        engine.module, sites, config.data.languages, config.mine, config.run.seed, trainer.comm.device, exact
    )


def _exact_sites(trainer: Trainer, engine: Engine) -> tuple[str, ...]:
    return _sites(engine, trainer.config.mine.exact, "mine.exact")


def _sites(engine: Engine, patterns: Sequence[str], option: str = "mine.sites") -> tuple[str, ...]:
    """The candidates; none where all are frozen, which :func:`check_planning` has refused if anything is to be split."""
    frozen = frozen_blocks(engine.module)
    return tuple(site for site in matching_blocks(engine.module, patterns, option) if site not in frozen)


def _utterances(micro_batches: MicroBatches, position: Position, count: int) -> int:
    return sum(len(batch) for batch in micro_batches.take(position, count))
