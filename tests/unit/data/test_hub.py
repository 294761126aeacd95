from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gdps_ds.data.corpora import read_corpus
from gdps_ds.data.corpora.files import NO_AUDIO
from gdps_ds.data.manifest import DataError, Unusable
from gdps_ds.data.preparation import prepare
from tests.unit.data import fixtures

datasets = pytest.importorskip("datasets", reason="datasets cannot be imported", exc_type=ImportError)
LANGUAGES = "source_lang: gle\ntarget_lang: eng\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def describe(root: Path, text: str) -> Path:
    fixtures.write(root / "hub.yaml", text)
    return root


def rows(folder: Path, count: int, **texts: list[Any]) -> Any:
    """Rows whose audio is embedded, as in the parquet files of the hub."""
    audio = [fixtures.tone(folder / f"{number}.flac", 0.5 + number / 10) for number in range(count)]
    embedded = [{"bytes": path.read_bytes(), "path": path.name} for path in audio]
    return datasets.Dataset.from_dict({"audio": embedded, **texts}).cast_column("audio", datasets.Audio(decode=False))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """FLEURS in small: a configuration a language, sentences with the same ids, and the audio embedded in parquet."""
    folder = tmp_path / "fleurs"
    irish = rows(tmp_path / "x", 3, id=[10, 10, 12], transcription=["a haon", "a haon", "a dó"])
    english = rows(tmp_path / "y", 2, id=[10, 11], transcription=["one\n", "eleven"])
    for name, data in (("ga_ie", irish), ("en_us", english)):
        (folder / name).mkdir(parents=True)
        data.to_parquet(folder / name / "train-00000-of-00001.parquet")
    configurations = [f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("ga_ie", "en_us")]
    fixtures.write(folder / "README.md", f"---\nconfigs:\n{''.join(configurations)}---\n")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_translations_come_from_another_configuration(tmp_path: Path, repository: Path, streaming: bool) -> None:
    root = describe(
        tmp_path / "gle",
        f"path: ../{repository.name}\nname: ga_ie\nid: id\nsource_text: transcription\nstreaming: {str(streaming).lower()}\n"
        f"references: {{name: en_us, key: id, text: transcription}}\n{LANGUAGES}",
    )
    found = list(read_corpus("hub", root, "train"))
    assert [(utterance.source_text, utterance.target_text) for utterance in found] == [
        ("a haon", "one"),
        ("a haon", "one"),
        ("a dó", None),
    ]
    assert [utterance.id for utterance in found] == [f"gle-gle-eng-train-{n:08d}-{i}" for n, i in ((1, 10), (2, 10), (3, 12))]
    usable, report = prepare(found, languages=["gle"], min_seconds=0.1, max_seconds=30)
    assert [utterance.duration for utterance in usable] == [0.5, 0.6]
    assert dict(report.of("gle").skipped) == {"empty text": 1}


def test_audio_is_copied_once(tmp_path: Path, repository: Path) -> None:
    root = describe(tmp_path / "gle", f"path: {repository}\nname: ga_ie\n{LANGUAGES}")
    first = list(read_corpus("hub", root, "train"))
    times = {path: path.stat().st_mtime_ns for path in (root / "audio").iterdir()}
    assert list(read_corpus("hub", root, "train")) == first
    assert {path: path.stat().st_mtime_ns for path in (root / "audio").iterdir()} == times
    assert {Path(utterance.audio) for utterance in first} == set(times)
    assert all(path.suffix == ".flac" for path in times)


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_audio_beside_a_table_is_read_where_it_lies(tmp_path: Path, streaming: str) -> None:
    folder = tmp_path / "repository"
    records = [{"file": f"clips/{name}.wav", "en": name} for name in "ab"]
    paths = [fixtures.tone(folder / record["file"]) for record in records]
    fixtures.write(folder / "train.jsonl", fixtures.json_rows(*records))
    root = describe(tmp_path / "gle", f"path: {folder}\naudio: file\ntarget_text: en\nstreaming: {streaming}\n{LANGUAGES}")
    found = list(read_corpus("hub", root, "train"))
    assert [(Path(utterance.audio), utterance.target_text) for utterance in found] == list(zip(paths, "ab", strict=True))
    assert not (root / "audio").exists()


def test_a_copy_saved_to_disk_and_rows_without_audio(tmp_path: Path) -> None:
    data = rows(tmp_path / "x", 2, en=["one", "two"])
    silent = datasets.Dataset.from_dict({"audio": [None], "en": ["three"]}).cast(data.features)
    datasets.DatasetDict({"dev": datasets.concatenate_datasets([data, silent])}).save_to_disk(tmp_path / "copy")
    root = describe(tmp_path / "gle", f"path: ../copy\ntarget_text: en\n{LANGUAGES}")
    *found, last = read_corpus("hub", root, "dev")
    assert [utterance.target_text for utterance in found] == ["one", "two"]
    assert isinstance(last, Unusable)
    assert (last.reason, last.source_lang) == (NO_AUDIO, "gle")


def test_remote_audio_is_fetched(tmp_path: Path) -> None:
    remote = fixtures.tone(tmp_path / "server/a.wav").as_uri()
    data = datasets.Dataset.from_dict({"audio": [{"bytes": None, "path": remote}]}).cast_column(
        "audio", datasets.Audio(decode=False)
    )
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "copy")
    [utterance] = read_corpus("hub", describe(tmp_path / "gle", f"path: ../copy\n{LANGUAGES}"), "test")
    assert Path(utterance.audio).parent == tmp_path / "gle/audio"
    assert utterance.target_text is None


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (None, r"hub\.yaml: no such file; corpus layout 'hub' needs it"),
        ("path: [", r"hub\.yaml: not valid YAML"),
        ("", r"hub\.yaml: file: Input should be"),
        (f"path: x\nlanguage: gle\n{LANGUAGES}", r"hub\.yaml: language: Extra inputs are not permitted"),
        ("path: x\nsource_lang: gle\n", r"hub\.yaml: target_lang: Field required"),
        (f"path: x\ntarget_text: a\nreferences: {{name: a, key: b, text: c}}\n{LANGUAGES}", "exclude each other"),
        (f"path: ../fleurs\nname: ga_ie\ntarget_text: english\n{LANGUAGES}", "no column english; columns there: audio, id, tr"),
        (f"path: ../fleurs\nname: fr_fr\n{LANGUAGES}", r"cannot load split 'train' of \.\./fleurs \(fr_fr\): .*fr_fr"),
    ],
)
def test_faults_of_the_description(tmp_path: Path, repository: Path, description: str | None, message: str) -> None:
    (tmp_path / "gle").mkdir()
    if description is not None:
        describe(tmp_path / "gle", description)
    with pytest.raises(DataError, match=message):
        list(read_corpus("hub", tmp_path / "gle", "train"))


def test_a_split_that_is_not_there(tmp_path: Path, repository: Path) -> None:
    root = describe(tmp_path / "gle", f"path: ../fleurs\nname: ga_ie\n{LANGUAGES}")
    with pytest.raises(DataError, match=r"cannot load split 'dev' of \.\./fleurs \(ga_ie\): .*train"):
        list(read_corpus("hub", root, "dev"))
