"""What prepared data were made from, and what is seen of later changes."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from gdps_ds.data.corpora import read_corpus
from gdps_ds.data.manifest import Utterance
from gdps_ds.data.sources import Files, changes, noting, write_sources


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
    os.utime(folder / "b.wav", ns=(1, 1))
    (folder / "c.wav").touch()
    assert sorted(changes(record)) == [
        f"{folder} was changed",
        f"{folder / 'a.fr'} was changed",
        f"{folder / 'b.mb'} was removed",
        f"{folder / 'b.wav'} was changed",
    ]


def test_audio_that_is_named_in_the_other_normal_form_is_watched(tmp_path: Path) -> None:
    there, record = tmp_path / unicodedata.normalize("NFD", "señal.wav"), tmp_path / "train.sources.arrow"
    there.write_bytes(b"one")
    named, files = str(tmp_path / unicodedata.normalize("NFC", "señal.wav")), Files()
    list(noting(iter([Utterance("a", named, "bem", "eng", "x")]), files))
    write_sources(record, files)
    assert changes(record) == []
    there.write_bytes(b"other")
    assert changes(record) == [f"{there} was changed"]
