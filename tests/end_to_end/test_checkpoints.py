"""Going on elsewhere, refusing what is damaged, later plans, and what becomes of a trained model."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from statistics import mean

import pytest
import torch

from gdps_ds.data.manifest import read_manifest
from gdps_ds.distributed.saved_state import SavedState
from gdps_ds.evaluation.systems import read_translations
from gdps_ds.plan import SharingPlan
from gdps_ds.training.checkpoint import CheckpointError
from gdps_ds.training.trained import load_trained
from launchers.export import main as export
from tests.end_to_end.runs import TRAIN, losses, metrics, read_until, run
from tests.end_to_end.test_kills import KILLED, STEP
from tests.launch import PATIENCE, launch, start
from tests.plain import translated

pytestmark = pytest.mark.launcher

SITE = "speech_encoder.encoder.layers.1.ffn2"


def stop_in(phase: str, experiment: Path, folder: Path, *overrides: str, ranks: int) -> None:
    process = start(TRAIN, "--config", experiment, f"run.dir={folder}", *overrides, ranks=ranks)
    read_until(process, f"{phase}: ")
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=PATIENCE)[0]
    assert "stopped by a signal after update" in output, output[-3000:]


def test_a_run_goes_on_at_another_world_size_and_stage(finished: Path, experiment: Path, tmp_path: Path) -> None:
    """2 ranks at ZeRO-2, then 1 at ZeRO-3 (and over the split), then 2 at ZeRO-0."""
    folder = tmp_path / "run"
    stop_in("unified", experiment, folder, "train.checkpoint_every=100", ranks=2)
    stop_in("gdps", experiment, folder, "train.checkpoint_every=100", "deepspeed=ds_configs/zero3.json", ranks=1)
    run(experiment, folder, "deepspeed=ds_configs/zero0.json")
    assert losses(folder) == pytest.approx(losses(finished), abs=2e-4)


def unfinished_copy(finished: Path, folder: Path) -> Path:
    """The finished run as it was before the gdps arm was translated."""
    shutil.copytree(finished, folder)
    for name in ("scores/gdps.json", "hypotheses/gdps.jsonl", "summary.json", "summary.txt"):
        (folder / name).unlink()
    config = (folder / "config.yaml").read_text().replace(str(finished), str(folder))
    (folder / "config.yaml").write_text(config)
    return folder


def test_a_damaged_checkpoint_is_refused_and_an_older_one_taken(finished: Path, experiment: Path, tmp_path: Path) -> None:
    folder = unfinished_copy(finished, tmp_path / "run")
    phase = folder / "checkpoints" / "gdps"
    newest = phase / (phase / "latest").read_text()
    shard = newest / "shard-00001.safetensors"
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size - 8)
    (newest / "fixed.safetensors").unlink()
    command = ("--config", experiment, f"run.dir={folder}", "track.wandb=true")
    code, output = launch(TRAIN, *command)
    assert code != 0
    assert f"shard-00001.safetensors has {size - 8} bytes instead of {size}" in output
    assert "fixed.safetensors is missing" in output
    assert f"to go on from update-000002, write that name into {phase / 'latest'}" in output
    (phase / "latest").write_text("update-000002")
    run(experiment, folder, "track.wandb=true")
    assert json.loads((folder / "summary.json").read_text()) == json.loads((finished / "summary.json").read_text())


def test_a_flipped_bit_is_found(finished: Path, tmp_path: Path) -> None:
    folder = unfinished_copy(finished, tmp_path / "run")
    newest = folder / "checkpoints" / "gdps" / (folder / "checkpoints" / "gdps" / "latest").read_text()
    content = bytearray((newest / "shard-00000.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "shard-00000.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"shard-00000\.safetensors has other content than was written"):
        load_trained(folder, "gdps")
    with pytest.raises(CheckpointError, match="has no checkpoint 'update-9'; there are update-000002, update-000004"):
        load_trained(folder, "gdps", "update-9")
    with pytest.raises(CheckpointError, match=r"keeps 2 checkpoint\(s\) up to update-000004, not 3; set run.keep_checkpoints"):
        load_trained(folder, "gdps", average=3)
    (newest / "checkpoint.json").write_text('{"format": 7}')
    with pytest.raises(CheckpointError, match="checkpoint format 7, this version reads 2"):
        load_trained(folder, "gdps")


def test_later_plans_merge_and_split_again(experiment: Path, tmp_path: Path) -> None:
    """Merged after 2 updates, three groups after 3; stopped in between, the end is the same."""
    languages = ["aeb", "bem", "est", "gle"]
    SharingPlan.uniform(languages).save(tmp_path / "merge.json")
    site = {"name": SITE, "hidden": 48, "shared_width": 16}
    again = {"languages": languages, "groups": [["aeb"], ["bem", "gle"], ["est"]], "sites": [site]}
    (tmp_path / "again.json").write_text(json.dumps(again))
    later = f"[{{update: 2, from: {tmp_path / 'merge.json'}}}, {{update: 3, from: {tmp_path / 'again.json'}}}]"
    overrides = ("run.arms=[gdps]", f"train.specialise.later_plans={later}", "train.checkpoint_every=100")
    run(experiment, tmp_path / "whole", *overrides)
    assert [line["update"] for line in metrics(tmp_path / "whole", "split")] == [0, 2, 3]
    process = start(TRAIN, "--config", experiment, f"run.dir={tmp_path / 'stopped'}", *overrides)
    read_until(process, "| 3/4")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    run(experiment, tmp_path / "stopped", *overrides)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    newest = tmp_path / "whole" / "checkpoints" / "gdps" / "update-000004"
    assert len(SharingPlan.load(newest / "plan.json").groups) == 3


def test_the_best_checkpoint_is_kept_and_evaluated(experiment: Path, tmp_path: Path) -> None:
    """Every update multiplies all weights by 1 - lr * weight_decay = -2: the first evaluation has the lowest dev loss by far,
    and not by chance, as with a learning rate that ruins the model."""
    overrides = ["run.arms=[uniform]", "run.use=best", "run.keep_checkpoints=1", "train.dev_every=1"]
    overrides += ["train.checkpoint_every=100", "train.specialise.lr=1e-6", "train.specialise.weight_decay=3e6"]
    output = run(experiment, tmp_path / "run", *overrides)
    dev = dev_values(tmp_path / "run", "uniform", "dev")
    best = min(dev, key=lambda update: dev[update])
    assert best == 1 and min(dev[2], dev[3], dev[4]) > dev[1] + 1
    assert f"uniform: update {best} is used, its dev loss is the best: {dev[best]:.4f}" in output
    folder = tmp_path / "run" / "checkpoints" / "uniform"
    assert sorted(path.name for path in folder.glob("update-*")) == [f"update-{best:06d}", "update-000004"]
    with SavedState(folder / f"update-{best:06d}") as saved:
        for name, parameter in load_trained(tmp_path / "run", "uniform").module.named_parameters():
            torch.testing.assert_close(parameter.detach(), saved.full(name), rtol=0, atol=0)


def dev_values(folder: Path, phase: str, kind: str) -> dict[int, float]:
    """Update -> mean over languages of a dev loss or BLEU."""
    found = {line["update"]: line[kind] for line in metrics(folder, phase) if kind in line}
    return {update: mean(value for name, value in values.items() if name != "all") for update, values in found.items()}


def test_training_stops_early_by_dev_bleu_and_arms_start_from_the_best(experiment: Path, tmp_path: Path) -> None:
    """A rate at which nothing is learnt: BLEU stays where it is at first, so that patience ends all phases.

    Patience goes on where it was when the run is killed.
    """
    folder = tmp_path / "run"
    overrides = ["train.select={by: bleu, language: est}", "run.use=best", "train.dev_every=1", "train.checkpoint_every=100"]
    overrides += [f"train.{phase}.{key}" for phase in ("unify", "specialise") for key in ("lr=1e-12", "patience=2")]
    arguments = ("--config", experiment, f"run.dir={folder}", *overrides, "train.specialise.private_lr=1e-12")
    # 2 micro-batches an update and rank: the second update of arm gdps, after 3 of the unified phase.
    code, first = launch(KILLED, "--die", f"{STEP}:{2 * 4 + 1}:0", *arguments)
    assert code != 0
    code, second = launch(TRAIN, *arguments)
    assert code == 0 and "gdps: going on after update 1 of 4" in second, second[-3000:]
    for phase, output in (("unified", first), ("gdps", second), ("uniform", second)):
        assert list(dev_values(folder, phase, "dev_bleu")) == [1, 2, 3]
        assert f"{phase}: update 1 is used, its dev bleu is the best" in output
        newest = folder / "checkpoints" / phase / "update-000003"
        assert json.loads((newest / "checkpoint.json").read_text())["progress"]["best"]["update"] == 1


def test_the_trained_model_is_exported(
    finished: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Split and not, it translates in transformers alone as it did at the end of the run."""
    assert export([str(finished), "--out", str(tmp_path / "groups")]) == 0
    assert capsys.readouterr().out.startswith("gdps after update 4 of 4\n")
    assert export([str(finished), "--arm", "uniform", "--out", str(tmp_path / "uniform")]) == 0
    capsys.readouterr()
    test_set = list(read_manifest(corpus / "test.jsonl"))
    of_run = {
        arm: {row.id: row.hypothesis for row in read_translations(finished / "hypotheses" / f"{arm}.jsonl")}
        for arm in ("gdps", "uniform")
    }
    assert translated(tmp_path / "uniform", test_set) == of_run["uniform"]
    for group in ("aeb-gle", "bem-est"):
        ours = [each for each in test_set if each.source_lang in group.split("-")]
        assert translated(tmp_path / "groups" / group, ours) == {each.id: of_run["gdps"][each.id] for each in ours}
        note = json.loads((tmp_path / "groups" / group / "export.json").read_text())
        assert len({path.stat().st_mode for path in (tmp_path / "groups" / group).iterdir()}) == 1
        assert (note["checkpoint"], note["languages"]) == ("update-000004", group.split("-"))
    assert export([str(finished), "--out", str(tmp_path / "groups")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert export([str(finished), "--average", "2", "--whole", "--out", str(tmp_path / "mean")]) == 0
    folder = finished / "checkpoints" / "gdps"
    name = f"{SITE}.private.1.output_dense.weight"
    with SavedState(folder / "update-000002") as first, SavedState(folder / "update-000004") as second:
        mean = (first.full(name).double() + second.full(name)) / 2
    mean_model = load_trained(finished, "gdps", average=2)
    torch.testing.assert_close(mean_model.module.get_parameter(name).double(), mean, rtol=1e-7, atol=0)
