"""From corpora to the datasets of a run, on one rank."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SeamlessM4TTokenizer

from gdps_ds.config import Config, ModelConfig, SpecAugmentConfig
from gdps_ds.data.augmentation import Augmentation
from gdps_ds.data.collate import Batch
from gdps_ds.data.manifest import DataError, Utterance, read_manifest, write_manifest
from gdps_ds.data.sampling import Position
from gdps_ds.distributed.comm import Communicator, RankZeroError
from gdps_ds.model.families import load_model
from gdps_ds.model.tokens import load_tokenizer, train_tokenizer
from gdps_ds.training import inputs
from gdps_ds.training.inputs import label_ids, load_inputs, with_loss
from gdps_ds.training.run_dir import open_run_dir
from gdps_ds.training.trainer import Trainer
from launchers import prepare
from tests.tiny import ALONE, ARCHITECTURE
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


def begin(folder: Path) -> None:
    latest = folder / "checkpoints" / "unified" / "latest"
    latest.parent.mkdir(parents=True)
    latest.write_text("update-000001")


def test_a_run_that_has_begun_is_not_prepared_anew_from_what_cannot_be_compared(
    config: Config, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, folder = load_inputs(config, ALONE), Path(config.run.dir) / "data"
    before, manifest = (folder / "train.arrow").read_bytes(), corpus / "train.jsonl"
    begin(folder.parent)
    (folder / "train.arrow").unlink()
    load_inputs(config, ALONE)
    assert (folder / "train.arrow").read_bytes() == before, "from the same files the same"
    text = manifest.read_text()
    manifest.write_text(text.replace("Monday", "Sunday"))
    (folder / "train.arrow").unlink()
    with pytest.raises(RankZeroError, match=rf"another run\.dir, or put them back: {manifest} was changed"):
        load_inputs(config, ALONE)
    (folder / "train.sources.arrow").unlink()
    with pytest.raises(RankZeroError, match=r"data has neither train\.arrow, .* nor train\.sources\.arrow"):
        load_inputs(config, ALONE)
    (folder / "train.arrow").write_bytes(before)
    capsys.readouterr()
    assert load_inputs(config, ALONE).train.utterances[0].target_text == "Monday 0, 5", "the data that it has trained with"
    assert "train.sources.arrow is missing: whether corpora were edited is not seen" in capsys.readouterr().out
    os.utime(found.train.utterances[0].audio, ns=(1, 1))
    with pytest.raises(RankZeroError, match="audio of train was changed"):
        load_inputs(config, ALONE)


def test_data_of_unknown_origin_are_prepared_anew_before_the_run_begins(config: Config, corpus: Path) -> None:
    load_inputs(config, ALONE)
    (Path(config.run.dir) / "data" / "train.sources.arrow").unlink()
    manifest = corpus / "train.jsonl"
    manifest.write_text(manifest.read_text().replace("Monday", "Sunday"))
    assert load_inputs(config, ALONE).train.utterances[0].target_text == "Sunday 0, 5"


def test_data_that_runs_share_are_compared_for_all_of_them(config: Config, corpus: Path, tmp_path: Path) -> None:
    """As run.unified and launchers/compare.py link them: what one run has trained with is not prepared anew by another."""
    load_inputs(config, ALONE)
    second = tmp_path / "second"
    second.mkdir()
    (second / "data").symlink_to(Path(config.run.dir) / "data", target_is_directory=True)
    other = config.model_copy(update={"run": config.run.model_copy(update={"dir": str(second)})})
    manifest = corpus / "train.jsonl"
    manifest.write_text(manifest.read_text().replace("Monday", "Sunday"))
    assert load_inputs(other, ALONE).train.utterances[0].target_text == "Sunday 0, 5", "neither has begun"
    assert (second / "data").is_symlink()
    assert not (Path(config.run.dir) / "tokenizer").exists(), "it was made from other texts"
    begin(Path(config.run.dir))
    for gone in ("", "train.arrow"):
        (Path(config.run.dir) / "data" / gone).unlink() if gone else None
        manifest.write_text(manifest.read_text().replace("Sunday", "Friday"))
        with pytest.raises(RankZeroError, match=rf"choose one without run\.unified, .*{manifest} was changed"):
            load_inputs(other, ALONE)


@pytest.mark.parametrize("prepared", [True, False])
def test_what_is_advised_where_audio_changed_helps(config: Config, corpus: Path, tmp_path: Path, prepared: bool) -> None:
    config, root = with_data(config, cache_features=False), tmp_path / "prepared"

    def prepare_manifest(split: str) -> None:
        command = ["--corpus", "manifest", "--root", str(corpus), "--split", split, "--out", str(root)]
        assert prepare.main([*command, *(["--no-references"] if split == "test" else [])]) == 0

    if prepared:
        for split in ("train", "dev", "test"):
            prepare_manifest(split)
        (entry,) = config.data.corpora
        config = with_data(config, corpora=(entry.model_copy(update={"root": str(root), "audio_roots": (str(corpus),)}),))
    found = load_inputs(config, ALONE)
    tone(Path(found.train.utterances[12].audio), 0.5)
    advice = r"the audio changed after it was measured; run launchers/prepare\.py again where it wrote the manifest, and start"
    with pytest.raises(DataError, match=advice):
        found.train.features[12]
    if prepared:
        prepare_manifest("train")
    again = load_inputs(config, ALONE)
    assert len(again.train.features[12]) == again.train.lengths[12] == 24  # windows of 25 ms each 10 ms in .5 s, by two


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
    assert [name.split(".")[1] for name in times] == ["train"], "limits of length are training's"
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
    left = sorted(path.name for path in (Path(config.run.dir) / "data").iterdir())
    assert left == ["train.report.json", "train.skipped.tsv"]


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


def test_what_training_leaves_out_is_kept_to_be_translated(config: Config, corpus: Path) -> None:
    """A truncated file in each role: the dev and test sets keep it; every skipped utterance is listed."""
    for split in ("train", "dev", "test"):
        path = corpus / split / "2.wav"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = load_inputs(config, ALONE)
    assert (len(found.train), len(found.dev), len(found.test)) == (13, 4, 4)
    data = Path(config.run.dir) / "data"
    listed = {role: (data / f"{role}.skipped.tsv").read_text().splitlines()[1:] for role in ("train", "dev", "test")}
    audio = corpus / "train" / "2.wav"
    assert listed == {"train": [f"train-2\tbem\ttruncated or damaged file\t{audio}"], "dev": [], "test": []}
    report = json.loads((data / "dev.report.json").read_text())["languages"]["bem"]
    assert report["notes"] == {"truncated or damaged file": 1}
    noted = (data / "dev.notes.tsv").read_text().splitlines()[1:]
    assert noted == [f"dev-2\tbem\ttruncated or damaged file\t{corpus / 'dev' / '2.wav'}"]


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


def test_a_dev_set_without_references_is_refused_with_what_to_do(config: Config) -> None:
    corpora = (config.data.corpora[0].model_copy(update={"dev": "test"}),)
    with pytest.raises(RankZeroError) as caught:
        load_inputs(with_data(config, corpora=corpora), ALONE)
    assert str(caught.value).splitlines()[1:] == [
        "  mdw: 2 read, 2 empty text",
        "  only test sets may lack translations: data.corpora.*.test, and launchers/prepare.py --no-references",
    ]


def test_dev_and_test_sets_are_whole_whatever_training_may_hear(config: Config, corpus: Path) -> None:
    """With at most .5 s, training loses 7 of 14 utterances; dev and test lose none, and the dev loss those above the budget."""
    (corpus / "test" / "1.wav").write_bytes(b"no audio")
    limited = with_data(config, max_seconds=0.5, max_frames=16)
    found = load_inputs(limited, ALONE)
    assert (len(found.train), len(found.dev), len(found.test)) == (7, 4, 4)
    assert [each.id for each in found.test.utterances] == [f"test-{number}" for number in range(4)]
    assert found.test.lengths.tolist()[1] == 0
    report = json.loads((Path(config.run.dir) / "data" / "test.report.json").read_text())
    assert report["languages"]["mdw"]["untranslatable"] == {"unreadable": 1}
    lengths = dict(zip([each.id for each in found.dev.utterances], found.dev.lengths.tolist(), strict=True))
    assert lengths == {"dev-0": 9, "dev-1": 11, "dev-2": 14, "dev-3": 16}
    assert with_loss(found.dev, limited.data).tolist() == [0, 1, 2, 3]
    assert with_loss(found.dev, limited.data.model_copy(update={"max_frames": 12})).tolist() == [0, 1]


def test_what_the_dev_loss_leaves_out_is_told_and_kept(
    config: Config, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "dev" / "0.wav").write_bytes(b"no audio")
    load_inputs(with_data(config, max_seconds=0.5, max_frames=15), ALONE)
    notes = (Path(config.run.dir) / "notes.txt").read_text()
    assert notes.splitlines() == [
        "bem: the dev loss leaves out 1 no audio of a frame",
        "mdw: the dev loss leaves out 1 longer than data.max_frames",
    ]
    assert notes in capsys.readouterr().out
    with pytest.raises(RankZeroError, match=r"data\.max_frames is 10: no utterance of bem is left for the dev loss \(1"):
        load_inputs(with_data(config, max_seconds=0.5, max_frames=10), ALONE)


def test_a_decoding_budget_below_an_utterance_is_told_at_the_start(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    load_inputs(config.model_copy(update={"decode": config.decode.model_copy(update={"max_frames": 12})}), ALONE)
    assert "decode.max_frames is 12, but 2 utterances" in capsys.readouterr().out


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


def rewritten(corpus: Path, split: str, change: Callable[[int, Utterance], Utterance]) -> None:
    rows = [change(number, row) for number, row in enumerate(read_manifest(corpus / f"{split}.jsonl"))]
    write_manifest(corpus / f"{split}.jsonl", rows)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole checkpoint that translates into English and French."""
    tokenizer = train_tokenizer([f"{day} 0123456789, 345" for day in DAYS], ["eng", "fra"], tmp_path / "checkpoint", 60)
    load_model(ModelConfig(config=ARCHITECTURE), tokenizer, seed=1).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_a_checkpoint_that_lacks_tensors_is_refused_before_data_are_prepared(config: Config, checkpoint: Path) -> None:
    config = config.model_copy(update={"model": ModelConfig(pretrained=str(checkpoint))})
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["text_decoder.layers.0.ffn.fc1.weight"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RankZeroError, match=rf"model\.pretrained: '{checkpoint}' .*: text_decoder\S+fc1\.weight is missing$"):
        load_inputs(config, ALONE)
    assert not (Path(config.run.dir) / "data").exists()


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


def test_a_checkpoint_that_changes_in_its_place_is_seen(config: Config, checkpoint: Path) -> None:
    config = config.model_copy(update={"model": ModelConfig(pretrained=str(checkpoint))})
    before = load_inputs(config, ALONE).train[0].labels
    train_tokenizer([f"{day[::-1]} 5432109876, 3" for day in DAYS], ["eng", "fra"], checkpoint, 60)  # as many other pieces
    after = load_inputs(config, ALONE)
    assert after.train[0].labels == label_ids(load_tokenizer(checkpoint), [after.train.utterances[0]])[0] != before
    begin(Path(config.run.dir))
    load_inputs(config, ALONE)
    weights = next(checkpoint.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    settings = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(settings + "\n")
    with pytest.raises(RankZeroError, match=r"model\.pretrained: 2 file\(s\) are not as they were") as refused:
        load_inputs(config, ALONE)
    assert f"{weights} was changed" in str(refused.value)
    assert f"{checkpoint / 'config.json'} was changed" in str(refused.value)


def test_labels_that_a_run_has_trained_with_are_not_made_by_another_tokenizer(config: Config) -> None:
    load_inputs(config, ALONE)
    folder = Path(config.run.dir)
    begin(folder)
    (folder / "data" / "train.labels.json").unlink()
    load_inputs(config, ALONE)  # the same again
    shutil.rmtree(folder / "tokenizer")
    train_tokenizer(["Monday 0, 5"], ["fra", "eng"], folder / "tokenizer", 60)
    labels = (folder / "data" / "train.labels.arrow").read_bytes()
    with pytest.raises(RankZeroError, match=rf"the tokenizer of {folder} gives other labels of .*train\.arrow"):
        load_inputs(config, ALONE)
    assert (folder / "data" / "train.labels.arrow").read_bytes() == labels


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
