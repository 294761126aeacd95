"""Data that were prepared, and what has changed since."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from gdps_ds.config import Config, ModelConfig
from gdps_ds.data.manifest import DataError
from gdps_ds.distributed.comm import RankZeroError
from gdps_ds.model.tokens import load_tokenizer, train_tokenizer
from gdps_ds.training import inputs
from gdps_ds.training.inputs import label_ids, load_inputs
from launchers import prepare
from tests.tiny import ALONE
from tests.unit.data.fixtures import tone
from tests.unit.training.small_corpus import DAYS, begin, with_data


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
