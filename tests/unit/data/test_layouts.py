from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gdps_ds.data.corpora import LAYOUTS, PAIR_LAYOUTS, read_corpus
from gdps_ds.data.corpora.iwslt import EXCLUDED
from gdps_ds.data.corpora.records import PLACEHOLDER
from gdps_ds.data.manifest import DataError, Unusable, Utterance, read_manifest, write_manifest
from gdps_ds.data.preparation import prepare
from tests.unit.data import fixtures


def texts(found: list[Utterance]) -> list[tuple[str | None, str | None]]:
    return [(utterance.source_text, utterance.target_text) for utterance in found]


def kept(found: list[Utterance], **options: bool) -> tuple[list[str], dict[str, int]]:
    """Ids that prepare keeps, and the reasons of the others."""
    usable, report = prepare(found, languages=None, min_seconds=0.1, max_seconds=30, **options)
    reasons = {reason: count for part in report.languages.values() for reason, count in part.skipped.items()}
    assert len(usable) + sum(reasons.values()) == len(found)
    return [utterance.id for utterance in usable], reasons


def test_tunisian_as_ldc_distributes_it(tmp_path: Path) -> None:
    found = list(read_corpus("iwslt-aeb", fixtures.aeb(tmp_path), "dev"))
    call = "aeb-dev-20170601_110003_13355"
    assert [utterance.id.removeprefix(call) for utterance in found] == [
        "_A-0000500-0001750",
        "_A-0002000-0002500",
        "_A-0002000-0003000",
        "_A-0003000-0003000",
        "_A-0005000-0006000",
        "_B-0001000-0002000",
    ]
    assert texts(found)[:5] == [("أهلا", "Hello."), ("لاباس", ""), ("O/merci", "thanks"), ("آه", "uh"), ("بس", None)]
    assert found[0].audio == str(tmp_path / "data/audio/ta/20170601_110003_13355_A.sph")
    assert (found[0].offset, found[0].duration) == (0.5, 1.25)
    assert isinstance(found[5], Unusable)
    ids, reasons = kept(found)
    assert ids == [f"{call}_A-0000500-0001750", f"{call}_A-0002000-0003000"]
    assert reasons == {"empty text": 2, "zero-length segment": 1, EXCLUDED: 1}


def test_tunisian_repeated_segments_are_all_told_of(tmp_path: Path) -> None:
    root = fixtures.aeb(tmp_path)
    row = "0.500|1.750|13355|{}"
    for kind in ("transcripts", "translations"):
        fixtures.write(root / f"data/{kind}/ta/20170601_110003_13355_A.tsv", fixtures.tsv(row.format("x"), row.format("y")))
    found = list(read_corpus("iwslt-aeb", root, "dev"))
    assert texts(found)[:2] == [("x", "x"), ("y", "y")]
    assert kept(found)[1] == {"duplicate id": 1, EXCLUDED: 1}


def test_tunisian_as_the_shared_task_segments_it(tmp_path: Path) -> None:
    root = fixtures.aeb_stm(tmp_path)
    found = list(read_corpus("iwslt-aeb-stm", root, "dev"))
    assert texts(found) == [("أهلا", "hello"), ("", "")]
    assert found[0].id == "aeb-dev-20170601_110003_13355_A-0000500-0001750"
    assert kept(found) == ([found[0].id], {"empty text": 1})
    [blind] = read_corpus("iwslt-aeb-stm", root, "test2")
    assert (blind.target_text, blind.duration) == (None, 1.25)
    assert kept([blind], require_text=False) == ([blind.id], {})


@pytest.mark.parametrize(
    ("layout", "pair", "suffix", "prefix", "end"),
    [
        ("iwslt-gle", ("gle", "eng"), "eng", "wav/", "\r\n"),
        ("iwslt-mr-hi", ("mar", "hin"), "hi", "", "\n"),
        ("iwslt-bho-hi", ("bho", "hin"), "hi", "wav/", "\n"),
    ],
)
def test_stamped_corpora(tmp_path: Path, layout: str, pair: tuple[str, str], suffix: str, prefix: str, end: str) -> None:
    root = fixtures.stamped(tmp_path, suffix, prefix, end)
    found = list(read_corpus(layout, root, "train"))
    assert {(utterance.source_lang, utterance.target_lang) for utterance in found} == {pair}
    assert [utterance.target_text for utterance in found] == ["One.", "Two.", "", "One."]
    assert found[1].audio == str(root / "train/wav/z0001_000.wav")
    assert (found[1].offset, found[1].duration) == (1.5, 2.25)
    ids, reasons = kept(found)
    assert ids == [f"{layout}-train-z0001_000-0000000-0001500", f"{layout}-train-z0001_000-0001500-0003750"]
    assert reasons == {"empty text": 1, "duplicate id": 1}
    [unlabelled] = read_corpus(layout, root, "test-2025")
    assert unlabelled.target_text is None
    assert kept([unlabelled], require_text=False)[0] == [unlabelled.id]


def test_mustc_cuts_talks(tmp_path: Path) -> None:
    root = fixtures.mustc(tmp_path)
    found = list(read_corpus("mustc:eng-deu", root, "train"))
    assert texts(found) == [("Thank you.", "Danke."), ("One two", "Eins zwei")]
    assert found[0] == Utterance(
        "mustc-eng-deu-train-ted_1-0000250-0001750",
        str(root / "data/train/wav/ted_1.wav"),
        "eng",
        "deu",
        "Danke.",
        "Thank you.",
        offset=0.25,
        duration=1.5,
    )
    assert len(kept(found)[0]) == 2
    [unlabelled] = read_corpus("mustc:eng-deu", root, "tst-COMMON")
    assert unlabelled.target_text is None


def test_quechua_is_like_mustc(tmp_path: Path) -> None:
    root = fixtures.mustc(tmp_path, "que_spa_clean", "que", "spa")
    fixtures.write(root / "que_spa_clean/train/txt/train.spa.tc", "true\ncased\n")
    found = list(read_corpus("iwslt-que-spa", root, "train"))
    assert texts(found) == [("Thank you.", "Danke."), ("One two", "Eins zwei")]
    assert found[0].id.startswith("iwslt-que-spa-train-ted_1-")
    assert (found[0].source_lang, found[0].target_lang) == ("que", "spa")


def test_bigc_finds_audio_whatever_its_suffix(tmp_path: Path) -> None:
    found = list(read_corpus("bigc", fixtures.bigc(tmp_path), "train"))
    assert [Path(utterance.audio).name for utterance in found[:4]] == ["1_a.wav", "2_b.wav.wav", "3_c.wav", "4_d.wav"]
    assert texts(found)[:3] == [("umo", "one"), ("babili", "two men"), (None, "three")]
    assert found[-1].target_text == "raw feed"
    ids, reasons = kept(found)
    assert ids == ["bigc-train-1_a", "bigc-train-2_b", "bigc-train-3_c"]
    assert reasons == {"missing file": 2, PLACEHOLDER: 2, "empty text": 1}


def test_estonian_quotes_do_not_merge_rows(tmp_path: Path) -> None:
    found = list(read_corpus("taltech-est", fixtures.taltech(tmp_path), "train"))
    assert texts(found) == [('"tere', '"Hello'), ('ta ütles "jah"', 'he said "yes"')]
    assert len(kept(found)[0]) == 2


def test_estonian_rows_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first utterance is there before the second row is read."""
    from gdps_ds.data.corpora import files

    read: list[int] = []
    original = files.lines

    def counting(path: Path) -> Iterator[tuple[int, object]]:
        for number, line in original(path):
            read.append(number)
            yield number, line

    monkeypatch.setattr(files, "lines", counting)
    next(read_corpus("taltech-est", fixtures.taltech(tmp_path), "train"))
    assert read == [1, 2]


def test_covost_decodes_mp3(tmp_path: Path) -> None:
    found = list(read_corpus("covost2:est-eng", fixtures.covost2(tmp_path), "train"))
    assert texts(found) == [("Tere", 'Hello "you"'), ("Jah", "Yes")]
    usable, report = prepare(found, languages=["est"], min_seconds=0.1, max_seconds=30)
    assert [utterance.id for utterance in usable] == [
        "covost2-est-eng-train-common_voice_et_1",
        "covost2-est-eng-train-common_voice_et_2",
    ]
    assert dict(report.of("est").sample_rates) == {32000: 1, 48000: 1}
    assert all(0.9 < (utterance.duration or 0) < 1.2 for utterance in usable)


def test_covost_as_it_is_distributed(tmp_path: Path) -> None:
    root = fixtures.covost2_distributed(tmp_path)
    found = list(read_corpus("covost2:est-eng", root, "train"))
    assert texts(found) == [("Tere", "Hello"), (None, "Yes"), (None, "withdrawn"), (None, None)]
    prefix = "covost2-est-eng-train-"
    ids, reasons = kept(found)
    assert ids == [f"{prefix}common_voice_et_1", f"{prefix}common_voice_et_2"]
    assert reasons == {"missing file": 1, "wrong number of columns": 1}
    (root / "validated.tsv").unlink()
    assert texts(list(read_corpus("covost2:est-eng", root, "dev")))[0] == (None, "other")
    fixtures.write(root / "covost_v2.et_en.tsv", fixtures.tsv("path|translation|split", "a.mp3|Hello|train"))
    with pytest.raises(DataError, match=r"covost_v2\.et_en\.tsv: no split 'test'; splits there: train$"):
        list(read_corpus("covost2:est-eng", root, "test"))


def test_gmu_manifests(tmp_path: Path) -> None:
    root = fixtures.gmu(tmp_path)
    found = list(read_corpus("gmu:bem-eng", root, "train"))
    assert texts(found) == [("umo", '"One'), ("babili", "Two")]
    assert found[1].audio == str(root / "y/1.wav")
    assert len(set(kept(found)[0])) == 2
    [unlabelled] = read_corpus("gmu:bem-eng", root, "test")
    assert (unlabelled.source_text, unlabelled.target_text) == (None, None)


def test_seamless_manifests_name_their_languages(tmp_path: Path) -> None:
    root = fixtures.seamless(tmp_path)
    found = list(read_corpus("seamless", root, "train"))
    assert texts(found) == [("tere", "hello"), ("tere", None)]
    assert [utterance.id for utterance in found] == ["seamless-est-eng-train-7-a", "seamless-est-eng-train-7-b"]
    assert {utterance.audio for utterance in found} == {str(root / "a.wav"), str(root / "b.wav")}


def test_what_a_layout_yields_becomes_a_manifest(tmp_path: Path) -> None:
    found = list(read_corpus("iwslt-gle", fixtures.stamped(tmp_path / "gle"), "train"))
    usable, _ = prepare(found, languages=["gle"], min_seconds=0.1, max_seconds=30)
    write_manifest(tmp_path / "out/train.jsonl", usable)
    assert read_manifest(tmp_path / "out/train.jsonl") == usable


def test_languages_are_named_where_and_only_where_they_can_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"corpus layout 'mustc' must name its languages in ISO 639-3, as in 'mustc:eng-deu'"):
        read_corpus("mustc", tmp_path, "train")
    with pytest.raises(DataError, match="'covost2:et-en' must name its languages in ISO 639-3"):
        read_corpus("covost2:et-en", tmp_path, "train")
    with pytest.raises(DataError, match="corpus layout 'bigc' takes no languages, found 'bigc:bem-eng'"):
        read_corpus("bigc:bem-eng", tmp_path, "train")
    assert LAYOUTS.keys().isdisjoint(PAIR_LAYOUTS)
