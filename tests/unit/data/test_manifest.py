from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdps_ds.data.manifest import (
    MAX_LISTED_FAULTS,
    DataError,
    ManifestError,
    Utterance,
    read_manifest,
    stream_manifest,
    write_manifest,
)

GOOD = {"id": "a", "audio": "a.wav", "source_lang": "bem", "target_lang": "eng", "target_text": "x"}

texts = st.text(st.characters(exclude_categories=["Cs"]))
names = texts.filter(str.strip)
seconds = st.floats(0, 1e5, allow_nan=False)
utterances = st.builds(
    Utterance,
    id=names,
    audio=st.sampled_from(["/data/a.wav", "/data/ü b/c.flac"]),
    source_lang=st.sampled_from(["aeb", "bem"]),
    target_lang=st.just("eng"),
    target_text=st.none() | texts,
    source_text=st.none() | texts,
    offset=seconds,
    duration=st.none() | seconds,
)


def write_lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def faults_of(path: Path) -> list[tuple[int, str]]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    return list(caught.value.faults)


@given(st.lists(utterances, unique_by=lambda utterance: utterance.id))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, corpus: list[Utterance]) -> None:
    path = tmp_path_factory.mktemp("manifest") / "train.jsonl"
    write_manifest(path, corpus)
    assert read_manifest(path) == corpus


def test_audio_below_the_manifest_is_relative_so_that_the_folder_can_move(tmp_path: Path) -> None:
    inside, outside = tmp_path / "old" / "wav" / "a.wav", tmp_path / "elsewhere" / "b.wav"
    write_manifest(
        tmp_path / "old" / "train.jsonl",
        [Utterance("a", str(inside), "bem", "eng", "x"), Utterance("b", str(outside), "bem", "eng", "y")],
    )
    (tmp_path / "old").rename(tmp_path / "new")
    first, second = read_manifest(tmp_path / "new" / "train.jsonl")
    assert first.audio == str(tmp_path / "new" / "wav" / "a.wav")
    assert second.audio == str(outside)


def test_dots_in_the_path_of_the_manifest_do_not_make_audio_absolute(tmp_path: Path) -> None:
    path = tmp_path / "x" / ".." / "m.jsonl"
    write_manifest(path, [Utterance("a", str(tmp_path / "x" / ".." / "a.wav"), "bem", "eng", "x")])
    assert json.loads((tmp_path / "m.jsonl").read_text(encoding="utf-8"))["audio"] == "a.wav"
    assert read_manifest(path)[0].audio == str(tmp_path / "a.wav")


def test_relative_paths_start_at_the_manifest_not_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path / "m.jsonl", GOOD | {"audio": "../x/a.wav"})
    monkeypatch.chdir("/")
    assert read_manifest(tmp_path / "m.jsonl")[0].audio == str(tmp_path.parent / "x" / "a.wav")


def test_a_manifest_reads_audio_elsewhere_only_where_that_is_allowed(tmp_path: Path) -> None:
    """Out by dots, by an absolute path and by a symbolic link."""
    inside, outside = tmp_path / "corpus", tmp_path / "elsewhere"
    for folder in (inside, outside):
        folder.mkdir()
    (inside / "link").symlink_to(outside)
    audio = ["a.wav", "../elsewhere/b.wav", str(outside / "c.wav"), "link/d.wav"]
    write_lines(inside / "m.jsonl", *(GOOD | {"id": str(number), "audio": name} for number, name in enumerate(audio)))
    with pytest.raises(ManifestError) as caught:
        list(stream_manifest(inside / "m.jsonl", audio_roots=()))
    assert [line for line, _ in caught.value.faults] == [2, 3, 4]
    assert caught.value.faults[0][1] == (
        f"audio {outside / 'b.wav'} lies outside of {inside}, which data.corpora.*.audio_roots can extend"
    )
    assert len(list(stream_manifest(inside / "m.jsonl", audio_roots=[outside]))) == 4


def test_defaults_are_not_written(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.jsonl", [Utterance("a", str(tmp_path / "a.wav"), "bem", "eng", None)])
    assert json.loads((tmp_path / "m.jsonl").read_text(encoding="utf-8")) == GOOD | {"target_text": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"langauge": "bem"}, "unknown key 'langauge'; known keys: id, audio, "),
        ({"id": 7}, "id must be a non-empty string, found 7"),
        ({"audio": " "}, "audio must be a non-empty string, found ' '"),
        ({"target_text": ["x"]}, "target_text must be a string or null"),
        ({"offset": True}, "offset must be seconds >= 0, found True"),
        ({"offset": -1}, "offset must be seconds >= 0, found -1"),
        ({"duration": "3"}, "duration must be seconds >= 0 or null, found '3'"),
        ({"duration": float("nan")}, "duration must be seconds >= 0 or null, found nan"),
    ],
)
def test_a_bad_value_is_named_with_its_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_lines(tmp_path / "m.jsonl", GOOD | {"id": "other"}, GOOD | change)
    [(line, fault)] = faults_of(path)
    assert line == 2
    assert fault.startswith(message)


def test_all_faults_of_a_file_come_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    lines = [
        json.dumps(GOOD).encode(),
        b"{",
        b"",
        b"[1]",
        b"\xff",
        json.dumps(GOOD).encode(),
        b'{"id": "b", "id": "c"}',
    ]
    path.write_bytes(b"\n".join([*lines, json.dumps({"id": "z"}).encode()]))
    faults = faults_of(path)
    assert [line for line, _ in faults] == [2, 3, 4, 5, 6, 7, 8, 8, 8, 8]
    found = dict(reversed(faults))
    assert found[2].startswith("not JSON: ")
    assert found[3] == "empty line"
    assert found[4] == "must be an object, found list"
    assert found[5].startswith("not UTF-8")
    assert found[6] == "its id is on line 1 already"
    assert found[7] == "key 'id' twice"
    assert found[8] == "missing key 'audio'"


def test_a_long_list_of_faults_is_cut_and_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", *[{**GOOD, "id": str(n), "offset": None} for n in range(50)])
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert f"{path}: 50 fault(s)" in message
    assert message.count("offset must be") == MAX_LISTED_FAULTS
    assert message.endswith(f"... and {50 - MAX_LISTED_FAULTS} more")


def test_line_separators_inside_text_and_crlf_do_not_split_lines(tmp_path: Path) -> None:
    line = json.dumps(GOOD | {"target_text": "a\u2028b\x85c"}, ensure_ascii=False)
    (tmp_path / "m.jsonl").write_bytes(f"{line}\r\n".encode())
    assert read_manifest(tmp_path / "m.jsonl")[0].target_text == "a\u2028b\x85c"


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such manifest"):
        read_manifest(tmp_path / "nowhere.jsonl")


def test_the_writer_refuses_what_the_reader_would_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    good = Utterance("a", "/a.wav", "bem", "eng", "x")
    write_manifest(path, [good])
    with pytest.raises(ManifestError, match="its id is on line 1 already"):
        write_manifest(path, [good, good])
    assert read_manifest(path) == [good]


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    """Windows writes one first; a manifest that was joined of two has another within."""
    lines = [mark + json.dumps(GOOD | {"id": name}) for name, mark in {"a": "\ufeff", "b": "", "c": "\ufeff"}.items()]
    (tmp_path / "m.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert [row.id for row in read_manifest(tmp_path / "m.jsonl")] == ["a", "b", "c"]
