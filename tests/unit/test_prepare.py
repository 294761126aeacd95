"""What launchers/prepare.py leaves on disk, and what it tells a user to do with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gdps_ds.config import CorpusConfig
from gdps_ds.data.corpora import read_corpus
from gdps_ds.data.manifest import ManifestError, Utterance, read_manifest, write_manifest
from launchers import prepare
from tests.unit.data.fixtures import tone


def test_the_manifest_of_another_corpus_is_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        audio = str(tone(tmp_path / name / "a.wav"))
        write_manifest(tmp_path / name / "train.jsonl", [Utterance(name, audio, "bem", "eng", name)])
    out = tmp_path / "out" / "train.jsonl"

    def run(name: str, *options: str) -> int:
        command = ["--corpus", "manifest", "--root", str(tmp_path / name), "--split", "train", "--out", str(out.parent)]
        return prepare.main([*command, *options])

    assert run("one") == 0
    first = out.read_bytes()
    assert run("two") == 2
    assert f"{out} holds corpus 'manifest' of {tmp_path / 'one'}; choose another --out" in capsys.readouterr().err
    assert out.read_bytes() == first
    assert run("one") == 0, "the same corpus is prepared again"
    out.write_bytes(first.replace(b"}", b" }", 1))
    assert run("one") == 2
    assert f"of {tmp_path / 'one'}, and was edited since; choose another --out" in capsys.readouterr().err
    assert run("two", "--replace") == 0
    assert [row.id for row in read_manifest(out)] == ["two"]
    (out.parent / "train.report.json").unlink()
    assert run("two") == 2
    assert "holds utterances that are not known to be of this corpus" in capsys.readouterr().err


@pytest.mark.parametrize("link", ["the root", "a folder", "a file", "nothing"])
def test_the_printed_corpus_can_be_trained_with(tmp_path: Path, capsys: pytest.CaptureFixture[str], link: str) -> None:
    """Wherever links lead: what prepare says is what an experiment takes."""
    real, root = tmp_path / "disk 2" / "real", tmp_path / "corpora" / "mboshi"
    audio = tone(real / "train" / "a.wav")
    (real / "train" / "a.fr").write_text("un")
    root.parent.mkdir()
    if link == "the root":
        root.symlink_to(real)
    elif link == "a folder":
        root.mkdir()
        (root / "train").symlink_to(real / "train")
    elif link == "a file":
        (root / "train").mkdir(parents=True)
        (root / "train" / "a.wav").symlink_to(audio)
        (root / "train" / "a.fr").write_text("un")
    else:
        root = real
    options = ["--corpus", "mboshi-french", "--root", str(root), "--split", "train", "--out", str(tmp_path / "out")]
    assert prepare.main(options) == 0
    printed = capsys.readouterr().out.splitlines()[-1].removeprefix("use it as ")
    entry = CorpusConfig.model_validate(yaml.safe_load(printed))
    [found] = read_corpus(entry.layout, entry.root, "train", entry.audio_roots)
    assert found.target_text == "un" and Path(found.audio).samefile(audio)
    for refused in [[], [str(root)]] if link in ("a folder", "a file") else [[]]:
        with pytest.raises(ManifestError, match="lies outside of"):
            list(read_corpus(entry.layout, entry.root, "train", refused))


def test_a_prepared_corpus_that_holds_its_audio_needs_no_other_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tone(tmp_path / "dev" / "a.wav")
    (tmp_path / "dev" / "a.fr").write_text("un")
    assert prepare.main(["--corpus", "mboshi-french", "--root", str(tmp_path), "--split", "dev", "--out", str(tmp_path)]) == 0
    assert f"use it as {{layout: manifest, root: {tmp_path}}}\n" in capsys.readouterr().out
