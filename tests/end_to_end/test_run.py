"""The main job at tiny size through the real launcher: all phases, every way to stop, and every way to go on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

from gdps_ds.analysis.sketch import Sketches
from gdps_ds.config_file import load_config
from gdps_ds.plan import SharingPlan
from tests.end_to_end.runs import TRAIN, losses, metrics, read_until, run
from tests.launch import PATIENCE, ROOT, holding, launch, start

pytestmark = pytest.mark.launcher


def test_a_second_job_in_a_run_directory_is_refused(experiment: Path, tmp_path: Path) -> None:
    """By all its ranks; the first one's metrics have no line of the second."""
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with holding(tmp_path) as job:
        code, output = launch(TRAIN, "--config", experiment, f"run.dir={tmp_path}")
    assert code not in (0, 75), output
    assert output.count("another job trains in run.dir") == 1
    assert f"process {job} on " in output
    assert "SLURM_JOB_ID=77" in output
    assert "Traceback" not in output
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "run.lock"]


def test_a_run_directory_holds_everything(finished: Path, experiment: Path) -> None:
    assert load_config(finished / "config.yaml").train == load_config(experiment, [f"run.dir={finished}"]).train
    sketches = [f"sketches{arm}.safetensors" for arm in ("", ".gdps", ".uniform")]
    for name in ("plan.json", *sketches, "summary.txt", "summary.json", "report.html", "deepspeed.json", "wandb"):
        assert (finished / name).exists(), name
    for arm in ("gdps", "uniform"):
        rows = [json.loads(line) for line in (finished / "hypotheses" / f"{arm}.jsonl").read_text().splitlines()]
        assert len(rows) == 20
        assert all(row["reference"] for row in rows)
        scores = json.loads((finished / "scores" / f"{arm}.json").read_text())
        assert set(scores["scores"]) == {"aeb", "bem", "est", "gle", "mean"}
        assert scores["signatures"]["chrF++"].startswith("nrefs:1|case:mixed")
    assert len(losses(finished)) == 14 + 6
    lanes = Sketches.load(finished / "sketches.gdps.safetensors").sites
    assert "speech_encoder.encoder.layers.1.ffn2.private.1" in lanes
    files = [path for path in finished.rglob("*") if path.is_file() and "wandb" not in path.parts]
    assert {path.stat().st_mode for path in files} == {(finished / "config.yaml").stat().st_mode}
    assert "could not be made" not in (finished / "report.html").read_text()


def test_the_summary_sets_the_arms_side_by_side(finished: Path) -> None:
    table = (finished / "summary.txt").read_text()
    assert "BLEU gdps" in table and "BLEU uniform" in table and "TER: nrefs:1" in table
    assert table.strip() in (finished / "output.txt").read_text()


def test_the_plan_is_what_was_applied(finished: Path) -> None:
    plan = SharingPlan.load(finished / "plan.json")
    assert plan.groups == (("aeb", "gle"), ("bem", "est"))
    assert len(plan.sites) == 1
    newest = (finished / "checkpoints" / "gdps" / "latest").read_text()
    assert SharingPlan.load(finished / "checkpoints" / "gdps" / newest / "plan.json").digest == plan.digest
    assert plan.evidence and plan.provenance


def test_the_split_keeps_the_loss(finished: Path) -> None:
    (split,) = metrics(finished, "split")
    assert split["after"] == pytest.approx(split["before"], abs=1e-5)


def test_both_arms_see_the_same_data(finished: Path) -> None:
    seen = {arm: [line["seen"] for line in metrics(finished, arm) if "seen" in line] for arm in ("gdps", "uniform")}
    assert seen["gdps"] == seen["uniform"]


def test_a_finished_run_is_not_done_again(finished: Path, experiment: Path) -> None:
    before = (finished / "metrics.jsonl").read_text()
    output = run(experiment, finished, "track.wandb=true")
    assert (finished / "metrics.jsonl").read_text() == before
    assert "BLEU gdps" in output


def test_arms_may_start_from_the_unified_model_of_another_run(finished: Path, experiment: Path, tmp_path: Path) -> None:
    before = sorted(finished.rglob("*"))
    output = run(experiment, tmp_path / "run", f"run.unified={finished}", "plan.groups=[[aeb], [bem, est, gle]]")
    assert "preparing" not in output and "unified:" not in output
    assert SharingPlan.load(tmp_path / "run" / "plan.json").groups == (("aeb",), ("bem", "est", "gle"))
    theirs, ours = losses(finished), losses(tmp_path / "run")
    assert {step: loss for step, loss in ours.items() if "gdps" not in step[0]} == {
        step: loss for step, loss in theirs.items() if "gdps" not in step[0]
    }
    assert ours["gdps train", 4] != theirs["gdps train", 4]
    assert sorted(finished.rglob("*")) == before


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (1, 2), (3, 2)])
def test_other_stages_and_world_sizes_give_the_same_run(
    finished: Path, experiment: Path, tmp_path: Path, stage: int, ranks: int
) -> None:
    """Losses of every phase, and so the plan between them; fp32 sums in another order, hence 2e-4."""
    run(experiment, tmp_path / "run", f"deepspeed=ds_configs/zero{stage}.json", ranks=ranks)
    assert losses(tmp_path / "run") == pytest.approx(losses(finished), abs=2e-4)
    ours, theirs = SharingPlan.load(tmp_path / "run" / "plan.json"), SharingPlan.load(finished / "plan.json")
    assert (ours.groups, [site.name for site in ours.sites]) == (theirs.groups, [site.name for site in theirs.sites])


def test_a_signal_saves_and_the_run_goes_on_as_if_never_stopped(finished: Path, experiment: Path, tmp_path: Path) -> None:
    """To the whole process group, as Slurm does. Losses afterwards are bit-equal."""
    folder = tmp_path / "run"
    # No periodic checkpoints: what is there afterwards, the signal has saved.
    process = start(TRAIN, "--config", experiment, f"run.dir={folder}", "train.checkpoint_every=100")
    output = read_until(process, "gdps: ")
    os.killpg(process.pid, signal.SIGTERM)
    output += process.communicate(timeout=PATIENCE)[0]
    assert "stopped by a signal after update" in output, output[-3000:]
    assert "Traceback (most recent call last):\n  File" not in output.split("stopped by a signal")[0]
    assert not (folder / "summary.json").exists()
    run(experiment, folder)
    assert losses(folder) == losses(finished)
    assert json.loads((folder / "summary.json").read_text()) == json.loads((finished / "summary.json").read_text())


def test_another_configuration_may_not_go_on_in_a_run_directory(finished: Path, experiment: Path) -> None:
    code, output = launch(TRAIN, "--config", experiment, f"run.dir={finished}", "train.unify.lr=0.5", "mine.folds=8")
    assert code != 0
    assert "train.unify.lr: 0.5 now, 0.002 in config.yaml" in output
    assert "mine.folds: 8 now, 4 in config.yaml" in output


def test_faults_are_told_before_any_rank_starts_work(experiment: Path, tmp_path: Path) -> None:
    code, output = launch(TRAIN, "--config", experiment, f"run.dir={tmp_path / 'run'}", "train.unfy.lr=1", "mine.folds=1")
    assert code != 0
    assert "2 fault(s)" in output and "train.unfy: unknown key; did you mean 'unify'?" in output
    assert not (tmp_path / "run").exists()


def test_a_language_without_data_is_refused_with_its_counts(experiment: Path, corpus: Path, tmp_path: Path) -> None:
    """Every Bemba recording is cut to nothing."""
    broken = tmp_path / "corpus"
    broken.mkdir()
    for split in ("train", "dev", "test"):
        rows = [json.loads(line) for line in (corpus / f"{split}.jsonl").read_text().splitlines()]
        for row in rows:
            row["audio"] = str(corpus / row["audio"])
            if row["source_lang"] == "bem":
                (broken / "empty.flac").touch()
                row["audio"] = str(broken / "empty.flac")
        (broken / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = yaml.safe_load(experiment.read_text())
    tree["data"]["corpora"][0] |= {"root": str(broken), "audio_roots": [str(corpus)]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    code, output = launch(TRAIN, "--config", tmp_path / "tiny.yaml", f"run.dir={tmp_path / 'run'}")
    assert code != 0
    assert "no usable utterance is left of 1 language(s)" in output
    assert "bem: 32 read, 32 " in output
    report = json.loads((tmp_path / "run" / "data" / "train.report.json").read_text())
    assert sum(report["languages"]["bem"]["skipped"].values()) == 32


def test_a_checkpoint_is_fine_tuned_at_stage_3(finished: Path, experiment: Path, tmp_path: Path) -> None:
    """``model.pretrained`` takes a folder that ``from_pretrained`` reads; its tokenizer comes along."""
    from transformers import SeamlessM4TForSpeechToText

    from gdps_ds.config import ModelConfig
    from gdps_ds.model.families import load_model
    from gdps_ds.model.tokens import load_tokenizer

    tokenizer = load_tokenizer(finished / "tokenizer")
    settings = ModelConfig.model_validate(yaml.safe_load(experiment.read_text())["model"])
    model: SeamlessM4TForSpeechToText = load_model(settings, tokenizer, seed=1)
    model.save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    overrides = (
        f"model={{pretrained: {tmp_path / 'checkpoint'}, config: {{dropout: 0.1}}}}",
        "deepspeed=ds_configs/zero3.json",
    )
    run(experiment, tmp_path / "run", *overrides)
    assert losses(tmp_path / "run") == pytest.approx(losses(finished), abs=2e-4)


REAL = ROOT.parent / "shared" / "data"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real speech samples are not beside the project")
def test_real_corpora_in_their_native_layouts_go_through_all_phases(experiment: Path, tmp_path: Path) -> None:
    """Two languages, two target languages, real speech; each language a group."""
    tree = yaml.safe_load(experiment.read_text())
    tree["data"] |= {
        "languages": ["mdw", "grk"],
        "corpora": [{"layout": name, "root": str(REAL / name), "test": "dev"} for name in ("mboshi-french", "griko-italian")],
        "max_seconds": 15,
        "max_frames": 1500,
    }
    tree["model"]["config"]["max_source_positions"] = 1024
    tree["plan"]["groups"] = [["mdw"], ["grk"]]
    tree["train"]["unify"]["updates"] = tree["train"]["specialise"]["updates"] = 2
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(tree))
    output = run(tmp_path / "real.yaml", tmp_path / "run")
    assert "group 0: mdw" in output
    rows = [json.loads(line) for line in (tmp_path / "run" / "hypotheses" / "gdps.jsonl").read_text().splitlines()]
    assert {row["target_lang"] for row in rows} == {"fra", "ita"}


def test_mining_in_training_leaves_no_trace_and_survives_a_stop(finished: Path, experiment: Path, tmp_path: Path) -> None:
    """Losses are bit-equal to a run that mined in a pass; a run stopped inside the window ends with the same sketches."""
    overrides = ("mine.during=training", "mine.updates=4", "mine.neurons=all")
    run(experiment, tmp_path / "whole", *overrides)
    assert {key: value for key, value in losses(tmp_path / "whole").items() if "unified" in key[0]} == {
        key: value for key, value in losses(finished).items() if "unified" in key[0]
    }
    process = start(TRAIN, "--config", experiment, f"run.dir={tmp_path / 'stopped'}", *overrides)
    read_until(process, "| 4/6")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    run(experiment, tmp_path / "stopped", *overrides)
    # One sum whatever the number of ranks, and none before the window.
    for saved in (tmp_path / "stopped" / "checkpoints" / "unified").glob("update-*"):
        assert [path.name for path in saved.glob("mining*")] == ["mining.safetensors"]
    whole, stopped = (Sketches.load(tmp_path / name / "sketches.safetensors") for name in ("whole", "stopped"))
    np.testing.assert_array_equal(stopped.tokens, whole.tokens)
    for name, site in whole.sites.items():
        np.testing.assert_array_equal(stopped.sites[name].core, site.core)
        np.testing.assert_array_equal(stopped.sites[name].neurons, site.neurons)


def test_a_plan_written_by_hand_is_applied(experiment: Path, tmp_path: Path) -> None:
    """Only the essentials; two sites, three groups, parameters constant."""
    sites = [{"name": f"speech_encoder.encoder.layers.{layer}.ffn2", "hidden": 48, "shared_width": 24} for layer in (0, 1)]
    plan = {"languages": ["aeb", "bem", "est", "gle"], "groups": [["aeb"], ["bem", "gle"], ["est"]], "sites": sites}
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"width": "constant", "init": "svd"}))
    run(experiment, tmp_path / "run", f"plan.from={tmp_path / 'plan.json'}", "plan.groups=auto", "run.arms=[gdps]")
    applied = SharingPlan.load(tmp_path / "run" / "plan.json")
    assert [len(site.private[0]) for site in applied.sites] == [8, 8]
    assert not (tmp_path / "run" / "sketches.safetensors").exists()
    (split,) = metrics(tmp_path / "run", "split")
    assert split["after"] != split["before"]
    sites[0]["name"] = "speech_encoder.encoder.layers.7.ffn2"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, output = launch(TRAIN, "--config", experiment, f"run.dir={tmp_path / 'other'}", f"plan.from={tmp_path / 'plan.json'}")
    assert code != 0
    assert "sites.0.name: the model has no feed-forward block 'speech_encoder.encoder.layers.7.ffn2'" in output
