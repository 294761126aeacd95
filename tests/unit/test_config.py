from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from gdps_ds.config_file import ConfigError, dump_config, load_config, load_deepspeed_file
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
        ("run.dir.sub=1", "override 'run.dir.sub=1': dir is not a section"),
    ],
)
def test_each_fault_names_its_option(tree: dict, tmp_path: Path, override: str, message: str) -> None:
    assert any(fault.startswith(message) for fault in faults(tree, tmp_path, override))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "nothing.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="must be a mapping of sections, found list"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "broken.yaml")


def test_the_deepspeed_file_may_not_repeat_the_experiment(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"optimizer": {}, "gradient_clipping": 1.0, "zero_optimization": {"stage": 2}}))
    with pytest.raises(ConfigError) as caught:
        load_deepspeed_file(path)
    assert len(caught.value.faults) == 2
    assert "train.clip_norm" in str(caught.value)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_sixteen_bit_weights_need_zero(tmp_path: Path, precision: str) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({precision: {"enabled": True}}))
    with pytest.raises(ConfigError, match=f"{precision} without ZeRO .* torch_autocast"):
        load_deepspeed_file(path)


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


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_deepspeed_file_is_valid(path: Path) -> None:
    assert "zero_optimization" in load_deepspeed_file(path)
