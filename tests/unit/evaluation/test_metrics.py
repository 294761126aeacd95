from __future__ import annotations

import numpy as np
import pytest

from gdps_ds.evaluation.decoding import rank_share
from gdps_ds.evaluation.metrics import METRICS, NORMALISERS, score, score_languages, signatures, statistics

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
    for name, found in statistics(hypotheses, references, "none").items():
        assert found.score == METRICS[name]().corpus_score(hypotheses, [references]).score
        kept = found.rows[[0, 2]].sum(0).tolist()
        assert found.of_sum(kept) == METRICS[name]().corpus_score(hypotheses[::2], [references[::2]]).score


def test_perfect_and_hopeless_translations() -> None:
    references = ["the cat sat on the mat", "a dog ran through the park"]
    assert score(references, references, "none") == {"BLEU": pytest.approx(100), "chrF++": pytest.approx(100), "TER": 0}
    worst = score(["zzz qqq", "vvv"], references, "none")
    assert worst["BLEU"] < 1 and worst["chrF++"] < 5 and worst["TER"] == 100


def test_bleu_is_pinned() -> None:
    """One error in six words: p1 = 5/6, p2 = 4/5, p3 = 3/4, p4 = 2/3, no brevity penalty: (1/3) ** (1/4) = 75.98."""
    assert score(["the cat sat on the rug"], ["the cat sat on the mat"], "none")["BLEU"] == pytest.approx(75.98, abs=0.01)


def test_normalisation_comes_before_scoring() -> None:
    assert score(["The cat, sat on the mat!"], ["the cat sat on the mat"], "none")["BLEU"] < 60
    assert score(["The cat, sat on the mat!"], ["the cat sat on the mat"], "gmu")["BLEU"] == pytest.approx(100)


def test_signatures_name_metric_settings_and_normaliser() -> None:
    found = signatures("gmu")
    assert found["BLEU"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert "nw:2" in found["chrF++"]
    assert all(signature.endswith("|normaliser:gmu") for signature in found.values())


def test_the_mean_is_over_languages_not_sentences() -> None:
    scores = score_languages(
        {"aeb": ["the cat sat on the mat"] * 9, "bem": ["zzz qqq vvv www"]},
        {"aeb": ["the cat sat on the mat"] * 9, "bem": ["a dog ran off"]},
        "none",
    )
    assert scores["mean"]["TER"] == pytest.approx((0 + 100) / 2)


@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["a"], ["a", "b"])])
def test_missing_translations_are_never_scored(hypotheses: list[str], references: list[str]) -> None:
    with pytest.raises(ValueError, match="hypotheses for"):
        score(hypotheses, references, "none")


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_every_batch_counts_once_and_ranks_go_in_step(count: int, world_size: int) -> None:
    batches = [np.array([number]) for number in range(count)]
    shares = [list(rank_share(batches, rank, world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(indices[0] for share in shares for indices, real in share if real) == list(range(count))
