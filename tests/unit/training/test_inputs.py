"""From corpora to the datasets of a run, on one rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gdps_ds.config import Config, ModelConfig, SpecAugmentConfig
from gdps_ds.data.augmentation import Augmentation
from gdps_ds.data.collate import Batch
from gdps_ds.data.sampling import Position
from gdps_ds.distributed.comm import Communicator, RankZeroError
from gdps_ds.training import inputs
from gdps_ds.training.inputs import label_ids, load_inputs, with_loss
from gdps_ds.training.run_dir import open_run_dir
from gdps_ds.training.trainer import Trainer
from tests.tiny import ALONE
from tests.unit.training.small_corpus import with_data


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


def test_a_checkpoint_that_lacks_tensors_is_refused_before_data_are_prepared(config: Config, checkpoint: Path) -> None:
    config = config.model_copy(update={"model": ModelConfig(pretrained=str(checkpoint))})
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["text_decoder.layers.0.ffn.fc1.weight"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RankZeroError, match=rf"model\.pretrained: '{checkpoint}' .*: text_decoder\S+fc1\.weight is missing$"):
        load_inputs(config, ALONE)
    assert not (Path(config.run.dir) / "data").exists()
