"""The committed comparisons (tests/benchmarks/results) say what their translations say."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from gdps_ds.config import DecodeConfig
from gdps_ds.evaluation.metrics import signatures, statistics
from tests.launch import ROOT

RESULTS = sorted((ROOT / "tests" / "benchmarks" / "results").glob("*/comparison.json"))


def hypotheses(path: Path) -> dict[tuple[str, str], list[dict]]:
    """(arm, seed) -> rows, of an archive with files seed-<seed>/hypotheses/<arm>.jsonl."""
    found = {}
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            if member.isfile():
                file = archive.extractfile(member)
                assert file is not None
                seed, _, name = member.name.split("/")
                rows = [json.loads(line) for line in io.TextIOWrapper(file, encoding="utf-8")]
                found[name.removesuffix(".jsonl"), seed.removeprefix("seed-")] = rows
    return found


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_the_scores_are_those_of_the_translations(path: Path) -> None:
    """To 1e-9: a score is made of whole numbers of n-grams, and machines differ in the last digit of a logarithm at most."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    normaliser = tree["signatures"]["BLEU"].rpartition(":")[2]
    settings = DecodeConfig.model_validate({"normaliser": normaliser})
    # They were made before texts were composed: these are in NFC all the same.
    found = signatures({language: "eng" for language in tree["utterances"]}, settings, list(tree["signatures"]))
    assert tree["signatures"] == {metric: text.replace("|unicode:NFC", "") for metric, text in found.items()}
    translations = hypotheses(path.parent / "hypotheses.tar.xz")
    scored = {(arm, seed) for arm, rows in tree["scores"].items() for seed in rows["mean"]["BLEU"]["by_seed"]}
    assert scored == set(translations)
    for (arm, seed), rows in translations.items():
        for language in tree["utterances"]:
            pairs = [(row["hypothesis"], row["reference"]) for row in rows if row["source_lang"] == language]
            ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
            for metric, found in statistics(ours, theirs, settings, list(tree["signatures"])).items():
                assert found.score == pytest.approx(tree["scores"][arm][language][metric]["by_seed"][seed], abs=1e-9)


def test_there_are_results() -> None:
    assert len(RESULTS) == 3
