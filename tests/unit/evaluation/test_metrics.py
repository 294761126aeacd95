from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER

from gdps_ds.config import DecodeConfig
from gdps_ds.data.manifest import DataError
from gdps_ds.evaluation.decoding import Translation, rank_share
from gdps_ds.evaluation.metrics import check_tokenizers, score, score_pairs, signatures, statistics
from gdps_ds.evaluation.normalisers import NORMALISERS, loss_of

PLAIN = {"BLEU": BLEU(), "chrF++": CHRF(word_order=2), "TER": TER()}
TEXT = "Don't stop — it's 5 o'clock, (really)! well-known «quote» # 1"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", TEXT),
        ("shared-task", "don't stop — it's 5 o'clock really well-known «quote» 1"),
        ("gmu", "dont stop its 5 oclock really wellknown quote 1"),
        ("gdps", "dont stop its 5 oclock really wellknown quote 1"),
    ],
)
def test_the_published_normalisers(name: str, expected: str) -> None:
    """Apostrophes and hyphens stay in the shared task's; GMU's strips category P and the authors' what is no word."""
    assert NORMALISERS[name](TEXT) == expected


def test_the_two_strictest_normalisers_differ_in_symbols() -> None:
    """A plus sign is a symbol (Sm), no punctuation; an underscore is punctuation (Pc), and a word character."""
    assert (NORMALISERS["gmu"]("a + b_c"), NORMALISERS["gdps"]("a + b_c")) == ("a + bc", "a b_c")


@pytest.mark.parametrize(
    ("text", "shared_task", "gmu", "gdps"),
    [
        ('So: "Yes (well) #1 + 2 = 3; no?"', "so yes well 1 2 3 no", "so yes well 1 + 2 = 3 no", "so yes well 1 2 3 no"),
        ("¿Qué? L’été, …", "¿qué l’été …", "qué lété", "qué lété"),
        ("A.M. 50% off_now $5", "am 50% off_now $5", "am 50 offnow $5", "am 50 off_now 5"),
    ],
)  # fmt: skip
def test_worked_examples(text: str, shared_task: str, gmu: str, gdps: str) -> None:
    """Character by character as the published scripts do: dollars and pluses are symbols, percent signs punctuation."""
    assert [NORMALISERS[name](text) for name in ("shared-task", "gmu", "gdps")] == [shared_task, gmu, gdps]


def test_the_shared_tasks_normaliser_strips_exactly_its_list() -> None:
    printable = "".join(map(chr, range(33, 127)))
    assert set(printable.lower()) - set(NORMALISERS["shared-task"](printable)) == set('()#+=?!;.,":')


def test_statistics_add_up_to_the_corpus_score() -> None:
    hypotheses = ["the cat sat on a mat", "", "a dog ran, fast", "zzz"]
    references = ["the cat sat on the mat", "nothing", "the dog ran fast", "a longer reference than that"]
    for name, found in statistics(hypotheses, references, DecodeConfig()).items():
        assert found.score == PLAIN[name].corpus_score(hypotheses, [references]).score
        kept = found.rows[[0, 2]].sum(0).tolist()
        assert found.of_sum(kept) == PLAIN[name].corpus_score(hypotheses[::2], [references[::2]]).score


def test_perfect_and_hopeless_translations() -> None:
    references = ["the cat sat on the mat", "a dog ran through the park"]
    assert score(references, references, DecodeConfig()) == {"BLEU": pytest.approx(100), "chrF++": pytest.approx(100), "TER": 0}
    worst = score(["zzz qqq", "vvv"], references, DecodeConfig())
    assert worst["BLEU"] < 1 and worst["chrF++"] < 5 and worst["TER"] == 100


def test_bleu_is_pinned() -> None:
    """One error in six words: p1 = 5/6, p2 = 4/5, p3 = 3/4, p4 = 2/3, no brevity penalty: (1/3) ** (1/4) = 75.98."""
    assert score(["the cat sat on the rug"], ["the cat sat on the mat"], DecodeConfig())["BLEU"] == pytest.approx(
        75.98, abs=0.01
    )


def test_normalisation_comes_before_scoring() -> None:
    texts = ["The cat, sat on the mat!"], ["the cat sat on the mat"]
    assert score(*texts, DecodeConfig())["BLEU"] < 60
    assert score(*texts, DecodeConfig(normaliser="gmu"))["BLEU"] == pytest.approx(100)


def test_signatures_name_metric_settings_and_normaliser() -> None:
    found = signatures({"bem": "eng"}, DecodeConfig(normaliser="gmu"))
    assert found["BLEU"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert "nw:2" in found["chrF++"]
    assert all(signature.endswith("|normaliser:gmu") for signature in found.values())


def test_the_mean_is_over_languages_not_sentences() -> None:
    right = [Translation(str(number), "aeb", "eng", "the cat sat on the mat", "the cat sat on the mat") for number in range(9)]
    scores = score_pairs([*right, Translation("9", "bem", "eng", "zzz qqq vvv www", "a dog ran off")], DecodeConfig())
    assert scores["mean"]["TER"] == pytest.approx((0 + 100) / 2)


@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["a"], ["a", "b"])])
def test_missing_translations_are_never_scored(hypotheses: list[str], references: list[str]) -> None:
    with pytest.raises(ValueError, match="hypotheses for"):
        score(hypotheses, references, DecodeConfig())


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_every_batch_counts_once_and_ranks_go_in_step(count: int, world_size: int) -> None:
    batches = [np.array([number]) for number in range(count)]
    shares = [list(rank_share(batches, rank, world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(indices[0] for share in shares for indices, real in share if real) == list(range(count))


CHINESE = ["今天天气非常好，我们去公园散步。"], ["今天天气非常好，我们去公园跑步。"]


@pytest.mark.parametrize("target", ["zho", "cmn", "cmn_Hant", "yue"])
def test_chinese_is_scored_by_characters_as_sacrebleu_does(target: str) -> None:
    """One of 16 characters is wrong; split at spaces alone, the sentence is one wrong word."""
    found = score(*CHINESE, DecodeConfig(), target=target)
    assert found["BLEU"] == BLEU(trg_lang="zh").corpus_score(CHINESE[0], [CHINESE[1]]).score
    assert found["BLEU"] > 70 and found["TER"] == pytest.approx(100 / 16)
    assert score(*CHINESE, DecodeConfig(), target="eng")["BLEU"] == 0
    assert "|tok:zh|" in signatures({"bho": target}, DecodeConfig())["BLEU"]
    assert "|asian:yes|" in signatures({"bho": target}, DecodeConfig())["TER"]


def test_languages_without_spaces_are_scored_by_characters() -> None:
    """Thai has no tokenizer of its own in sacreBLEU: 12 of 13 characters are right."""
    texts = ["สวัสดีตอนเช้า"], ["สวัสดีตอนเช้น"]
    found = score(*texts, DecodeConfig(), target="tha")
    assert found["BLEU"] == BLEU(tokenize="char").corpus_score(texts[0], [texts[1]]).score > 80
    assert found["TER"] == pytest.approx(100 / 13)
    assert "|words:characters|" in signatures({"x": "tha"}, DecodeConfig())["TER"]


def test_signatures_tell_rows_that_are_scored_in_different_ways() -> None:
    found = signatures({"bem": "eng", "que-spa": "spa", "que-zho": "zho"}, DecodeConfig())
    first, second = found["BLEU"].split("; ")
    assert first.startswith("bem, que-spa: nrefs:1") and "tok:13a" in first
    assert second.startswith("que-zho: nrefs:1") and "tok:zh" in second
    assert "; " not in found["chrF++"]


def test_a_tokenizer_that_is_not_installed_is_named_before_anything_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise RuntimeError("Japanese tokenization requires extra dependencies,\nsuch as mecab")

    monkeypatch.setattr("sacrebleu.metrics.bleu._get_tokenizer", missing)
    with pytest.raises(DataError, match=r"into jpn needs sacreBLEU's tokenizer ja-mecab.*sacrebleu\[ja\].*decode\.tokenizer"):
        check_tokenizers(["jpn"], DecodeConfig())


def test_the_tokenizer_can_be_chosen() -> None:
    chosen = DecodeConfig(tokenizer="char")
    assert score(*CHINESE, chosen, target="jpn")["BLEU"] == BLEU(tokenize="char").corpus_score(CHINESE[0], [CHINESE[1]]).score


def test_composed_and_decomposed_texts_score_as_equal() -> None:
    """The same sentence as most keyboards and as macOS write it."""
    composed = "được người già ở làng đón tiếp nồng hậu"
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    for name in NORMALISERS:
        found = score([decomposed], [composed], DecodeConfig.model_validate({"normaliser": name}))
        assert (found["BLEU"], found["TER"]) == (pytest.approx(100), 0), name


HINDI = "मैं किताब पढ़ रहा हूँ"


def test_what_a_published_normaliser_takes_away_is_told() -> None:
    """The authors' keeps word characters, and Python counts no vowel sign among them: it scores 100 without any."""
    bare = "".join(each for each in HINDI if unicodedata.category(each)[0] != "M")
    assert score([bare], [HINDI], DecodeConfig(normaliser="gdps"))["chrF++"] == pytest.approx(100)
    marks = sum(unicodedata.category(each)[0] == "M" for each in unicodedata.normalize("NFC", HINDI))
    warning = loss_of([HINDI], "gdps", "bho")
    assert warning.startswith(f"bho: decode.normaliser gdps drops {marks} vowel signs") and "devanagari" in warning
    assert [loss_of([HINDI], name, "bho") for name in ("none", "shared-task", "gmu")] == ["", "", ""]
    assert "tibetan mark intersyllabic tsheg" in loss_of(["བོད་ཡིག"], "gmu", "bod"), "punctuation that keeps words apart"
    assert loss_of(["Don’t stop, l'été: déjà vu!"], "gdps", "fra") == ""


def test_texts_in_two_languages_have_no_score_in_common() -> None:
    rows = [
        Translation("1", "que", "spa", "el gato duerme en la casa", "el gato duerme en la casa"),
        Translation("2", "que", "eng", "zzz qqq vvv www", "the cat sleeps at home"),
        Translation("3", "bem", "eng", "the cat sleeps at home", "the cat sleeps at home"),
    ]
    found = score_pairs(rows, DecodeConfig())
    assert list(found) == ["bem", "que-eng", "que-spa", "mean"]
    assert [found[name]["TER"] for name in found] == [0, 100, 0, pytest.approx(100 / 3)]
