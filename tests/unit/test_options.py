"""What ``train.py --options`` prints."""

from __future__ import annotations

import json
import re
from itertools import pairwise

from gdps_ds.config import Config
from gdps_ds.options import options

EVERYTHING = {
    "deepspeed": "zero2.json",
    "run": {"dir": "run"},
    "data": {"languages": ["bem"], "corpora": [{"layout": "manifest", "root": "."}], "spec_augment": {}},
    "train": {
        "unify": {"updates": 2, "lr": 1.0},
        "specialise": {"updates": 2, "lr": 1.0, "later_plans": [{"update": 1, "from": "plan.json"}]},
    },
}


def names_in(tree: object, prefix: str = "") -> set[str]:
    """The options that a resolved configuration holds, sections and what is in them."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    nested = [(f"{prefix}{key}", value) for key, value in pairs]
    whole = {name for name, value in nested if not re.search(r"\.\d+$", name)}
    return whole.union(*(names_in(value, f"{name}.") for name, value in nested if _is_section(value)))


def _is_section(value: object) -> bool:
    return (isinstance(value, dict) and bool(value)) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def test_every_option_is_there_with_its_meaning() -> None:
    config = json.loads(Config.model_validate(EVERYTHING).model_dump_json(by_alias=True))
    lines = options().splitlines()
    names = [re.match(r"[\w.]+", line)[0] for line in lines if not line.startswith(" ")]
    assert len(names) == len(set(names))
    assert set(names) == names_in(config)
    for first, second in pairwise(lines):
        assert first.startswith(" ") or re.match(r" {4,8}\S", second), f"{first} says nothing"


def test_defaults_choices_and_what_is_required_are_shown() -> None:
    text = options()
    assert 'run.resume = "auto"  [auto | never]\n    auto goes on from' in text
    assert "run.dir  (required)\n" in text and "data.corpora.0.layout  (required)\n" in text
    assert "train.betas = [0.9, 0.98]\n" in text and "plan.from = null\n" in text
