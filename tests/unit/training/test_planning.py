"""What plans will ask of the model shows before the model is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gdps_ds.config import Config
from gdps_ds.plan import PlanError
from gdps_ds.training.planning import check_planning
from tests.tiny import HIDDEN, LANGUAGES, SITES, tiny_model, tiny_plan

FITTING = {"plan": {"round_to": 8}}


def config(**sections: object) -> Config:
    phase = {"updates": 4, "lr": 0.1}
    tree = {
        "deepspeed": "zero.json",
        "run": {"dir": "run"},
        "data": {"languages": LANGUAGES, "corpora": [{"layout": "manifest", "root": "."}]},
        "train": {"unify": phase, "specialise": phase},
    }
    return Config.model_validate(tree | FITTING | sections)


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        ("mine", {"sites": ["encoder.*"]}, r"mine\.sites: 'encoder\.\*' matches no feed-forward block; there are speech_enc"),
        ("mine", {"exact": ["encoder.*"]}, r"mine\.exact: 'encoder\.\*' matches no feed-forward block"),
        (
            "mine",
            {"sites": ["*.ffn1"], "exact": ["*.0.ffn2"]},
            r"mine\.exact: '.*\.layers\.0\.ffn2' is not among .* mine\.sites",
        ),
        ("plan", {"sites": ["*.ffn3"]}, r"plan\.sites: '\*\.ffn3' matches none of the sketched sites: speech_enc"),
        ("plan", {"sites": 5}, r"plan\.sites: 5 sites to split, but mine\.sites has 4"),
        ("plan", {}, r"plan\.round_to: no multiple of 64 below the hidden width 48"),
        (
            "plan",
            {"round_to": 32, "width": "constant", "groups": 3},
            r"plan\.round_to: no multiple of 32 .*plan\.width: constant",
        ),
    ],
)
def test_settings_that_no_plan_can_follow(section: str, settings: dict, message: str) -> None:
    check_planning(config(), tiny_model())
    unfit = config(**{section: settings})
    with pytest.raises(ValueError, match=message):
        check_planning(unfit, tiny_model())
    if section == "plan":
        # Nothing is planned.
        check_planning(unfit.model_copy(update={"run": unfit.run.model_copy(update={"arms": ("uniform",)})}), tiny_model())


@pytest.mark.parametrize("later", [False, True])
def test_a_plan_for_another_model_names_its_file(tmp_path: Path, later: bool) -> None:
    def given(path: Path) -> Config:
        if not later:
            return config(plan={"from": str(path)})
        plans = {"later_plans": [{"update": 2, "from": str(path)}]}
        phase = {"updates": 4, "lr": 0.1}
        return config(train={"unify": phase, "specialise": phase | plans})

    tiny_plan().save(tmp_path / "plan.json")
    check_planning(given(tmp_path / "plan.json"), tiny_model())
    tree = json.loads((tmp_path / "plan.json").read_text())
    tree["sites"][0]["name"] = SITES[1].replace("layers.1", "layers.7")
    (tmp_path / "plan.json").write_text(json.dumps(tree))
    with pytest.raises(PlanError, match=r"plan\.json: 1 fault\(s\)\n  - sites\.0\.name: the model has no .*layers\.7\.ffn2'"):
        check_planning(given(tmp_path / "plan.json"), tiny_model())
    tree["sites"][0] = {"name": SITES[1], "hidden": 2 * HIDDEN, "shared_width": 8}
    (tmp_path / "plan.json").write_text(json.dumps(tree))
    with pytest.raises(PlanError, match=rf"sites\.0\.hidden: {2 * HIDDEN}, but '{SITES[1]}' has {HIDDEN}"):
        check_planning(given(tmp_path / "plan.json"), tiny_model())
