"""From corpora to the datasets of a run, on one rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gdps_ds.config import Config, ModelConfig, SpecAugmentConfig
from gdps_ds.data.augmentation import Augmentation
from gdps_ds.data.collate import Batch
from gdps_ds.data.manifest import DataError, Utterance, write_manifest
from gdps_ds.data.sampling import Position
from gdps_ds.distributed.comm import Communicator, RankZeroError
from gdps_ds.training import inputs
from gdps_ds.training.inputs import label_ids, load_inputs
from gdps_ds.training.run_dir import open_run_dir
from gdps_ds.training.trainer import Trainer
from tests.tiny import ALONE
from tests.unit.data.fixtures import tone

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two languages, translated into two; the test set of one has no references, that of the other some."""
    for split, count in (("train", 14), ("dev", 4), ("test", 4)):
        rows = []
        for number in range(count):
            language, target = (("bem", "eng"), ("mdw", "fra"))[number % 2]
            audio = str(tone(tmp_path / "corpus" / split / f"{number}.wav", 0.2 + number / 20))
            text = f"{DAYS[number % 7]} {number}, {len(split)}"
            rows.append(Utterance(f"{split}-{number}", audio, language, target, text))
        if split == "test":
            rows = [replace(row, target_text=row.target_text if number == 0 else None) for number, row in enumerate(rows)]
        write_manifest(tmp_path / "corpus" / f"{split}.jsonl", rows)
    return tmp_path / "corpus"


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> Config:
    phase = {"updates": 1, "lr": 1.0}
    return Config.model_validate(
        {
            "deepspeed": "unused.json",
            "run": {"dir": str(tmp_path / "run")},
            "data": {"languages": ["bem", "mdw"], "corpora": [{"layout": "manifest", "root": str(corpus)}]},
            "model": {"vocab_size": 60},
            "train": {"unify": phase, "specialise": phase},
            "track": {"progress": False},
        }
    )


def with_data(config: Config, **fields: object) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update=fields)})


def test_labels_are_tokenised_once_and_by_target_language(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "TOKENISED_TOGETHER", 4)
    found = load_inputs(config, ALONE)
    rows = list(found.train.utterances)
    assert [found.train[index].labels for index in range(14)] == label_ids(found.tokenizer, rows)
    assert found.tokenizer.convert_ids_to_tokens(found.train[1].labels[0]) == "__fra__"
    decoded = found.tokenizer.batch_decode([found.dev[index].labels for index in range(4)], skip_special_tokens=True)
    assert decoded == [row.target_text for row in found.dev.utterances]
    monkeypatch.setattr(inputs, "label_ids", None)
    assert load_inputs(config, ALONE).train[3].labels == found.train[3].labels


def test_edited_data_are_prepared_anew_or_refused_where_the_run_has_begun(config: Config, corpus: Path) -> None:
    before = load_inputs(config, ALONE)
    manifest, text = corpus / "train.jsonl", (corpus / "train.jsonl").read_text()
    rows = text.replace("Monday", "Good day").splitlines(keepends=True)
    manifest.write_text("".join(rows[:-1]))
    after = load_inputs(config, ALONE)
    assert (len(before.train), len(after.train)) == (14, 13)
    assert after.train.utterances[0].target_text == "Good day 0, 5"
    decoded = after.tokenizer.batch_decode([after.train[0].labels], skip_special_tokens=True)
    assert decoded == ["Good day 0, 5"]  # G and o are in no text of before: the tokenizer follows
    latest = Path(config.run.dir) / "checkpoints" / "unified" / "latest"
    latest.parent.mkdir(parents=True)
    latest.write_text("update-000001")
    manifest.write_text(text)
    audio = Path(after.dev.utterances[0].audio)
    audio.unlink()
    tone(audio, 0.3)
    with pytest.raises(RankZeroError, match=r"data\.corpora: 2 file\(s\) .*another run\.dir") as refused:
        load_inputs(config, ALONE)
    assert f"{manifest} was changed" in str(refused.value)
    assert f"{audio} was changed" in str(refused.value)


def test_utterances_are_prepared_once_for_the_same_settings(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_inputs(config, ALONE)
    times: list[str] = []
    original = inputs.write_utterances
    monkeypatch.setattr(inputs, "write_utterances", lambda path, *rest: (times.append(path.name), original(path, *rest)))
    again = load_inputs(with_data(config, max_frames=2000), ALONE)
    assert times == []
    assert list(again.train.utterances) == list(first.train.utterances)
    np.testing.assert_array_equal(again.train.features[5], first.train.features[5])
    shorter = load_inputs(with_data(config, max_seconds=0.6), ALONE)
    assert len(times) == 3
    assert len(shorter.train) == 9
    assert shorter.train[8].labels == first.train[8].labels


def test_an_option_that_was_at_fault_can_be_changed_in_the_same_run(config: Config, tmp_path: Path) -> None:
    """Labels and tokenizer are made anew; features are not."""
    (tmp_path / "zero.json").write_text("{}")
    config = config.model_copy(update={"deepspeed": str(tmp_path / "zero.json")})
    open_run_dir(config)
    first = load_inputs(config, ALONE)
    features = Path(config.run.dir) / "data" / "train.features"
    made = features.stat().st_ino
    larger = config.model_copy(update={"model": ModelConfig(vocab_size=90)})
    open_run_dir(larger)
    second = load_inputs(larger, ALONE)
    assert (len(first.tokenizer), len(second.tokenizer)) == (63, 93)
    assert list(second.train[3].labels) == label_ids(second.tokenizer, list(second.train.utterances))[3]
    assert features.stat().st_ino == made


def test_test_sets_need_no_references_and_the_others_do(config: Config, corpus: Path) -> None:
    found = load_inputs(config, ALONE)
    assert [row.target_text for row in found.test.utterances] == ["Monday 0, 4", None, None, None]
    batch = found.collate([found.test[index] for index in range(4)])
    assert batch.labels is None and batch.target_languages == ("eng", "fra", "eng", "fra")
    report = json.loads((Path(config.run.dir) / "data" / "test.report.json").read_text())
    assert {language: part["unreferenced"] for language, part in report["languages"].items()} == {"bem": 1, "mdw": 2}
    blind = with_data(config, corpora=(config.data.corpora[0].model_copy(update={"dev": "test"}),))
    with pytest.raises(RankZeroError, match=r"no usable utterance is left of 1 language\(s\)\n  mdw: 2 read, 2 empty text"):
        load_inputs(blind, ALONE)


def test_a_failed_preparation_leaves_its_report_and_is_done_again(config: Config, corpus: Path) -> None:
    wanted = with_data(config, languages=("bem", "mdw", "gle"))
    for _ in range(2):
        with pytest.raises(RankZeroError, match="gle: none in the corpora, which have bem, mdw"):
            load_inputs(wanted, ALONE)
    assert [path.name for path in (Path(config.run.dir) / "data").iterdir()] == ["train.report.json"]


def test_ranks_meet_as_often_whatever_files_they_see(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank may look for a file before or after rank 0 has written it."""
    meetings: list[int] = []
    comm = Communicator(0, 1, 0, ALONE.device)
    monkeypatch.setattr(comm, "from_main", lambda compute: meetings.append(1) or compute())
    load_inputs(config, comm)
    first = len(meetings)
    load_inputs(config, comm)
    assert first > 0 and len(meetings) == 2 * first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "manifset"}, "unknown corpus layout 'manifset'; known layouts: manifest, mboshi-french"),
        ({"layout": "mustc"}, "corpus layout 'mustc' must name its languages in ISO 639-3, as in 'mustc:eng-deu'"),
        ({"test": "tset"}, "no split 'tset'; splits there: dev, test, train"),
    ],
)
def test_a_fault_of_the_last_corpus_shows_before_the_first_is_decoded(config: Config, change: dict, message: str) -> None:
    (first,) = config.data.corpora
    with pytest.raises(RankZeroError, match=message):
        load_inputs(with_data(config, corpora=(first, first.model_copy(update=change))), ALONE)
    assert not (Path(config.run.dir) / "data").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no SeamlessM4T checkpoint '.*' on disk or on the hub \(OSError: Can't load the configuration of "),
        ({"config.json": '{"model_type": "whisper"}'}, r"\(ValueError: '.*' is of type whisper, not seamless_m4t\)"),
        ({"config.json": '{"model_type": "seamless_m4t"}'}, r"on disk or on the hub \(\w+Error: "),  # no tokenizer
    ],
)
def test_what_is_no_checkpoint_shows_before_data_are_prepared(
    config: Config, tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / "checkpoint").mkdir()
        (tmp_path / "checkpoint" / name).write_text(content)
    missing = config.model_copy(update={"model": ModelConfig(pretrained=str(tmp_path / "checkpoint"))})
    with pytest.raises(RankZeroError, match=f"model.pretrained: .*{message}"):
        load_inputs(missing, ALONE)
    unknown = config.model_copy(update={"model": ModelConfig(config={"hidden_sizes": 8})})
    with pytest.raises(RankZeroError, match=r"model\.config: SeamlessM4TConfig has no field hidden_sizes"):
        load_inputs(unknown, ALONE)
    assert not (Path(config.run.dir) / "data").exists()


def test_roles_that_share_utterances_are_told_of(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    load_inputs(with_data(config, corpora=(config.data.corpora[0].model_copy(update={"test": "dev"}),)), ALONE)
    report = json.loads((Path(config.run.dir) / "data" / "test.report.json").read_text())
    assert report["overlap"] == {"dev": 4}
    assert "4 of them are in dev too" in capsys.readouterr().out


def test_long_targets_are_refused_with_an_example(config: Config) -> None:
    with pytest.raises(DataError, match=r"data\.max_target_tokens is 4, but \d+ targets are longer, such as train-0's"):
        load_inputs(with_data(config, max_target_tokens=4), ALONE)


def test_a_rank_that_waited_too_long_says_what_to_do(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def times_out(compute: Callable[[], object]) -> None:
        raise RuntimeError("Timed out waiting 1800000ms for recv operation to complete")

    waiting = Communicator(1, 2, 1, torch.device("cpu"))
    monkeypatch.setattr(waiting, "from_main", times_out)
    with pytest.raises(RuntimeError, match=r"rank 1 could not wait .* beforehand with launchers/prepare\.py.*Timed out"):
        load_inputs(config, waiting)


def test_only_training_batches_are_augmented(config: Config) -> None:
    """Mining in a pass asks for a loader without augmentation, dev losses and decoding index the sets themselves."""
    augmented = with_data(config, speeds=(0.9, 1.1), spec_augment=SpecAugmentConfig())
    found = load_inputs(augmented, ALONE)
    trainer = Trainer(augmented, ALONE, found, None, None, None)  # type: ignore[arg-type]
    plain = Trainer(config, ALONE, found, None, None, None)  # type: ignore[arg-type]

    def batch(trainer: Trainer, role: str, **options: Augmentation) -> Batch:
        return next(trainer.loader(found.train, trainer.micro_batches(role), Position(), 1, **options))

    mined, unchanged = batch(trainer, "mine"), batch(plain, "mine")
    assert mined.utterances == unchanged.utterances
    assert torch.equal(mined.input_features, unchanged.input_features)
    trained = batch(trainer, "train", augmentation=trainer.augmentation)
    rows = {utterance.id: row for row, utterance in enumerate(found.train.utterances)}
    for row, name in enumerate(trained.utterances):
        assert int(trained.attention_mask[row].sum()) != found.train.lengths[rows[name]]
    assert (trained.input_features[:, 0] == 0).any()
