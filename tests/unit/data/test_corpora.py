from __future__ import annotations

from pathlib import Path

import pytest

from gdps_ds.data.corpora import read_corpus
from gdps_ds.data.manifest import DataError, Utterance, write_manifest

SHARED = Path(__file__).parents[4] / "shared" / "data"
needs_samples = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no corpus samples in {SHARED}")


def make(root: Path, **files: str) -> Path:
    """Files below ``root``: ``split__folder__name_wav`` stands for ``split/folder/name.wav``."""
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        path = root / f"{stem.replace('__', '/')}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
    return root


def test_mboshi_reads_text_of_any_line_end_and_sees_half_pairs(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        dev__b_wav="",
        dev__b_fr="\ufeffJ'ai  oublié\u00a0! \r\n",
        dev__b_mb="Ngá",
        dev__a_fr="sans audio\n",
        dev__c_wav="",
    )
    first, second, third = read_corpus("mboshi-french", root, "dev")
    assert first == Utterance("mboshi-dev-a", str(root / "dev/a.wav"), "mdw", "fra", "sans audio")
    assert second == Utterance("mboshi-dev-b", str(root / "dev/b.wav"), "mdw", "fra", "J'ai  oublié\u00a0!", "Ngá")
    assert (third.id, third.target_text) == ("mboshi-dev-c", None)


def test_griko_comes_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        train__wav__10_wav="",
        train__wav__9_wav="",
        train__it__9_words="nove\n",
        train__gr__9_words="ennèa\n",
        train__it__11_words="undici\r\n",
    )
    found = list(read_corpus("griko-italian", root, "train"))
    assert [utterance.id for utterance in found] == ["griko-train-9", "griko-train-10", "griko-train-11"]
    assert [utterance.target_text for utterance in found] == ["nove", None, "undici"]
    assert found[0] == Utterance("griko-train-9", str(root / "train/wav/9.wav"), "grk", "ita", "nove", source_text="ennèa")


def test_text_over_several_lines_becomes_one(tmp_path: Path) -> None:
    root = make(tmp_path, dev__a_fr="un\r\ndeux \n\n", dev__a_wav="")
    assert next(read_corpus("mboshi-french", root, "dev")).target_text == "un deux"


def test_manifests_are_a_layout(tmp_path: Path) -> None:
    utterances = [Utterance("a", str(tmp_path / "a.wav"), "bem", "eng", "x")]
    write_manifest(tmp_path / "dev.jsonl", utterances)
    assert list(read_corpus("manifest", tmp_path, "dev")) == utterances


def test_errors_name_the_root_and_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown corpus layout 'must-c'; known layouts: manifest, mboshi-french"):
        read_corpus("must-c", tmp_path, "dev")
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        read_corpus("mboshi-french", tmp_path / "nowhere", "dev")
    make(tmp_path, train__a_txt="", dev__a_txt="")
    with pytest.raises(DataError, match=rf"{tmp_path}: no split 'test'; splits there: dev, train$"):
        next(read_corpus("mboshi-french", tmp_path, "test"))
    with pytest.raises(DataError, match=r"no split 'dev'; splits there: none$"):
        next(read_corpus("manifest", tmp_path, "dev"))
    with pytest.raises(DataError, match=r"dev: no \.wav or \.fr or \.fra files; is the corpus layout right\?"):
        next(read_corpus("mboshi-french", tmp_path, "dev"))
    (tmp_path / "dev.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"split 'dev' of corpus layout 'manifest' holds no utterances"):
        next(read_corpus("manifest", tmp_path, "dev"))


def test_text_of_another_encoding_is_an_error_not_mojibake(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "a.fr").write_bytes("été".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.fr: not UTF-8"):
        next(read_corpus("mboshi-french", tmp_path, "dev"))


@needs_samples
@pytest.mark.parametrize(
    ("layout", "split", "count", "pair"),
    [
        ("mboshi-french", "train", 500, ("mdw", "fra")),
        ("mboshi-french", "dev", 120, ("mdw", "fra")),
        ("griko-italian", "train", 90, ("grk", "ita")),
        ("griko-italian", "dev", 33, ("grk", "ita")),
    ],
)
def test_real_corpora(layout: str, split: str, count: int, pair: tuple[str, str]) -> None:
    found = list(read_corpus(layout, SHARED / layout, split))
    assert len(found) == len({utterance.id for utterance in found}) == count
    for utterance in found:
        assert (utterance.source_lang, utterance.target_lang) == pair
        assert Path(utterance.audio).is_file()
        assert utterance.target_text and "\r" not in utterance.target_text
        assert utterance.source_text and "\n" not in utterance.source_text
