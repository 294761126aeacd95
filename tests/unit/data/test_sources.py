"""What prepared data were made from, and what is seen of later changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from gdps_ds.data.corpora import read_corpus
from gdps_ds.data.manifest import DataError
from gdps_ds.data.sources import Files, changes, noting, write_sources
from tests.unit.data import fixtures
from tests.unit.data.fixtures import write


def test_changed_added_and_removed_files_are_named(tmp_path: Path) -> None:
    root, record = tmp_path / "corpus", tmp_path / "train.sources.arrow"
    folder = root / "train"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        for suffix in (".wav", ".fr", ".mb"):
            (folder / f"{name}{suffix}").write_text("bonjour")
    files = Files()
    assert len(list(noting(read_corpus("mboshi-french", root, "train"), files))) == 2
    write_sources(record, files)
    assert changes(record) == []
    os.utime(folder / "a.fr", ns=(1, 1))  # touched, the same text
    assert changes(record) == []
    (folder / "a.fr").write_text("bonsoir")
    (folder / "b.mb").unlink()
    os.utime(folder / "a.wav", ns=(1, 1))  # copied without its time
    (folder / "b.wav").write_text("bonsoir")  # as large as it was
    (folder / "c.wav").touch()
    assert sorted(changes(record)) == [
        f"{folder / 'a.fr'} was changed",
        f"{folder / 'b.mb'} was removed",
        f"{folder / 'b.wav'} was changed",
        f"{folder}: c.wav was added",
    ]


def recorded(layout: str, root: Path, split: str) -> Path:
    files, record = Files(), root.parent / "record.arrow"
    assert list(noting(read_corpus(layout, root, split), files))
    write_sources(record, files)
    assert changes(record) == []
    return record


def lacking(make: Callable[[Path], Path], *names: str) -> Callable[[Path], Path]:
    """The corpus without some of its files."""

    def build(root: Path) -> Path:
        make(root)
        for name in names:
            (root / name).unlink()
        return root

    return build


CALL = "20170601_110003_13355"


@pytest.mark.parametrize(
    ("layout", "split", "make", "added"),
    [
        ("iwslt-aeb", "dev", lacking(fixtures.aeb, "exclude-utterance.txt"), "exclude-utterance.txt"),
        ("iwslt-aeb", "dev", lacking(fixtures.aeb, f"data/translations/ta/{CALL}_B.tsv"), f"data/translations/ta/{CALL}_B.tsv"),
        ("iwslt-aeb-stm", "test2", fixtures.aeb_stm, "st-aeb2eng.norm.test2.stm"),
        ("iwslt-gle", "test-2025", fixtures.stamped, "test-2025/txt/test-2025.eng"),
        ("mustc:eng-deu", "tst-COMMON", fixtures.mustc, "data/tst-COMMON/txt/tst-COMMON.deu"),
        ("covost2:est-eng", "train", lacking(fixtures.covost2_distributed, "validated.tsv"), "validated.tsv"),
        ("covost2:est-eng", "train", fixtures.covost2_distributed, "covost_v2.et_en.train.tsv"),
        ("bigc", "train", fixtures.bigc, "audio/4_d.wav"),
        ("bigc", "train", fixtures.bigc, "audio/2_b.wav"),  # found as 2_b.wav.wav now, by itself then
        ("taltech-est", "train", fixtures.taltech, "rec/rec_1_0_100.flac"),  # looked for there first
        ("seamless", "train", fixtures.seamless, "train_manifest.json"),
    ],
)
def test_a_file_that_comes_later_is_seen(
    tmp_path: Path, layout: str, split: str, make: Callable[[Path], Path], added: str
) -> None:
    root = make(tmp_path / "corpus")
    if layout == "seamless":
        next(root.glob("train*.json*")).rename(root / "train_manifest.jsonl")
    record = recorded(layout, root, split)
    write(root / added, "x")
    path = root / added
    told = {f"{path} was added", f"{path.parent}: {path.name} was added", f"{path.parent} was added"}  # a folder that came
    assert set(changes(record)) <= told
    assert changes(record) != []


def test_references_under_another_name_are_seen(tmp_path: Path) -> None:
    root = fixtures.stamped(tmp_path / "corpus")
    (root / "test-2025" / "txt").mkdir()
    record = recorded("iwslt-gle", root, "test-2025")
    write(root / "test-2025/txt/test.eng", "One.\n")  # as in test-2023 of Irish
    assert changes(record) == [f"{root / 'test-2025/txt'}: test.eng was added"]


def test_audio_whose_name_is_in_another_normal_form_is_compared(tmp_path: Path) -> None:
    """As macOS writes it; the manifest has the other."""
    audio = fixtures.tone(tmp_path / "corpus" / "e\u0301.wav")
    row = {"id": "1", "audio": "\u00e9.wav", "source_lang": "bem", "target_lang": "eng", "target_text": "One."}
    write(tmp_path / "corpus" / "train.jsonl", fixtures.json_rows(row))
    record = recorded("manifest", tmp_path / "corpus", "train")
    audio.write_bytes(audio.read_bytes()[:-1] + b"x")
    assert [line.rpartition(" was ")[2] for line in changes(record)] == ["changed"]


def test_rows_of_a_local_data_set_are_compared(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets cannot be imported", exc_type=ImportError)
    root, rows = tmp_path / "corpus", tmp_path / "corpus" / "rows"
    fixtures.tone(rows / "a.flac")
    (rows / "data").mkdir()
    datasets.Dataset.from_dict({"audio": [{"bytes": (rows / "a.flac").read_bytes(), "path": "a.flac"}]}).to_parquet(
        rows / "data" / "train-00000.parquet"
    )
    (rows / "a.flac").unlink()
    write(root / "hub.yaml", "path: rows\nsource_lang: gle\ntarget_lang: eng\n")
    record = recorded("hub", root, "train")
    table = rows / "data" / "train-00000.parquet"
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    write(rows / "data" / "train-00001.parquet", "")
    write(rows / "README.md", "---\n---\n")
    assert sorted(changes(record)) == [
        f"{rows / 'data/train-00000.parquet'} was changed",
        f"{rows / 'data'}: train-00001.parquet was added",
        f"{rows}: README.md was added",
    ]


def test_a_data_set_of_the_hub_that_moves_is_seen_where_the_hub_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets cannot be imported", exc_type=ImportError)
    asked: list[tuple[str, str]] = []
    commits = {"main": "c0ffee"}

    def dataset_info(self: object, name: str, revision: str, timeout: float) -> SimpleNamespace:
        asked.append((name, revision))
        return SimpleNamespace(sha=commits[revision])

    def load_dataset(*_: object, **__: object) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"audio": [{"bytes": b"x", "path": "a.flac"}]})

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    write(tmp_path / "corpus" / "hub.yaml", "path: some/corpus\nsource_lang: gle\ntarget_lang: eng\n")
    record = recorded("hub", tmp_path / "corpus", "train")
    assert set(asked) == {("some/corpus", "main")}
    commits["main"] = "decaf"
    assert changes(record) == ["some/corpus was changed"]
    commits.clear()  # as without a network: nothing can be said
    assert changes(record) == []


def test_files_that_change_while_they_are_read_are_refused(tmp_path: Path) -> None:
    root = fixtures.stamped(tmp_path / "corpus")
    files = Files()
    reading = noting(read_corpus("iwslt-gle", root, "train"), files)
    next(reading)
    write(root / "train/txt/train.eng", "Two.\nTwo.\nTwo.\nTwo.\n")
    fixtures.tone(root / "train/wav/z0001_000.wav", 5.0)
    list(reading)
    with pytest.raises(DataError, match=r"2 file\(s\) changed while they were read; start again .*train\.eng was changed"):
        write_sources(tmp_path / "record.arrow", files)
    assert not (tmp_path / "record.arrow").exists()
