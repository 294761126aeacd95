"""The run directory: what it keeps, what may change in it, and what it takes over of another."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from gdps_ds.config import Config, MineConfig, ModelConfig, PlanConfig
from gdps_ds.config_file import ConfigError, load_config
from gdps_ds.data.sampling import Position
from gdps_ds.distributed.comm import Communicator, RankZeroError
from gdps_ds.plan import SharingPlan
from gdps_ds.training.checkpoint import Best, CheckpointError, PhaseCheckpoints, Progress, saved_tags
from gdps_ds.training.run_dir import clear_left, open_run_dir
from gdps_ds.training.run_lock import check_free, hold_run_dir
from gdps_ds.training.trained import load_trained
from tests.launch import holding
from tests.tiny import ALONE


def test_the_run_directory_keeps_the_configuration(run_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    open_run_dir(run_config)
    open_run_dir(run_config)
    assert load_config(Path(run_config.run.dir) / "config.yaml") == run_config


def test_another_run_is_refused_field_by_field(run_config: Config) -> None:
    open_run_dir(run_config)
    tracked = run_config.model_copy(update={"track": run_config.track.model_copy(update={"wandb": True})})
    open_run_dir(tracked)
    other = run_config.model_copy(update={"train": run_config.train.model_copy(update={"clip_norm": 3.0})})
    (Path(run_config.run.dir) / "checkpoints" / "unified").mkdir(parents=True)
    (Path(run_config.run.dir) / "checkpoints" / "unified" / "latest").write_text("update-000002")
    with pytest.raises(ConfigError, match=r"train\.clip_norm: 3\.0 now, 1\.0 in config\.yaml"):
        open_run_dir(other)
    never = run_config.model_copy(update={"run": run_config.run.model_copy(update={"resume": "never"})})
    with pytest.raises(ConfigError, match=r"run\.resume is never, but run\.dir holds a run"):
        open_run_dir(never)
    (Path(run_config.run.dir) / "config.yaml").write_text("run: [")
    with pytest.raises(ConfigError, match=r"run/config\.yaml: 1 fault\(s\)\n  - not valid YAML"):
        open_run_dir(run_config)


def test_until_the_first_checkpoint_the_configuration_may_change(run_config: Config) -> None:
    open_run_dir(run_config)
    folder = Path(run_config.run.dir)
    made = [
        folder / "tokenizer" / "tokenizer_config.json",
        folder / "data" / "train.labels.arrow",
        folder / "data" / "train.arrow",
    ]
    for path in made:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    open_run_dir(run_config)
    assert all(path.is_file() for path in made)
    open_run_dir(run_config.model_copy(update={"model": ModelConfig(vocab_size=80)}))
    assert [path.is_file() for path in made] == [False, False, True]
    assert load_config(folder / "config.yaml").model.vocab_size == 80


def test_a_run_directory_that_cannot_be_written_to_is_named(run_config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, reason in {"file": "File exists", "file/run": "Not a directory"}.items():
        elsewhere = run_config.model_copy(update={"run": run_config.run.model_copy(update={"dir": str(tmp_path / name)})})
        with pytest.raises(ConfigError, match=rf"{name}: 1 fault\(s\)\n  - run\.dir cannot be written to: .*{reason}"):
            open_run_dir(elsewhere)


def test_a_run_may_be_started_again_with_the_deepspeed_file_that_it_keeps(run_config: Config) -> None:
    open_run_dir(run_config)
    kept = Path(run_config.run.dir) / "deepspeed.json"
    open_run_dir(run_config.model_copy(update={"deepspeed": str(kept)}))
    assert kept.read_text() == Path(run_config.deepspeed).read_text() == "{}"


def test_which_checkpoints_there_are_is_what_rank_0_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node may go on seeing a shared folder as it was."""
    comm = Communicator(1, 2, 0, ALONE.device)
    monkeypatch.setattr(comm, "from_main", lambda compute: "what rank 0 sees")
    checkpoints = PhaseCheckpoints(tmp_path / "not here yet", 1, comm)
    assert checkpoints.latest() == checkpoints.used("best") == "what rank 0 sees"


@pytest.fixture
def unified(run_config: Config) -> Config:
    """A run that has made its unified model."""
    open_run_dir(run_config)
    phase = Path(run_config.run.dir) / "checkpoints" / "unified"
    progress = Progress(run_config.train.unify.updates, Position())
    (phase / "update-000001").mkdir(parents=True)
    SharingPlan.uniform(run_config.data.languages).save(phase / "update-000001" / "plan.json")
    manifest = {"format": 2, "progress": asdict(progress), "files": {}}
    (phase / "update-000001" / "checkpoint.json").write_text(json.dumps(manifest))
    (phase / "latest").write_text("update-000001")
    lines = [{"phase": name, "update": 1} for name in ("start", "unified", "plan", "gdps")]
    (phase.parent.parent / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run_config


def after(unified: Config, **sections: object) -> Config:
    """A run in another directory that takes over the unified model."""
    folder = Path(unified.run.dir)
    run = unified.run.model_copy(update={"dir": str(folder.parent / "second"), "unified": str(folder)})
    return unified.model_copy(update={"run": run} | sections)


def test_the_unified_model_of_another_run_is_taken_over(unified: Config) -> None:
    folder = Path(unified.run.dir).parent / "second"
    for bootstrap in (10, 20, 20):  # until it has mined, it may change its mind
        open_run_dir(after(unified, plan=PlanConfig(bootstrap=bootstrap)))
        assert PhaseCheckpoints(folder / "checkpoints" / "unified", 1, ALONE).latest() is not None
    assert [json.loads(line)["phase"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == ["start", "unified"]
    assert load_config(folder / "config.yaml").run.unified == unified.run.dir
    (folder / "plan.json").touch()
    with pytest.raises(ConfigError, match=r"plan\.bootstrap: 10 now, 20 in config\.yaml\n.*another configuration"):
        open_run_dir(after(unified, plan=PlanConfig(bootstrap=10)))


def test_a_unified_model_that_this_run_would_not_have_made_is_refused(unified: Config) -> None:
    folder, phase = Path(unified.run.dir), Path(unified.run.dir) / "checkpoints" / "unified"
    train = unified.train.model_copy(update={"clip_norm": 3.0})
    with pytest.raises(
        ConfigError, match=r"run\.unified: 2 fault\(s\)\n  - train\.clip_norm: 3\.0 now.*\n.*/run made its unified"
    ):
        open_run_dir(after(unified, train=train))
    mined = MineConfig(during="training", updates=1, sketch=8)
    with pytest.raises(ConfigError, match=r"mine\.sketch: 8 now, 64 in config\.yaml"):
        open_run_dir(after(unified, mine=mined))
    (phase / "latest").unlink()
    with pytest.raises(ConfigError, match=r"/run has not finished its unified phase"):
        open_run_dir(after(unified))
    (folder / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"/run is no run directory: it has no config\.yaml"):
        open_run_dir(after(unified))
    assert not (folder.parent / "second").exists()


def test_one_job_at_a_time_trains_in_a_run_directory_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    with holding(tmp_path) as job:
        for check in (hold_run_dir, lambda folder: check_free(folder, "run.lock", "trains in run.dir", "run.dir")):
            with pytest.raises(
                ConfigError, match=rf"another job trains in run\.dir: process {job} on .*SLURM_JOB_ID=77\) since 2"
            ):
                check(tmp_path)
    check_free(tmp_path, "run.lock", "trains in run.dir", "run.dir")
    hold_run_dir(tmp_path)


FORK = """
import os, pathlib, subprocess, sys
from gdps_ds.training.run_lock import hold_run_dir
hold_run_dir(pathlib.Path(sys.argv[1]))
wait = "input()"
if sys.argv[2] == "spawn":
    child = subprocess.Popen([sys.executable, "-c", wait], stdout=subprocess.DEVNULL, close_fds=False).pid
else:
    child = os.fork()
    if child == 0:
        os.close(1)
        input()
        os._exit(0)
print(child, flush=True)
input()
"""


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_child_that_outlives_its_rank_holds_no_lock(tmp_path: Path, how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FORK, str(tmp_path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout is not None
        child = int(job.stdout.readline())
        with pytest.raises(ConfigError, match="another job trains"):
            hold_run_dir(tmp_path)
        job.kill()
        job.wait()
        os.kill(child, 0)  # it lives on, until its input ends
        hold_run_dir(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_a_job_that_lives_on_this_node_is_refused_and_no_other(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.lockf", refuse)
    hold_run_dir(tmp_path)
    assert f"the file system has no locks ({os.strerror(number)}); no job on another node" in capsys.readouterr().err
    record = json.loads((tmp_path / "run.lock").read_text())
    assert record["pid"] == os.getpid()
    # The test's parent stands for another job; its number may also have been another process's before.
    parent = os.getppid()
    ticks = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    (tmp_path / "run.lock").write_text(json.dumps(record | {"pid": parent, "started": ticks}))
    with pytest.raises(ConfigError, match=f"another job trains in run.dir: process {parent} on "):
        hold_run_dir(tmp_path)
    for other in ({"started": str(int(ticks) - 1)}, {"host": "elsewhere"}, {"pid": 2**22 + 1}):
        (tmp_path / "run.lock").write_text(json.dumps(record | {"pid": parent, "started": ticks} | other))
        hold_run_dir(tmp_path)
    (tmp_path / "run.lock").write_text("cut {")
    hold_run_dir(tmp_path)


def test_what_killed_jobs_leave_half_written_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    run, other, token = tmp_path / "run", tmp_path / "other", "0" * 32
    (other / ".train.features.partial").mkdir(parents=True)
    left = [f".sketches.safetensors.{token}.tmp", f"data/.train.arrow.{token}.tmp", "checkpoints/gdps/.update-000004.partial/w"]
    kept = [
        "metrics.jsonl", f".report.html.{token}.tmp", f"evaluation/.scores.txt.{token}.tmp", "data/.mine.tmp", ".git/config",
        f"checkpoints/gdps/{token}.tmp",
    ]  # fmt: skip
    for name in (*left, "data/.train.features.partial/features.npy", *kept):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("half")
    (run / "hypotheses").symlink_to(other, target_is_directory=True)
    assert clear_left(run) == 4 * len("half")
    assert sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()) == sorted(kept)
    assert (other / ".train.features.partial").is_dir()
    assert clear_left(run) == 0


def publish(checkpoints: PhaseCheckpoints, folder: Path, update: int, best: Best | None = None) -> None:
    partial = folder / f".update-{update:06d}.partial"
    checkpoints._begin(partial)
    checkpoints._publish(partial, f"update-{update:06d}", Progress(update, Position(), best), SharingPlan.uniform(["bem"]), {})


def test_the_newest_checkpoint_is_kept_after_a_million_updates_and_where_latest_was_set_back(tmp_path: Path) -> None:
    checkpoints = PhaseCheckpoints(tmp_path, 1, ALONE)
    for update in (999_999, 1_000_000, 500):
        publish(checkpoints, tmp_path, update)
        assert saved_tags(tmp_path) == [f"update-{update:06d}"]
        assert (newest := checkpoints.latest()) is not None and newest.progress.update == update


def test_what_a_killed_save_leaves_is_cleared_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".update-000007.partial").mkdir()
    (tmp_path / ".update-000007.partial" / "weights").touch()
    publish(PhaseCheckpoints(tmp_path, 1, ALONE), tmp_path, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "update-000008"]


def test_best_is_what_the_manifest_says_or_is_not_there(tmp_path: Path) -> None:
    checkpoints = PhaseCheckpoints(tmp_path, 2, ALONE)
    publish(checkpoints, tmp_path, 4, Best(4, 2.0))
    assert (tmp_path / "best").read_text() == "update-000004"
    publish(checkpoints, tmp_path, 8, Best(6, 1.0))  # 6 was evaluated but not saved
    assert not (tmp_path / "best").exists()


def test_the_best_checkpoint_is_pointed_to_before_its_evaluation_counts_as_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two leaves an evaluation that is made again, never a manifest whose best nobody points to."""
    checkpoints = PhaseCheckpoints(tmp_path, 2, ALONE)
    publish(checkpoints, tmp_path, 4, Best(4, 2.0))
    publish(checkpoints, tmp_path, 6, Best(4, 2.0))

    def killed(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("gdps_ds.training.checkpoint._manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.record(Progress(6, Position(), Best(6, 1.0)))
    assert (tmp_path / "best").read_text() == "update-000006"


def test_pruning_leaves_what_is_no_checkpoint_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "update-000002-keep").mkdir()
    (tmp_path / "update-notes.txt").touch()
    for update in (4, 8):
        publish(PhaseCheckpoints(tmp_path, 1, ALONE), tmp_path, update)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latest", "update-000002-keep", "update-000008", "update-notes.txt"
    ]  # fmt: skip


def test_a_pointer_to_a_checkpoint_that_is_gone_says_which_there_are(tmp_path: Path) -> None:
    checkpoints = PhaseCheckpoints(tmp_path, 2, ALONE)
    for update in (4, 8):
        publish(checkpoints, tmp_path, update)
    shutil.rmtree(tmp_path / "update-000008")
    with pytest.raises(
        RankZeroError,
        match=r"latest names update-000008, which is not there; there are update-000004; to go on from update-000004, write "
        rf"that name into {tmp_path / 'latest'}",
    ):
        checkpoints.latest()
    shutil.rmtree(tmp_path / "update-000004")
    with pytest.raises(RankZeroError, match=r"there are none$"):
        checkpoints.latest()


def test_a_checkpoint_that_is_pruned_in_part_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle, whatever file it has come to: what is left is not offered, and goes with the next pruning."""
    checkpoints = PhaseCheckpoints(tmp_path, 1, ALONE)
    publish(checkpoints, tmp_path, 4)
    with monkeypatch.context() as patch:

        def killed(path: Path, **_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("gdps_ds.training.checkpoint.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(checkpoints, tmp_path, 8)
    assert (tmp_path / "update-000004" / "plan.json").is_file()
    assert saved_tags(tmp_path) == ["update-000008"]
    publish(checkpoints, tmp_path, 12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "update-000012"]


def test_the_source_of_a_unified_model_may_be_writing_a_line(unified: Config) -> None:
    with (Path(unified.run.dir) / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "unif')
    open_run_dir(after(unified))
    lines = (Path(unified.run.dir).parent / "second" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in lines] == ["start", "unified"]


def test_a_checkpoint_that_is_removed_while_it_is_read_is_told_so(unified: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run that is training does, while launchers/evaluate.py or export.py read it."""
    folder = Path(unified.run.dir)
    phase = folder / "checkpoints" / "unified"

    def tokenizer(path: Path) -> None:
        shutil.rmtree(phase / "update-000001")
        shutil.copytree(folder / "spare", phase / "update-000002")
        raise FileNotFoundError("weights")

    shutil.copytree(phase / "update-000001", folder / "spare")
    monkeypatch.setattr("gdps_ds.training.trained.load_tokenizer", tokenizer)
    with pytest.raises(
        CheckpointError, match=r"update-000001 was removed while it was read, as a run that .*; there are update-000002$"
    ):
        load_trained(folder, "unified")
