"""Targets: what is trained on, what is left out, and languages and scripts that the tokenizer does not know."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import SeamlessM4TTokenizer

from gdps_ds.config import Config, ModelConfig
from gdps_ds.data.manifest import DataError, Utterance, read_manifest, write_manifest
from gdps_ds.distributed.comm import RankZeroError
from gdps_ds.training import inputs
from gdps_ds.training.inputs import load_inputs, with_loss
from gdps_ds.training.trainer import Trainer
from tests.tiny import ALONE
from tests.unit.training.small_corpus import DAYS, rewritten, with_data


def test_long_targets_are_left_out_of_training_and_counted(
    config: Config, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = " ".join(DAYS * 4)
    for split, numbers in (("train", (3, 8)), ("dev", (1,))):
        rows = read_manifest(corpus / f"{split}.jsonl")
        write_manifest(
            corpus / f"{split}.jsonl",
            [replace(row, target_text=long) if number in numbers else row for number, row in enumerate(rows)],
        )
    found = load_inputs(with_data(config, max_target_tokens=40), ALONE)
    lengths = [len(found.train[index].labels) for index in range(14)]
    assert [index for index, length in enumerate(lengths) if length > 40] == [3, 8]
    drawn = Trainer(config, ALONE, found, None, None, None).micro_batches("train")  # type: ignore[arg-type]
    for epoch in range(3):
        assert sorted(np.concatenate(list(drawn.epoch(epoch)))) == [index for index in range(14) if index not in (3, 8)]
    assert len(found.dev) == 4 and found.dev.rows is None

    data = Path(config.run.dir) / "data"
    counts = {role: json.loads((data / f"{role}.report.json").read_text())["long_targets"] for role in ("train", "dev")}
    assert counts == {"train": {"bem": 1, "mdw": 1}, "dev": {"mdw": 1}}
    listed = [line.split("\t")[:3] for line in (data / "train.targets.tsv").read_text().splitlines()]
    reason = "target longer than data.max_target_tokens"
    assert listed == [["id", "language", "reason"], ["train-3", "mdw", reason], ["train-8", "bem", reason]]
    shown = capsys.readouterr().out
    assert "train: 2 targets have more than 40 tokens (data.max_target_tokens), left out of training: bem 1, mdw 1" in shown
    assert "dev: 1 targets have more than 40 tokens (data.max_target_tokens), kept: the dev loss is over all targets" in shown

    again = load_inputs(config, ALONE)
    assert again.train.rows is None and not list(data.glob("*.targets.tsv"))
    assert json.loads((data / "train.report.json").read_text())["long_targets"] == {}


def test_a_language_whose_targets_are_all_too_long_is_refused(config: Config) -> None:
    message = r"data\.max_target_tokens is 4: no target of bem is left to train on \(7 target longer .* such as train-0's"
    with pytest.raises(DataError, match=message):
        load_inputs(with_data(config, max_target_tokens=4), ALONE)


def test_targets_that_the_tokenizer_makes_nothing_of_are_neither_trained_on_nor_in_the_dev_loss(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels of such a target are a language token and ``</s>``: a model learns to say nothing."""
    original = inputs.label_ids

    def some_empty(tokenizer: SeamlessM4TTokenizer, utterances: Sequence[Utterance]) -> list[list[int]]:
        labels = original(tokenizer, utterances)
        return [
            [ids[0], ids[-1]] if each.id in ("train-2", "dev-1") else ids for ids, each in zip(labels, utterances, strict=True)
        ]

    monkeypatch.setattr(inputs, "label_ids", some_empty)
    found = load_inputs(config, ALONE)
    assert found.train.rows is not None and found.train.rows.tolist() == [row for row in range(14) if row != 2]
    assert with_loss(found.dev, config.data).tolist() == [0, 2, 3]
    assert "bem: 1 with a target that the tokenizer makes nothing of, not trained on" in capsys.readouterr().out
    data, reason = Path(config.run.dir) / "data", "with a target that the tokenizer makes nothing of"
    for role, name, language in (("train", "train-2", "bem"), ("dev", "dev-1", "mdw")):
        lines = (data / f"{role}.targets.tsv").read_text().splitlines()[1:]
        assert [line.split("\t")[:3] for line in lines] == [[name, language, reason]]
    trainer = Trainer(config, ALONE, found, None, None, None)  # type: ignore[arg-type]
    drawn = np.concatenate(list(trainer.micro_batches("train").epoch(0)))
    assert sorted(drawn.tolist()) == found.train.rows.tolist()


UNKNOWN = r"no target language 'en' \(token __en__\); it has eng, fra, but {0} .* such as {0}-{1}'s"


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_target_language_that_the_checkpoint_does_not_know_shows_before_data_are_prepared(
    config: Config, corpus: Path, checkpoint: Path, split: str
) -> None:
    config = config.model_copy(update={"model": ModelConfig(pretrained=str(checkpoint))})
    rewritten(corpus, split, lambda number, row: replace(row, target_lang="en") if number == 0 else row)
    with pytest.raises(RankZeroError, match=UNKNOWN.format(split, 0)):
        load_inputs(config, ALONE)
    assert not (Path(config.run.dir) / "data").exists()


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_target_language_without_a_code_is_refused_before_training(
    config: Config, corpus: Path, checkpoint: Path, pretrained: bool
) -> None:
    """Wherever it is; a tokenizer that the run makes has codes of the languages that are trained."""
    if pretrained:
        config = config.model_copy(update={"model": ModelConfig(pretrained=str(checkpoint))})
    rewritten(corpus, "test", lambda number, row: replace(row, target_lang="en") if number == 2 else row)
    with pytest.raises(RankZeroError, match=UNKNOWN.format("test", 2)):
        load_inputs(config, ALONE)
    assert not (Path(config.run.dir) / "data" / "train.labels.arrow").exists()


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_language_pair_that_is_evaluated_but_not_trained_is_told(
    config: Config, corpus: Path, checkpoint: Path, pretrained: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Target languages exchanged in training: the tokenizer knows both codes, but a new model does not learn these pairs."""
    rewritten(corpus, "train", lambda number, row: replace(row, target_lang="fra" if row.source_lang == "bem" else "eng"))
    told = r"\d utterances of dev are bem-eng, of which the training set has none \(it has bem-fra, mdw-eng\)"
    if not pretrained:
        with pytest.raises(RankZeroError, match=rf"data\.corpora: {told}; mend the language codes"):
            load_inputs(config, ALONE)
        return
    load_inputs(config.model_copy(update={"model": ModelConfig(pretrained=str(checkpoint))}), ALONE)
    assert re.search(told, capsys.readouterr().out)


def test_targets_of_unknown_characters_are_counted_and_told(
    config: Config, corpus: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config.model_copy(update={"model": ModelConfig(pretrained=str(checkpoint))})
    texts = {0: "\u4f60\u597d\u4f60\u597d 0", 2: "Monday \u4f60", 4: "\u4f60 \u597d"}
    rewritten(corpus, "train", lambda number, row: replace(row, target_text=texts.get(number, row.target_text)))
    load_inputs(config, ALONE)
    report = json.loads((Path(config.run.dir) / "data" / "train.labels.json").read_text())
    assert report == {
        "bem-eng": {"targets": 7, "unknown": 3, "largely_unknown": ["train-0", "train-4"]},
        "mdw-fra": {"targets": 7, "unknown": 0, "largely_unknown": []},
    }
    assert "2 of 7 translations of bem-eng in train are of characters" in capsys.readouterr().out
    load_inputs(config, ALONE)
    assert "such as those of train-0, train-4 (all: " in capsys.readouterr().out, "told at each start"


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_language_whose_targets_are_in_another_script_is_refused(
    config: Config, corpus: Path, checkpoint: Path, split: str
) -> None:
    config = config.model_copy(update={"model": ModelConfig(pretrained=str(checkpoint))})
    rewritten(corpus, split, lambda number, row: replace(row, target_text="\u4f60\u597d") if number % 2 else row)
    for _ in range(2):
        with pytest.raises(
            RankZeroError, match=rf"(\d) of \1 translations of mdw-fra in {split} .* such as those of {split}-1, "
        ):
            load_inputs(config, ALONE)
