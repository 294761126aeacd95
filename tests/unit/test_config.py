from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gdps_ds.config import PlanConfig
from gdps_ds.config_file import ConfigError, dump_config, load_config, load_decoding, load_section
from gdps_ds.deepspeed_file import load_deepspeed_file
from gdps_ds.plan import SharingPlan
from tests.launch import ROOT

EXPERIMENTS = sorted((ROOT / "ds_configs" / "experiments").glob("*.yaml"))


@pytest.fixture
def tree(tmp_path: Path) -> dict:
    (tmp_path / "zero.json").write_text("{}")
    return {
        "deepspeed": str(tmp_path / "zero.json"),
        "run": {"dir": "runs/x"},
        "data": {"languages": ["aeb", "bem"], "corpora": [{"layout": "manifest", "root": str(tmp_path)}]},
        "train": {"unify": {"updates": 1, "lr": 0.1}, "specialise": {"updates": 1, "lr": 0.1}},
    }


def write(tree: dict, tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def faults(tree: dict, tmp_path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tree, tmp_path), overrides)
    return caught.value.faults


def test_the_resolved_configuration_replays_the_run(tree: dict, tmp_path: Path) -> None:
    config = load_config(write(tree, tmp_path), ["plan.groups=[[aeb], [bem]]", "train.unify.lr=1e-4", "plan.shared=0.5"])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_config(config))
    assert load_config(resolved) == config
    assert config.plan.groups == (("aeb",), ("bem",))
    assert config.train.unify.lr == 1e-4


def test_pieces_are_as_long_as_the_longest_utterance_of_training(tree: dict, tmp_path: Path) -> None:
    """In an experiment, in its resolved configuration with another length, and in evaluate.py on the run."""
    tree["data"]["max_seconds"] = 15
    config, resolved = load_config(write(tree, tmp_path)), tmp_path / "config.yaml"
    assert config.decoding.piece_seconds == 15.0
    resolved.write_text(dump_config(config))
    assert yaml.safe_load(resolved.read_text())["decode"]["max_seconds"] is None
    longer = ["data.max_seconds=60", "data.max_frames=3000"]
    assert load_config(resolved, longer).decoding.piece_seconds == 60.0
    assert load_config(resolved, [*longer, "decode.max_seconds=20"]).decoding.piece_seconds == 20.0
    assert load_config(resolved, ["data.max_seconds=0.5"]).decoding.piece_seconds == 1.0
    assert load_decoding(resolved).piece_seconds == 15.0
    assert load_decoding(resolved, ["decode.max_seconds=20"]).piece_seconds == 20.0
    assert load_decoding(None).piece_seconds == 30.0


def test_runs_of_earlier_versions_are_decoded_as_they_were_trained(tmp_path: Path) -> None:
    """Their decode section has no max_seconds."""
    path = tmp_path / "config.yaml"
    path.write_text("data: {max_seconds: 15}\ndecode: {beams: 2}\n")
    settings = load_decoding(path)
    assert (settings.beams, settings.piece_seconds) == (2, 15.0)
    path.write_text("data: {max_seconds: long}\ndecode: {beams: 2}\n")
    with pytest.raises(ConfigError, match=r"data.max_seconds: must be a number \(found 'long'\)"):
        load_decoding(path)


def test_all_faults_are_told_at_once(tree: dict, tmp_path: Path) -> None:
    tree["train"]["unify"]["warmpu"] = 3
    tree["data"]["corpora"][0]["root"] = "nowhere"
    tree["mine"] = {"folds": 1}
    found = faults(tree, tmp_path, "train.specialise.updates=many", "no-equals-sign", "plan.rule=yours")
    assert found[0] == "override 'no-equals-sign' is not of the form key.sub=value"
    assert "train.unify.warmpu: unknown key; did you mean 'warmup'?" in found
    assert any(fault.startswith("train.specialise.updates: input should be a valid integer") for fault in found)
    assert any(fault.startswith("mine.folds: input should be greater than or equal to 2 (found 1)") for fault in found)
    assert any(fault.startswith("plan.rule: input should be 'ours' or 'paper' (found 'yours')") for fault in found)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.languages=[aeb, aeb]", "data: languages repeats a language: aeb, aeb"),
        ("data.min_seconds=40", r"data: min_seconds (40.0) must be below max_seconds (30.0)"),
        ("data.max_frames=100", "data: max_frames (100) cannot hold one utterance of max_seconds"),
        ("plan.groups=[[aeb], [mar]]", "plan.groups names aeb, mar but data.languages has aeb, bem"),
        ("plan.groups=[[aeb], [aeb, bem]]", "plan: groups names a language twice"),
        ("plan.from=nothing.json", "plan.from: no file nothing.json"),
        ("deepspeed=nothing.json", "deepspeed: no file nothing.json"),
        ("train.unify.lr=.nan", "train.unify.lr: input should be a finite number"),
        ("run.arms=[gpds]", "run.arms.0: input should be 'gdps', 'uniform', 'wide'"),
        ("plan.sites=[*.ffn2]", "override 'plan.sites=[*.ffn2]': the value is not valid YAML; patterns with * stand in quotes"),
        ("run.dir.sub=1", "override 'run.dir.sub=1': dir is not a section"),
        ("data.corpora=[{layout: manifest, root: nowhere}]", "data.corpora.0.root: no folder nowhere"),
        ("plan.groups=3", "plan.groups: 3 groups of 2 languages (data.languages)"),
        ("plan.sites=[]", "plan.sites: tuple should have at least 1 item"),
        ("run.arms=[gdps, other-ffn]", "run.arms: other-ffn split sites that ours does not, so set mine.neurons: all"),
        ("train.select.language=est", "train.select.language: 'est' is none of data.languages (aeb, bem)"),
        ("mine={during: training, updates: 2}", "mine.updates (2) during training cannot exceed train.unify.updates (1)"),
    ],
)
def test_each_fault_names_its_option(tree: dict, tmp_path: Path, override: str, message: str) -> None:
    assert any(fault.startswith(message) for fault in faults(tree, tmp_path, override))


def test_overrides_reach_into_lists_as_errors_name_them(tree: dict, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    path = write(tree, tmp_path)
    config = load_config(path, [f"data.corpora.0.root={tmp_path / 'other'}", "data.languages.1=est"])
    assert config.data.corpora[0].root == str(tmp_path / "other")
    assert config.data.languages == ("aeb", "est")
    found = faults(tree, tmp_path, "data.corpora.1.root=x", "data.languages.2=est", "data.languages.last=est")
    assert found[0] == "override 'data.corpora.1.root=x': 1 is not a section"
    assert found[1] == "override 'data.languages.2=est': the list has 2 items, numbered from 0"
    assert found[2] == "override 'data.languages.last=est': the list has 2 items, numbered from 0"


def test_a_manifest_in_the_place_of_its_folder_is_told_of(tree: dict, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    (fault,) = faults(tree, tmp_path, f"data.corpora.0.root={tmp_path / 'train.jsonl'}")
    assert fault == f"data.corpora.0.root: no folder {tmp_path / 'train.jsonl'} (it is a file; give the folder that holds it)"


def test_patience_may_not_end_a_phase_before_its_plans_or_its_mining(tree: dict, tmp_path: Path) -> None:
    SharingPlan.uniform(["aeb", "bem"]).save(tmp_path / "merge.json")
    later = ["train.specialise.updates=9", f"train.specialise.later_plans=[{{update: 2, from: {tmp_path / 'merge.json'}}}]"]
    assert load_config(write(tree, tmp_path), later).train.specialise.later_plans[0].update == 2
    (fault,) = faults(tree, tmp_path, *later, "train.specialise.patience=3")
    assert fault.startswith(
        "train.specialise: patience may end the phase before its later_plans are applied; use one of the two"
    )
    (fault,) = faults(tree, tmp_path, *later, "train.specialise.updates=2")
    assert fault.startswith("train.specialise: later_plans must have ascending updates below 2, found [2]")
    mined = ["mine={during: training, updates: 1}"]
    assert load_config(write(tree, tmp_path), mined).train.unify.patience is None
    assert faults(tree, tmp_path, *mined, "train.unify.patience=3") == (
        "train.unify.patience may end the phase before its gradients are mined; set mine.during: pass",
    )


@pytest.mark.parametrize("option", ["plan.from", "train.specialise.later_plans.0.from"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"languages": ["aeb"', "not valid JSON: Expecting ',' delimiter"),
        (b"\xff", "not UTF-8 (byte 0)"),
        (b'{"languages": ["aeb"], "groups": [["aeb"]], "sites": []}', "languages: aeb, but data.languages has aeb, bem"),
        (b'{"languages": ["aeb", "bem"], "groups": [["aeb"]], "sites": []}', "groups: 'bem' is in 0 groups, must be in one"),
    ],
)
def test_a_plan_file_is_read_before_anything_is_trained(
    tree: dict, tmp_path: Path, option: str, content: bytes, message: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    tree["train"]["specialise"]["updates"] = 9
    later = f"train.specialise.later_plans=[{{update: 2, from: {path}}}]"
    (fault,) = faults(tree, tmp_path, later if "later" in option else f"plan.from={path}")
    assert fault.startswith(f"{option}: {path}: {message}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.yaml", tmp_path):
        with pytest.raises(ConfigError, match="no such file"):
            load_config(path)
    contents = {
        b"- a\n- b\n": "must be a mapping of sections, found list",
        b"a: [1": "not valid YAML",
        b"a: \xff": r"not UTF-8 \(byte 3\)",
    }
    for content, message in contents.items():
        (tmp_path / "broken.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=rf"broken\.yaml: 1 fault\(s\)\n  - {message}"):
            load_config(tmp_path / "broken.yaml")
        with pytest.raises(ConfigError, match=rf"broken\.yaml: 1 fault\(s\)\n  - {message}"):
            load_section("plan", PlanConfig, tmp_path / "broken.yaml")
    (tmp_path / "run.yaml").write_text("plan: shared\n")
    with pytest.raises(ConfigError, match="plan: input should be a valid dictionary"):
        load_section("plan", PlanConfig, tmp_path / "run.yaml")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_shipped_experiment_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Corpora need not be there, everything else must be right."""
    monkeypatch.chdir(ROOT)
    try:
        config = load_config(path)
    except ConfigError as error:
        assert all(".root: no folder" in fault for fault in error.faults), error
    else:
        load_deepspeed_file(config.deepspeed)
