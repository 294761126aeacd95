"""Corpora as people have them on disk: unpacked into folders of their own, with names in other case or another normal form."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gdps_ds.data.corpora import read_corpus
from gdps_ds.data.manifest import DataError, Utterance, write_manifest
from tests.unit.data import fixtures
from tests.unit.data.fixtures import tone, tsv, write


def mboshi(root: Path) -> Path:
    """As its repository comes: the corpus in a folder of its own, forced alignments beside it."""
    for split in ("train", "dev", "all"):
        tone(root / f"full_corpus_newsplit/{split}/a.wav")
        write(root / f"full_corpus_newsplit/{split}/a.fr", "un")
        write(root / f"full_corpus_newsplit/{split}/a.mb", "mo")
    write(root / "forced_alignments_supervised_spkr/train/a.wrd", "0 1 mo")
    return root


def griko(root: Path) -> Path:
    """``all`` has other names of folders than the splits, and words without spaces beside the transcripts."""
    for split, wav, gr, it in (("train", "wav", "gr", "it"), ("all", "wavs", "transcriptions", "translations")):
        tone(root / split / wav / "1.wav")
        write(root / split / gr / "1.words", "ena")
        write(root / split / gr / "1.words.unseg", "e n a")
        write(root / split / it / "1.words", "uno")
    return root


def aeb(root: Path) -> Path:
    """The lists of the shared task lie in the root that is given, and LDC's folder below it."""
    fixtures.aeb(root)
    for name in ("dev.file_id.txt", "exclude-utterance.txt"):
        (root / name).rename(root.parents[1] / name)
    return root


CORPORA: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "mboshi-french": ("dev", mboshi),
    "griko-italian": ("all", griko),
    "iwslt-aeb": ("dev", aeb),
    "iwslt-aeb-stm": ("dev", fixtures.aeb_stm),
    "iwslt-gle": ("train", fixtures.stamped),
    "iwslt-que-spa": ("train", lambda root: fixtures.mustc(root, "que_spa_constrained", "que", "spa")),
    "mustc:eng-deu": ("train", fixtures.mustc),
    "bigc": ("train", fixtures.bigc),
    "taltech-est": ("train", fixtures.taltech),
    "covost2:est-eng": ("train", fixtures.covost2_distributed),
    "gmu:bem-eng": ("train", fixtures.gmu),
    "seamless": ("train", fixtures.seamless),
}


@pytest.mark.parametrize("layout", CORPORA)
def test_the_root_may_be_a_folder_above_the_corpus(tmp_path: Path, layout: str) -> None:
    split, make = CORPORA[layout]
    inner = make(tmp_path / "download" / "corpus-main")
    write(tmp_path / ".git" / "HEAD", "ref")
    lists = tmp_path if layout == "iwslt-aeb" else inner
    found = [list(read_corpus(layout, root, split)) for root in (lists, tmp_path)]
    assert found[0] == found[1]
    assert any(Path(utterance.audio).is_file() for utterance in found[0])


def test_the_folder_of_quechua_is_named_otherwise_each_year(tmp_path: Path) -> None:
    root = fixtures.mustc(tmp_path, "que_spa_constrained", "que", "spa")
    write(root / "additional_mt_text/opus_jw_300/train.es", "no speech")
    assert [utterance.target_text for utterance in read_corpus("iwslt-que-spa", root, "train")] == ["Danke.", "Eins zwei"]
    with pytest.raises(DataError, match=rf"{root}/que_spa_constrained: no split 'dev'; splits there: train, tst-COMMON$"):
        next(read_corpus("iwslt-que-spa", root, "dev"))


def test_mboshi_from_the_root_of_its_repository(tmp_path: Path) -> None:
    [found] = read_corpus("mboshi-french", mboshi(tmp_path), "train")
    assert (found.id, found.source_text, found.target_text) == ("mboshi-train-a", "mo", "un")
    assert found.audio == str(tmp_path / "full_corpus_newsplit/train/a.wav")
    with pytest.raises(DataError, match=r"full_corpus_newsplit: no split 'test'; splits there: all, dev, train$"):
        next(read_corpus("mboshi-french", tmp_path, "test"))


def test_mboshi_is_translated_into_each_language_that_lies_beside_it(tmp_path: Path) -> None:
    root = mboshi(tmp_path) / "full_corpus_newsplit"
    write(root / "train/a.en", "one")
    write(root / "train/a.spa", "uno")
    found = {target: next(read_corpus(f"mboshi:mdw-{target}", root, "train")) for target in ("fra", "eng", "spa")}
    assert {target: (each.target_lang, each.target_text) for target, each in found.items()} == {
        "fra": ("fra", "un"),
        "eng": ("eng", "one"),
        "spa": ("spa", "uno"),
    }
    assert {each.source_text for each in found.values()} == {"mo"}
    assert len({each.id for each in found.values()}) == 3, "one run may read all of them"
    assert found["fra"] == next(read_corpus("mboshi-french", root, "train"))


def test_griko_as_a_whole(tmp_path: Path) -> None:
    griko(tmp_path)
    [whole], [train] = (list(read_corpus("griko-italian", tmp_path, split)) for split in ("all", "train"))
    assert (whole.id, whole.audio) == ("griko-all-1", str(tmp_path / "all/wavs/1.wav"))
    assert replace(whole, id="", audio="") == replace(train, id="", audio="")


def test_a_split_that_no_layout_can_read_is_not_listed(tmp_path: Path) -> None:
    write(griko(tmp_path) / "docs/readme.txt", "x")
    with pytest.raises(DataError, match=r"no split 'test'; splits there: all, train$"):
        next(read_corpus("griko-italian", tmp_path, "test"))


def test_a_split_as_the_root_is_told_of(tmp_path: Path) -> None:
    root = mboshi(tmp_path) / "full_corpus_newsplit" / "train"
    with pytest.raises(DataError, match=r"no split 'train'; splits there: none; the root is the folder above it$"):
        next(read_corpus("mboshi-french", root, "train"))


def test_several_corpora_below_one_root_are_told_apart_or_refused(tmp_path: Path) -> None:
    for name, target in (("en-de", "de"), ("en-fr", "fr")):
        fixtures.mustc(tmp_path / name, "data", "en", target)
    assert next(read_corpus("mustc:eng-fra", tmp_path, "train")).audio.startswith(str(tmp_path / "en-fr"))
    (tmp_path / "en-de").rename(tmp_path / "new")
    (tmp_path / "en-fr").rename(tmp_path / "old")
    with pytest.raises(DataError, match=rf"{tmp_path}: the corpus may be any of .*/new/data, .*/old/data; give one of them"):
        next(read_corpus("mustc:eng-fra", tmp_path, "train"))


def test_names_in_other_case(tmp_path: Path) -> None:
    tone(tmp_path / "Train/WAV/1.WAV")
    write(tmp_path / "Train/It/1.WORDS", "uno")
    write(tmp_path / "Train/gr/1.words", "ena")
    [found] = read_corpus("griko-italian", tmp_path, "train")
    assert (found.target_text, found.source_text) == ("uno", "ena")
    assert found.audio == str(tmp_path / "Train/WAV/1.WAV")
    tone(tmp_path / "audio/x.FLAC")
    write(tmp_path / "Dev.tsv", tsv("audio|Estonian|English", "x.flac|üks|one"))
    [found] = read_corpus("taltech-est", tmp_path, "dev")
    assert found.audio == str(tmp_path / "audio/x.FLAC")


def test_the_case_of_a_name_tells_files_apart(tmp_path: Path) -> None:
    """A file that is missing is not replaced by another speaker's."""
    tone(tmp_path / "audio/a.wav")
    write(tmp_path / "dev.tsv", tsv("audio_path|tgt_text", "audio/A.wav|one"))
    [found] = read_corpus("gmu:bem-eng", tmp_path, "dev")
    assert found.audio == str(tmp_path / "audio/A.wav")


@pytest.mark.parametrize(("index", "disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_another_normal_form(tmp_path: Path, index: str, disk: str) -> None:
    there = tone(tmp_path / "audio" / f"{unicodedata.normalize(disk, 'öö')}.wav")
    write(tmp_path / "dev.tsv", tsv("audio_path|tgt_text", f"audio/{unicodedata.normalize(index, 'öö')}.wav|night"))
    [found] = read_corpus("gmu:est-eng", tmp_path, "dev")
    assert found.audio == str(there)
    write(tmp_path / "dev" / f"{unicodedata.normalize(index, 'né')}.fr", "né")
    tone(tmp_path / "dev" / f"{unicodedata.normalize(disk, 'né')}.wav")
    [found] = read_corpus("mboshi-french", tmp_path, "dev")
    assert found.target_text == "né"
    assert Path(found.audio).is_file()


def test_references_of_a_test_set_of_a_year(tmp_path: Path) -> None:
    """``test-2023`` has them in ``test.eng``, which would be no references at all under the name of the split."""
    tone(tmp_path / "test-2023/wav/a.wav")
    write(tmp_path / "test-2023/stamped.tsv", tsv("wav/a.wav|0|1"))
    write(tmp_path / "test-2023/txt/test.eng", "One.\n")
    [found] = read_corpus("iwslt-gle", tmp_path, "test-2023")
    assert found.target_text == "One."


SPLITS: dict[str, Callable[[Path, str], object]] = {
    "manifest": lambda root, split: write_manifest(
        root / f"{split}.jsonl", [Utterance("a", str(root / "a.wav"), "bem", "eng", "x")]
    ),
    "mboshi-french": lambda root, split: (write(root / split / "a.fr", "un"), tone(root / split / "a.wav")),
    "taltech-est": lambda root, split: write(root / f"{split}.tsv", tsv("audio|Estonian|English", "x.flac|üks|one")),
}


@pytest.mark.parametrize("layout", SPLITS)
@pytest.mark.parametrize(("inner", "other"), [("", "old"), ("corpus", "corpus/old"), ("corpus", "backup")])
def test_a_split_that_is_missing_is_not_taken_from_a_folder_beside_or_below(
    tmp_path: Path, layout: str, inner: str, other: str
) -> None:
    SPLITS[layout](tmp_path / inner, "train")
    SPLITS[layout](tmp_path / other, "dev")
    with pytest.raises(DataError, match=r"no split 'dev'; splits there: |may be any of .*; give one of them as the root"):
        list(read_corpus(layout, tmp_path, "dev"))


def test_a_manifest_is_not_looked_for_below_its_root(tmp_path: Path) -> None:
    SPLITS["manifest"](tmp_path / "other", "dev")
    with pytest.raises(DataError, match="no split 'dev'; splits there: none"):
        list(read_corpus("manifest", tmp_path, "dev"))


def test_folders_and_names_may_be_in_another_normal_form_with_another_suffix(tmp_path: Path) -> None:
    there = tone(tmp_path / unicodedata.normalize("NFD", "né") / f"{unicodedata.normalize('NFD', 'ö')}.WAV")
    write(tmp_path / "dev.tsv", tsv("audio_path|tgt_text", unicodedata.normalize("NFC", "né/ö.wav|night")))
    [found] = read_corpus("gmu:est-eng", tmp_path, "dev")
    assert found.audio == str(there)
