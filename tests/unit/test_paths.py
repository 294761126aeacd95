"""Paths as users write them: ``~`` and environment variables, which shells leave alone in ``run.dir=~/x`` and ``--out=~/x``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gdps_ds.config import Config, DecodeConfig, PlanConfig
from gdps_ds.config_file import ConfigError, dump_config, load_config, load_section
from gdps_ds.data.corpora.hub import load_description
from gdps_ds.plan import SharingPlan
from launchers import analyse, compare, evaluate, export, prepare, report, train


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with all that an experiment names; what follows is relative to another folder."""
    folder, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    (folder / "corpus").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "zero.json").write_text("{}")
    SharingPlan.uniform(["bem"]).save(folder / "plan.json")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("WORK", str(folder))
    monkeypatch.chdir(elsewhere)
    return folder


def experiment(start: str) -> dict[str, Any]:
    """One in which every path begins with ``start``."""
    return {
        "deepspeed": f"{start}/zero.json",
        "run": {"dir": f"{start}/runs/x", "unified": f"{start}/runs/first"},
        "data": {
            "languages": ["bem"],
            "corpora": [{"layout": "manifest", "root": f"{start}/corpus", "audio_roots": [f"{start}/corpus", "/mnt"]}],
        },
        "model": {"pretrained": f"{start}/medium"},
        "plan": {"from": f"{start}/plan.json"},
        "decode": {"comet_model": f"{start}/comet/model.ckpt"},
        "train": {
            "unify": {"updates": 1, "lr": 0.1},
            "specialise": {"updates": 9, "lr": 0.1, "later_plans": [{"update": 2, "from": f"{start}/plan.json"}]},
        },
    }


def write(tree: dict[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("start", ["~", "$HOME", "${WORK}"])
def test_every_path_of_an_experiment_is_expanded_and_kept_so(home: Path, start: str) -> None:
    config = load_config(write(experiment(start), home / "experiment.yaml"))
    assert config == Config.model_validate(experiment(str(home)))
    resolved = dump_config(config)
    assert "~" not in resolved and "$" not in resolved
    assert yaml.safe_load(resolved)["run"]["dir"] == str(home / "runs" / "x")


def test_overrides_are_expanded(home: Path) -> None:
    corpora = "data.corpora=[{layout: manifest, root: ~/corpus, audio_roots: [~/y]}]"
    config = load_config(write(experiment(str(home)), home / "e.yaml"), ["run.dir=~/y", "model.pretrained=$WORK/y", corpora])
    assert {config.run.dir, config.model.pretrained, *config.data.corpora[0].audio_roots} == {str(home / "y")}
    assert config.data.corpora[0].root == str(home / "corpus")


def test_a_variable_or_a_user_that_is_not_there_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCRATCH", raising=False)
    with pytest.raises(ConfigError) as caught:
        load_config(write(experiment(str(home)), home / "e.yaml"), ["run.dir=$SCRATCH/x", "run.unified=~nobody-of-this-name/x"])
    assert caught.value.faults == (
        "run.dir: the environment variable $SCRATCH is not set (found '$SCRATCH/x')",
        "run.unified: there is no home folder ~nobody-of-this-name (found '~nobody-of-this-name/x')",
    )


def test_sections_and_descriptions_are_expanded_too(home: Path) -> None:
    assert load_section("plan", PlanConfig, None, ["plan.from=~/plan.json"]).from_file == str(home / "plan.json")
    assert load_section("decode", DecodeConfig, None, ["decode.comet_model=~/m"]).comet_model == str(home / "m")
    write({"path": "~/fleurs", "source_lang": "gle", "target_lang": "eng"}, home / "hub.yaml")
    assert load_description(home / "hub.yaml").path == str(home / "fleurs")


@pytest.mark.parametrize(
    ("launcher", "arguments", "paths"),
    [
        (train, ["--config=~/x"], ["config"]),
        (compare, ["--config=~/x"], ["config"]),
        (report, ["~/x"], ["run_dir"]),
        (export, ["~/x", "--out=~/x"], ["run_dir", "out"]),
        (analyse, ["--sketches=~/x", "--out=~/x"], ["sketches", "out"]),
        (prepare, ["--corpus=bigc", "--root=~/x", "--out=~/x"], ["root", "out"]),
        (
            evaluate,
            ["--manifest=~/x", "--plan=~/x", "--transcripts=~/x", "--out=~/x"],
            ["manifest", "plan", "transcripts", "out"],
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_options_of_launchers_are_expanded(home: Path, launcher: Any, arguments: list[str], paths: list[str]) -> None:
    found = launcher._parser().parse_args(arguments)
    assert {name: getattr(found, name) for name in paths} == dict.fromkeys(paths, home / "x")


def test_systems_and_runs_are_expanded(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "a.txt").touch()
    for text in ("~/a.txt", "a=~/a.txt", "a=$HOME/a.txt"):
        [spec] = evaluate.read_specs(text, [])
        assert (spec.name, spec.path) == ("a", str(home / "a.txt"))
    assert analyse.main(["~/run"]) == 2
    assert f"no file {home / 'run' / 'sketches.safetensors'}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        analyse.main(["$NOWHERE/run"])
    assert "$NOWHERE/run: the environment variable $NOWHERE is not set" in capsys.readouterr().err
