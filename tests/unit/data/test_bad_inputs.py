"""Every kind of broken row, file and header that a corpus may come with, and what a user is told of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gdps_ds.data import audio, preparation
from gdps_ds.data.corpora import files, iwslt, read_corpus, records
from gdps_ds.data.manifest import DataError, Unusable, write_manifest
from gdps_ds.data.preparation import prepare
from tests.unit.data import fixtures
from tests.unit.data.fixtures import json_rows, tone, tsv, write

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
CALL = "20170601_110003_13355_A"
STM = f"{CALL}.sph|1|13355|0.5|1.75"


def aeb(root: Path, row: str | bytes) -> str:
    """A translated segment of Tunisian in the place of the others."""
    fixtures.aeb(root)
    (root / f"data/transcripts/ta/{CALL}.tsv").unlink()
    write(root / f"data/translations/ta/{CALL}.tsv", row)
    write(root / "dev.file_id.txt", f"{CALL}\n")
    return "iwslt-aeb"


def stm(root: Path, transcript: str, translation: str) -> str:
    fixtures.aeb_stm(root)
    write(root / "asr-aeb.norm.dev.stm", tsv(transcript))
    write(root / "st-aeb2eng.norm.dev.stm", tsv(translation))
    return "iwslt-aeb-stm"


def gle(root: Path, row: str | bytes, text: str | bytes = "One.\n") -> str:
    tone(root / "dev/wav/a.wav", 1.0)
    write(root / "dev/stamped.tsv", row)
    write(root / "dev/txt/dev.eng", text)
    return "iwslt-gle"


def mustc(root: Path, entry: str, text: str | bytes = "One.\n") -> str:
    tone(root / "dev/wav/a.wav", 1.0)
    write(root / "dev/txt/dev.yaml", entry)
    write(root / "dev/txt/dev.deu", text)
    return "mustc:eng-deu"


def bigc(root: Path, rows: str | bytes) -> str:
    tone(root / "audio/a.wav")
    write(root / "dev.jsonl", rows)
    return "bigc"


def taltech(root: Path, rows: str | bytes) -> str:
    tone(root / "audio/a.flac")
    write(root / "dev.tsv", rows)
    return "taltech-est"


def gmu(root: Path, rows: str | bytes) -> str:
    tone(root / "a.wav")
    write(root / "dev.tsv", rows)
    return "gmu:bem-eng"


def clip(root: Path, content: bytes) -> str:
    write(root / "clips/a.mp3", content)
    write(root / "dev.tsv", tsv("path|sentence|translation|client_id", "a.mp3|x|One.|c"))
    return "covost2:fra-eng"


def sound(root: Path, make: Callable[[Path], object]) -> str:
    """One utterance of Mboshi with the audio that ``make`` writes."""
    (root / "dev").mkdir()
    write(root / "dev/a.fr", "un")
    make(root / "dev/a.wav")
    return "mboshi-french"


def samples(values: object, subtype: str = "PCM_16") -> Callable[[Path], None]:
    return lambda path: soundfile.write(path, np.asarray(values, dtype=np.float32), 16000, subtype=subtype)


def seamless(root: Path, source: object, target: object = None) -> str:
    tone(root / "a.wav")
    write(root / "dev_manifest.json", json_rows({"source": source, "target": target or {"lang": "eng", "text": "One."}}))
    return "seamless"


GOOD = {"id": 1, "lang": "est", "text": "üks", "audio_local_path": "a.wav"}
BEMBA = {"audio_id": "a.wav", "bem_transcription": "umo", "en_translation": "one"}
TALTECH = "audio|Estonian|English"

ROWS: dict[str, tuple[Callable[[Path], str], str]] = {
    "aeb: two columns": (lambda root: aeb(root, tsv("0.5|1.0")), files.WRONG_COLUMNS),
    "aeb: a tab in the text": (lambda root: aeb(root, tsv("0.5|1.0|13355|a|b")), files.WRONG_COLUMNS),
    "aeb: blank line": (lambda root: aeb(root, "\n"), files.WRONG_COLUMNS),
    "aeb: start is a word": (lambda root: aeb(root, tsv("start|1.0|13355|x")), files.BAD_TIME),
    "aeb: decimal comma": (lambda root: aeb(root, tsv("0,5|1.0|13355|x")), files.BAD_TIME),
    "aeb: end is nan": (lambda root: aeb(root, tsv("0.5|nan|13355|x")), files.BAD_TIME),
    "aeb: negative start": (lambda root: aeb(root, tsv("-0.5|1.0|13355|x")), files.BAD_TIME),
    "aeb: ends before it starts": (lambda root: aeb(root, tsv("1.5|1.0|13355|x")), files.BACKWARDS),
    "aeb: zero length": (lambda root: aeb(root, tsv("1.0|1.0|13355|x")), audio.ZERO_LENGTH),
    "aeb: after the end of the call": (lambda root: aeb(root, tsv("9.0|9.5|13355|x")), audio.BEYOND_END),
    "aeb: half a character": (lambda root: aeb(root, b"0.5\t1.0\t13355\t\xd8\n"), files.NOT_UTF8),
    "aeb: no text": (lambda root: aeb(root, tsv("0.5|1.0|13355")), preparation.NO_TEXT),
    "aeb: excluded": (
        lambda root: (aeb(root, tsv("0.5|1.0|13355|x")), write(root / "exclude-utterance.txt", f"{CALL} 0.5 1.0\n"))[0],
        iwslt.EXCLUDED,
    ),
    "aeb: listed file without tables": (
        lambda root: (aeb(root, "x"), (root / f"data/translations/ta/{CALL}.tsv").unlink())[0],
        iwslt.NO_TABLES,
    ),
    "stm: too few columns": (lambda root: stm(root, f"{STM}|<aeb>|x", f"{STM}"), files.WRONG_COLUMNS),
    "stm: no file": (lambda root: stm(root, "|1|13355|0.5|1.75|<aeb>|x", f"{STM}|<eng>|x"), files.NO_AUDIO),
    "stm: the lines are of two segments": (
        lambda root: stm(root, f"{STM}|<aeb>|x", f"{CALL}.sph|1|13355|2.0|3.0|<eng>|x"),
        iwslt.OTHER_SEGMENT,
    ),
    "gle: two columns": (lambda root: gle(root, tsv("wav/a.wav|0")), files.WRONG_COLUMNS),
    "gle: no file": (lambda root: gle(root, tsv("wav/|0|1")), files.NO_AUDIO),
    "gle: duration is a word": (lambda root: gle(root, tsv("wav/a.wav|0|one")), files.BAD_TIME),
    "gle: missing audio": (lambda root: gle(root, tsv("wav/b.wav|0|1")), audio.MISSING),
    "gle: clip of a fiftieth of a second": (lambda root: gle(root, tsv("wav/a.wav|0|0.02")), preparation.TOO_SHORT),
    "gle: translation is not UTF-8": (lambda root: gle(root, tsv("wav/a.wav|0|1"), b"\xe9t\xe9\n"), files.NOT_UTF8),
    "mustc: entry is no mapping": (lambda root: mustc(root, "- a.wav\n"), files.MISSING_KEY),
    "mustc: no duration": (lambda root: mustc(root, "- {offset: 0, wav: a.wav}\n"), files.MISSING_KEY),
    "mustc: no wav": (lambda root: mustc(root, "- {offset: 0, duration: 1}\n"), files.NO_AUDIO),
    "mustc: offset is null": (lambda root: mustc(root, "- {offset: ~, duration: 1, wav: a.wav}\n"), files.BAD_TIME),
    "mustc: infinite duration": (lambda root: mustc(root, "- {offset: 0, duration: .inf, wav: a.wav}\n"), files.BAD_TIME),
    "mustc: longer than max_seconds": (
        lambda root: (mustc(root, "- {offset: 0, duration: 9, wav: a.wav}\n"), tone(root / "dev/wav/a.wav", 9.0))[0],
        preparation.TOO_LONG,
    ),
    "bigc: cut off": (lambda root: bigc(root, '{"audio_id": "a.wav", "bem_tran'), files.NOT_JSON),
    "bigc: a list": (lambda root: bigc(root, "[1]\n"), files.NOT_JSON),
    "bigc: no audio": (lambda root: bigc(root, json_rows(BEMBA | {"audio_id": None})), files.NO_AUDIO),
    "bigc: nothing but a suffix": (lambda root: bigc(root, json_rows(BEMBA | {"audio_id": ".wav"})), files.NO_AUDIO),
    "bigc: text is a number": (lambda root: bigc(root, json_rows(BEMBA | {"en_translation": 7})), files.MISSING_KEY),
    "bigc: placeholder": (lambda root: bigc(root, json_rows(BEMBA | {"en_translation": "NOT FOUND"})), records.PLACEHOLDER),
    "bigc: not UTF-8": (lambda root: bigc(root, b'{"audio_id": "\xff"}\n'), files.NOT_UTF8),
    "seamless: source is null": (lambda root: seamless(root, None), files.MISSING_KEY),
    "seamless: target is text": (lambda root: seamless(root, GOOD, "One."), files.MISSING_KEY),
    "seamless: no language": (lambda root: seamless(root, GOOD | {"lang": ""}), files.MISSING_KEY),
    "seamless: no audio": (lambda root: seamless(root, GOOD | {"audio_local_path": None}), files.NO_AUDIO),
    "seamless: no translation": (lambda root: seamless(root, GOOD, {"lang": "eng"}), preparation.NO_TEXT),
    "taltech: a cell too few": (lambda root: taltech(root, tsv(TALTECH, "a.flac|üks")), files.WRONG_COLUMNS),
    "taltech: a cell too many": (lambda root: taltech(root, tsv(TALTECH, "a.flac|üks|one|two")), files.WRONG_COLUMNS),
    "taltech: empty audio cell": (lambda root: taltech(root, tsv(TALTECH, "|üks|one")), files.NO_AUDIO),
    "taltech: English is missing": (lambda root: taltech(root, tsv("audio|Estonian", "a.flac|üks")), preparation.NO_TEXT),
    "gmu: a folder as audio": (lambda root: gmu(root, tsv("audio_path|tgt_text", ".|One.")), audio.MISSING),
    "covost: mp3 without a frame": (lambda root: clip(root, b"ID3\x04" + bytes(64)), audio.UNREADABLE),
    "covost: clip is a pointer": (lambda root: clip(root, LFS), audio.GIT_LFS),
    "covost: empty clip": (lambda root: clip(root, b""), audio.EMPTY),
    "audio: text": (lambda root: sound(root, lambda path: path.write_text("404 Not Found")), audio.UNREADABLE),
    "audio: header alone": (lambda root: sound(root, samples([])), audio.EMPTY),
    "audio: header cut off": (lambda root: sound(root, lambda path: path.write_bytes(b"RIFF\x24\x00")), audio.UNREADABLE),
    "audio: nan": (lambda root: sound(root, samples([0.0, np.nan] * 8000, "FLOAT")), audio.NOT_FINITE),
    "audio: too short for a frame": (lambda root: sound(root, samples(np.zeros(300))), preparation.TOO_SHORT),
    "audio: a folder": (lambda root: sound(root, lambda path: path.mkdir()), audio.MISSING),
    "audio: shorten": (
        lambda root: sound(
            root, lambda path: path.write_bytes(b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\n")
        ),
        audio.SHORTEN,
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_broken_row_is_counted_under_its_reason(tmp_path: Path, name: str) -> None:
    make, reason = ROWS[name]
    found = list(read_corpus(make(tmp_path), tmp_path, "dev"))
    usable, report = prepare(found, languages=None, min_seconds=0.1, max_seconds=5.0)
    assert usable == []
    assert {why: count for part in report.languages.values() for why, count in part.skipped.items()} == {reason: 1}


ENTRY = "- {offset: 0, duration: 1, wav: a.wav}\n"
FILES: dict[str, tuple[Callable[[Path], str], str]] = {
    "aeb: no list of files": (
        lambda root: (aeb(root, "x"), (root / "dev.file_id.txt").unlink())[0],
        r"dev\.file_id\.txt: no such file; copy the split's list",
    ),
    "aeb: table is a pointer": (
        lambda root: aeb(root, LFS),
        r"13355_A\.tsv: a Git-LFS pointer, .* fetch it with `git lfs pull`",
    ),
    "stm: no such split": (
        lambda root: (stm(root, STM, STM), (root / "asr-aeb.norm.dev.stm").rename(root / "asr-aeb.norm.valid.stm"))[0],
        "no split 'dev'; splits there: test2, valid$",
    ),
    "stm: a line more": (
        lambda root: (stm(root, STM, STM), write(root / "st-aeb2eng.norm.dev.stm", f"{STM}\n" * 2))[0],
        r"st-aeb2eng\.norm\.dev\.stm: 2 lines, but .*asr-aeb\.norm\.dev\.stm has 1 segments",
    ),
    "gle: no stamped.tsv": (
        lambda root: (gle(root, "x"), (root / "dev/stamped.tsv").unlink())[0],
        r"dev/stamped\.tsv: no such file",
    ),
    "gle: empty stamped.tsv": (lambda root: gle(root, ""), r"stamped\.tsv: empty"),
    "gle: stamped.tsv is a pointer": (lambda root: gle(root, LFS), r"stamped\.tsv: a Git-LFS pointer"),
    "gle: translations are a pointer": (lambda root: gle(root, tsv("wav/a.wav|0|1"), LFS), r"dev\.eng: a Git-LFS pointer"),
    "gle: a translation too few": (
        lambda root: gle(root, tsv("wav/a.wav|0|1") * 3),
        r"dev\.eng: 1 lines, but .* has 3 segments",
    ),
    "mustc: not YAML": (lambda root: mustc(root, "- {offset: 0"), r"dev\.yaml: not valid YAML"),
    "mustc: a mapping": (lambda root: mustc(root, "offset: 0\n"), r"dev\.yaml: must be a list of segments, found dict"),
    "mustc: YAML is a pointer": (lambda root: mustc(root, LFS.decode()), r"dev\.yaml: a Git-LFS pointer"),
    "mustc: a translation too many": (lambda root: mustc(root, ENTRY, "a\nb\n"), r"dev\.deu: 2 lines, but .* has 1 segments"),
    "mustc: no segments": (lambda root: mustc(root, "[]\n", "\n"), "holds no utterances"),
    "bigc: pointer": (lambda root: bigc(root, LFS), r"dev\.jsonl: a Git-LFS pointer"),
    "bigc: no such split": (
        lambda root: (bigc(root, "x"), (root / "dev.jsonl").rename(root / "valid.jsonl"))[0],
        "no split 'dev'; splits there: valid$",
    ),
    "bigc: nothing there": (
        lambda root: (bigc(root, "x"), (root / "dev.jsonl").unlink())[0],
        r"no split 'dev': there is no data/bem/splits/dev\.jsonl or dev\.jsonl",
    ),
    "taltech: pointer": (lambda root: taltech(root, LFS), r"dev\.tsv: a Git-LFS pointer"),
    "taltech: no header": (
        lambda root: taltech(root, tsv("a.flac|üks|one")),
        r"the header lacks audio, Estonian; it has a\.flac",
    ),
    "taltech: header alone": (
        lambda root: taltech(root, tsv(TALTECH)),
        "split 'dev' of corpus layout 'taltech-est' holds no utter",
    ),
    "taltech: a comma for the tab": (
        lambda root: taltech(root, "audio,Estonian,English\n"),
        "the header lacks audio, Estonian",
    ),
    "gmu: other names": (lambda root: gmu(root, tsv("path|text")), "the header lacks audio_path; it has path, text"),
    "gmu: header is not UTF-8": (lambda root: gmu(root, b"audio_path\t\xff\n"), "the header lacks audio_path; it has no text"),
    "gmu: a column twice": (
        lambda root: gmu(root, tsv("audio_path|tgt_text|tgt_text")),
        "the header names a column twice: audio_path, tgt_text, tgt_text",
    ),
    "seamless: empty": (
        lambda root: (seamless(root, GOOD), write(root / "dev_manifest.json", ""))[0],
        r"dev_manifest\.json: empty",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_named_with_its_fault(tmp_path: Path, name: str) -> None:
    make, message = FILES[name]
    layout = make(tmp_path)
    with pytest.raises(DataError, match=message):
        list(read_corpus(layout, tmp_path, "dev"))


def test_rows_beside_a_broken_one_are_kept(tmp_path: Path) -> None:
    rows = [json.dumps(BEMBA), '{"audio_id": "b.wav", "en', json.dumps(BEMBA | {"audio_id": "c"}), "", json.dumps(BEMBA)]
    found = list(read_corpus(bigc(tmp_path, "\n".join(rows) + "\n"), tmp_path, "dev"))
    assert [utterance.id for utterance in found] == [
        "bigc-dev-a",
        "bigc-dev-line-2",
        "bigc-dev-c",
        "bigc-dev-line-4",
        "bigc-dev-a",
    ]
    _, report = prepare(found, languages=["bem"], min_seconds=0.1, max_seconds=5.0)
    assert dict(report.of("bem").skipped) == {files.NOT_JSON: 2, audio.MISSING: 1, preparation.DUPLICATE: 1}
    assert report.of("bem").examples[files.NOT_JSON] == ["bigc-dev-line-2", "bigc-dev-line-4"]


def test_a_row_without_a_language_is_counted_too(tmp_path: Path) -> None:
    found = list(read_corpus(seamless(tmp_path, None), tmp_path, "dev"))
    _, report = prepare(found, languages=["est"], min_seconds=0.1, max_seconds=5.0)
    assert report.to_dict()["und"]["skipped"] == {files.MISSING_KEY: 1}


def test_broken_rows_never_reach_a_manifest(tmp_path: Path) -> None:
    row = Unusable("a", "/a.wav", "bem", "eng", "x", reason=files.NOT_JSON)
    with pytest.raises(DataError, match="unknown key 'reason'"):
        write_manifest(tmp_path / "dev.jsonl", [row])


def test_what_is_no_utterance_has_no_line_in_a_test_set(tmp_path: Path) -> None:
    """A blank line and a placeholder are none; a row that cannot be read is."""
    rows = [json.dumps(BEMBA), "", json.dumps(BEMBA | {"en_translation": "NOT FOUND"}), "{"]
    found = list(read_corpus(bigc(tmp_path, "\n".join(rows) + "\n"), tmp_path, "dev"))
    kept, report = prepare(found, languages=["bem"], min_seconds=0.1, max_seconds=5.0, training=False, require_text=False)
    assert [row.id for row in kept] == ["bigc-dev-a", "bigc-dev-line-4"]
    assert dict(report.of("bem").skipped) == {files.NOT_JSON: 1, "placeholder text": 1}
