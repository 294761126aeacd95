"""What plans will ask of the model shows before the model is trained."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import SeamlessM4TForSpeechToText

from gdps_ds.analysis.sketch import SiteSketch, Sketches, fold_of
from gdps_ds.config import Config
from gdps_ds.data.collate import SpeechDataset
from gdps_ds.data.manifest import Utterance
from gdps_ds.plan import PlanError
from gdps_ds.training import planning
from gdps_ds.training.loss import utterance_losses
from gdps_ds.training.planning import check_folds, check_planning, mine_again, require_gradients
from tests.tiny import ALONE, HIDDEN, LANGUAGES, SITES, random_batch, tiny_model, tiny_plan

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


def frozen(*patterns: str) -> SeamlessM4TForSpeechToText:
    """A tiny model in which the parameters that match are not trained."""
    model = tiny_model()
    for name, parameter in model.named_parameters():
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    return model


FIRST_LAYER = "speech_encoder.encoder.layers.0.*"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"mine": {"sites": [f"{FIRST_LAYER}ffn*"]}},
            r"^mine\.sites: '\S+0\.\*ffn\*' matches frozen blocks alone \(model\.",
        ),
        (
            {"mine": {"sites": ["*.ffn1", "*.0.ffn2"]}},
            r"^mine\.sites: '\*\.0\.ffn2' matches frozen .*: speech_encoder\S+0\.ffn2$",
        ),
        ({"mine": {"exact": [SITES[0]]}}, rf"^mine\.exact: '{SITES[0]}' matches frozen blocks alone"),
        ({"plan": {"round_to": 8, "sites": [SITES[0]]}}, rf"^plan\.sites: '{SITES[0]}' matches frozen blocks alone"),
        ({"plan": {"round_to": 8, "sites": 3}}, r"^plan\.sites: 3 sites to split, but mine\.sites has 2"),
    ],
)
@pytest.mark.parametrize("patterns", [(FIRST_LAYER,), ("*.layers.0.ffn?.intermediate_dense.weight",)])
def test_frozen_blocks_are_no_candidates(
    patterns: tuple[str, ...], sections: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where one of a block's two weights is frozen."""
    check_planning(config(), frozen(*patterns))
    assert "mine.sites: 2 frozen blocks (model.freeze) are no candidates, 2 are" in capsys.readouterr().out
    with pytest.raises(ValueError, match=message):
        check_planning(config(**sections), frozen(*patterns))


def test_blocks_whose_biases_alone_are_frozen_are_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    check_planning(config(plan={"round_to": 8, "sites": [SITES[0]]}), frozen("*.bias"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("later", [False, True])
def test_a_plan_that_splits_a_frozen_block_names_its_file(tmp_path: Path, later: bool) -> None:
    tiny_plan(sites=SITES).save(tmp_path / "plan.json")
    given = {"from": str(tmp_path / "plan.json")}
    phase = {"updates": 4, "lr": 0.1}
    trained = {"unify": phase, "specialise": phase | {"later_plans": [given | {"update": 2}]}}
    wanted = config(train=trained) if later else config(plan=given)
    check_planning(wanted, tiny_model())
    with pytest.raises(
        PlanError, match=rf"plan\.json: 1 fault\(s\)\n  - sites\.0\.name: '{SITES[0]}' is frozen \(model\.freeze\)"
    ):
        check_planning(wanted, frozen(FIRST_LAYER))


def test_without_a_split_all_blocks_may_be_frozen() -> None:
    """Nor are they mined again at the end."""
    alone = config(run={"dir": "run", "arms": ["uniform"]})
    engine: Any = SimpleNamespace(module=frozen("speech_encoder.*"))
    trainer: Any = SimpleNamespace(config=alone, comm=ALONE)
    check_planning(alone, engine.module)
    mine_again(trainer, engine, "uniform")
    with pytest.raises(ValueError, match=r"^mine\.sites: '\S+' matches frozen blocks alone"):
        check_planning(config(), engine.module)


def test_frozen_blocks_are_not_mined() -> None:
    """In ordinary training, where no gradient comes to blocks with nothing trainable before or in them."""
    model = frozen(FIRST_LAYER, "speech_encoder.feature_projection.*")
    engine: Any = SimpleNamespace(module=model)
    trainer: Any = SimpleNamespace(config=config(mine={"sketch": 8, "folds": 4}), comm=ALONE)
    gatherer, batch = planning._gatherer(trainer, engine, ()), random_batch(0)
    assert gatherer.sites == tuple(f"speech_encoder.encoder.layers.1.ffn{number}" for number in (1, 2))
    assert batch.labels is not None
    with gatherer.attached():
        gatherer.watch(batch.languages, batch.folds, batch.attention_mask, (batch.labels != -100).sum(1))
        logits = model(batch.input_features, batch.attention_mask, decoder_input_ids=batch.decoder_input_ids).logits
        utterance_losses(logits, batch, 0.0).sum().backward()
    require_gradients(gatherer.reduce(ALONE))


def test_a_sketch_of_zeros_names_site_and_language() -> None:
    core = np.random.default_rng(0).normal(size=(2, 4, 3, 5, 5))
    tokens = np.ones((4, 3))
    sketches = Sketches(LANGUAGES, tokens, tokens, {SITES[0]: SiteSketch(48, core), SITES[1]: SiteSketch(48, core.copy())}, 0)
    sketches.sites[SITES[1]].core[0] = 0  # one linear alone may be, such as one in front of weights that start from zero
    require_gradients(sketches)
    sketches.sites[SITES[1]].core[:, 2] = 0
    with pytest.raises(ValueError, match=rf"mining found no gradient at '{SITES[1]}' for est, the sketch is all zeros"):
        require_gradients(sketches)
    sketches.tokens[2] = 0
    require_gradients(sketches)  # nothing of it was mined, which planning tells of


def training_set(rows: np.ndarray | None = None, **counts: int) -> SpeechDataset:
    """As many utterances of each language as ``counts`` says."""
    ids = [(language, f"{language}-{number}") for language, count in counts.items() for number in range(count)]
    utterances = [Utterance(name, "a.wav", language, "eng", "x", duration=1.0) for language, name in ids]
    return SpeechDataset(utterances, Frames(len(ids)), None, languages=LANGUAGES, folds=10, rows=rows)


class Frames:
    """Features that are not looked at."""

    def __init__(self, count: int) -> None:
        self.lengths = np.ones(count, dtype=np.int32)

    def __getitem__(self, index: int) -> np.ndarray:
        raise NotImplementedError


def test_a_language_that_mining_cannot_measure_is_refused_with_what_helps() -> None:
    """The first six ids of bem fall into odd folds, its seventh into an even one."""
    assert [fold_of(f"bem-{number}", 10) % 2 for number in range(7)] == [1] * 6 + [0]
    enough = {"aeb": 5, "bem": 7, "est": 4, "gle": 2}
    check_folds(config(), training_set(**enough))
    refused = (
        r"in an even and in an odd one of the 10 folds .* for bem \(6 utterances\), gle \(1 utterances\); add utterances, .*"
    )
    with pytest.raises(ValueError, match=refused + r"data\.languages, .*plan\.from.* run\.arms=\[uniform\]"):
        check_folds(config(), training_set(**enough | {"bem": 6, "gle": 1}))
    without_last = np.delete(np.arange(sum(enough.values())), 5 + 6)
    with pytest.raises(ValueError, match=r"for bem \(6 utterances\);"):
        check_folds(config(), training_set(without_last, **enough))


def test_where_nothing_is_mined_a_language_may_have_one_utterance(tmp_path: Path) -> None:
    tiny_plan().save(tmp_path / "plan.json")
    run = {"dir": "run", "arms": ["uniform"]}
    for settings in (config(run=run), config(plan={"from": str(tmp_path / "plan.json")}), config(plan={"init": "svd"})):
        check_folds(settings, training_set(aeb=1, bem=1, est=1, gle=1))
