"""What follows an update: what is saved when, what a signal ends, and what a run that goes on makes up for."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gdps_ds.config import Config
from gdps_ds.data.sampling import Position
from gdps_ds.distributed.comm import Communicator, RankZeroError
from gdps_ds.plan import SharingPlan
from gdps_ds.training import checkpoint, trainer
from gdps_ds.training.checkpoint import BEST, MINING, Best, PhaseCheckpoints, Progress
from gdps_ds.training.interrupt import SIGNALS, Interrupted, Interruptible, StopSignal
from gdps_ds.training.mining import MiningWindow
from gdps_ds.training.selection import is_over
from gdps_ds.training.trainer import Trainer
from tests.tiny import ALONE, LANGUAGES

UNIFORM = SharingPlan.uniform(LANGUAGES)


class Phase:
    """A phase of 6 updates, evaluated every 2 and saved every 4, of which only what follows an update is real."""

    def __init__(self, config: Config, monkeypatch: pytest.MonkeyPatch, use: str = "last") -> None:
        self.did: list[str] = []
        self.signal_in_dev = False
        self.losses = {2: 3.0, 4: 2.0, 6: 4.0}
        train = config.train.model_copy(update={"dev_every": 2, "checkpoint_every": 4})
        config = config.model_copy(update={"train": train, "run": config.run.model_copy(update={"use": use})})
        watchdog = SimpleNamespace(beat=lambda doing: None)
        tracker = SimpleNamespace(log=lambda phase, update, **values: self.did.append(f"log {update}"))
        self.trainer = Trainer(config, ALONE, None, tracker, SimpleNamespace(received=False), watchdog)
        self.phase = train.unify
        self.update = 0
        monkeypatch.setattr(trainer, "DevSet", lambda config, comm, inputs, before: SimpleNamespace(evaluate=self.evaluate))
        monkeypatch.setattr(Trainer, "checkpoints", lambda owner, name: SimpleNamespace(record=self.record))

    def evaluate(self, engine: object) -> dict[str, dict[str, float]]:
        self.did.append(f"dev {self.update}")
        if self.signal_in_dev:
            raise Interrupted
        return {"dev": {"aeb": self.losses[self.update]}}

    def record(self, progress: Progress) -> None:
        self.did.append(f"record {progress.update}")
        assert not progress.pending

    def save(self, progress: Progress) -> None:
        self.did.append(f"save {progress.update}{' pending' if progress.pending else ''}")

    def reached(self, update: int, *, stop: bool = False, best: Best | None = None) -> Progress:
        self.update = update
        progress = Progress(update, Position(), best, pending=update % 2 == 0)
        return self.trainer._reached(None, "unified", self.phase, progress, self.save, last=update == 6, stop=stop)


def test_a_checkpoint_is_written_before_the_dev_set_is_evaluated(run_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    phase = Phase(run_config, monkeypatch)
    best = None
    for update in range(1, 7):
        best = phase.reached(update, best=best).best
    assert phase.did == [
        *("dev 2", "log 2"),
        *("save 4 pending", "dev 4", "log 4", "record 4"),
        *("save 6 pending", "dev 6", "log 6", "record 6"),
    ]
    assert best == Best(4, 2.0)


def test_the_best_is_kept_where_no_checkpoint_was_due(run_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    phase = Phase(run_config, monkeypatch, use="best")
    assert phase.reached(2).is_best
    assert phase.did == ["dev 2", "log 2", "save 2"]


@pytest.mark.parametrize(
    ("update", "stop", "did"),
    [
        (1, True, ["save 1"]),
        (2, True, ["save 2 pending"]),  # the dev set can wait: schedulers do not
        (2, False, ["dev 2", "save 2 pending"]),
        (4, False, ["save 4 pending", "dev 4"]),
        (6, False, ["save 6 pending", "dev 6"]),
    ],
)
def test_a_signal_loses_no_update_in_training_or_in_the_dev_evaluation(
    run_config: Config, monkeypatch: pytest.MonkeyPatch, update: int, stop: bool, did: list[str]
) -> None:
    phase = Phase(run_config, monkeypatch)
    phase.signal_in_dev = True
    where = "" if stop else "in the dev evaluation "
    with pytest.raises(Interrupted, match=rf"signal {where}after update {update} of unified; the checkpoint is written"):
        phase.reached(update, stop=stop)
    assert phase.did == did


def test_a_phase_is_not_over_before_its_last_evaluation(run_config: Config) -> None:
    progress = Progress(6, Position(), pending=True)
    assert not is_over(progress, run_config.train.unify, run_config.train)
    assert is_over(Progress(6, Position()), run_config.train.unify, run_config.train)


# Checkpoints on disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PhaseCheckpoints:
    """Real ones, of an engine that is a single file."""

    def save_state(engine: object, folder: Path) -> list[Path]:
        (folder / "state").write_bytes(b"weights")
        return [folder / "state"]

    monkeypatch.setattr(checkpoint, "save_state", save_state)
    return PhaseCheckpoints(tmp_path / "unified", 1, ALONE)


def test_an_evaluation_is_written_into_its_checkpoint(checkpoints: PhaseCheckpoints, tmp_path: Path) -> None:
    engine = SimpleNamespace(comm=ALONE)
    checkpoints.save(engine, Progress(2, Position(), None, pending=True), UNIFORM)
    saved = checkpoints.latest()
    assert saved is not None and saved.progress.pending
    assert not (tmp_path / "unified" / BEST).exists()
    checkpoints.record(Progress(2, Position(), Best(2, 1.5)))
    checkpoints.save(engine, Progress(4, Position(), Best(2, 1.5), pending=True), UNIFORM)
    used = checkpoints.used("best")
    assert used is not None and used.progress == Progress(2, Position(), Best(2, 1.5))
    checkpoints.record(Progress(4, Position(), Best(4, 1.0)))
    for pointer in ("last", "best"):
        newest = checkpoints.used(pointer)
        assert newest is not None and newest.progress == Progress(4, Position(), Best(4, 1.0))
        newest.verify(ALONE)
    assert [path.name for path in (tmp_path / "unified").glob("*update*")] == ["update-000004"]


def test_mining_sums_are_made_and_saved_once_the_window_has_begun(checkpoints: PhaseCheckpoints, tmp_path: Path) -> None:
    made: list[SimpleNamespace] = []

    def make() -> SimpleNamespace:
        sums = {"sums": torch.ones(2)}
        made.append(SimpleNamespace(state=lambda: sums, collapse=lambda comm: None, load_state=sums.update))
        return made[-1]

    window, engine = MiningWindow(make, first=2, every=1), SimpleNamespace(comm=ALONE)
    for update, expected in ((1, []), (2, []), (3, [MINING]), (4, [MINING])):
        checkpoints.save(engine, Progress(update, Position()), UNIFORM, window.saved(update))
        newest = checkpoints.latest()
        assert newest is not None and [name for name in newest.files if "mining" in name] == expected
        assert len(made) == len(expected)
    # Another rank of two writes nothing.
    checkpoints.save(
        SimpleNamespace(comm=Communicator(1, 2, 1, torch.device("cpu"))), Progress(5, Position()), UNIFORM, made[0]
    )
    newest = checkpoints.latest()
    assert newest is not None and set(newest.files) == {"state"}
    checkpoints.load_mining(pytest.fail)


# Signals ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield StopSignal()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_what_rank_zero_is_at(stop: StopSignal, number: int) -> None:
    went_on = []

    def compute() -> None:
        try:
            signal.raise_signal(number)
        except Exception:
            went_on.append("as if the data were at fault")
        went_on.append("to the end")

    with pytest.raises(Interrupted, match="stopped by a signal"):
        Interruptible(ALONE, stop).from_main(compute)
    assert went_on == []
    with pytest.raises(Interrupted):  # nor is anything begun after it
        Interruptible(ALONE, stop).from_main(compute)
    assert went_on == []


def test_a_signal_in_steps_is_only_remembered(stop: StopSignal) -> None:
    assert Interruptible(ALONE, stop).from_main(lambda: 3) == 3
    signal.raise_signal(signal.SIGTERM)
    assert stop.received


def test_a_signal_to_another_rank_ends_the_run_after_the_work_of_rank_zero(
    stop: StopSignal, monkeypatch: pytest.MonkeyPatch
) -> None:
    comm = Interruptible(ALONE, stop)
    monkeypatch.setattr(comm, "sum_floats", lambda *values: [1.0])
    done = []
    with pytest.raises(Interrupted):
        comm.from_main(lambda: done.append("the work"))
    assert done == ["the work"]


def test_what_fails_on_rank_zero_still_fails(stop: StopSignal) -> None:
    def fail() -> None:
        raise KeyError("plan")

    with pytest.raises(RankZeroError, match="KeyError: 'plan'"):
        Interruptible(ALONE, stop).from_main(fail)


def test_before_each_batch_the_watchdog_hears_of_it_and_a_signal_to_any_rank_ends_all(run_config: Config) -> None:
    heard: list[str] = []
    stop = SimpleNamespace(received=False)
    owner = Trainer(run_config, ALONE, None, None, stop, SimpleNamespace(beat=heard.append))
    owner.check_stop("batch 1 of mining")
    stop.received = True
    with pytest.raises(Interrupted, match="stopped by a signal in batch 2 of mining; it starts anew"):
        owner.check_stop("batch 2 of mining")
    waiting: Callable[[int], str] = "waiting for other ranks before batch {} of mining".format
    assert heard == [waiting(1), "batch 1 of mining", waiting(2)]
