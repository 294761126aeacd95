from __future__ import annotations

import base64
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gdps_ds.reporting.run_record import RunDir
from gdps_ds.reporting.samples import Sample, choose, flac, marked, sample_sections, with_audio
from tests.unit.reporting.runs import (
    LANGUAGES,
    systems,
    utterance,
)


def test_speech_in_the_page_is_the_utterance(finished: Path) -> None:
    html = (finished / "report.html").read_text()
    players = re.findall(r'<audio controls preload="metadata"[^>]*src="data:audio/flac;base64,([^"]*)"', html)
    assert len(players) == 3 * len(LANGUAGES)
    original, _ = soundfile.read(next(iter(RunDir(finished).test_set.values())).audio)
    starts = [round(0.25 * number * 16_000) for number in range(5)]
    for player in players:
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(player)))
        assert (rate, len(samples)) == (16_000, 8_000)
        assert min(np.abs(samples - original[start : start + 8_000]).max() for start in starts) < 1e-4


def test_samples_do_not_depend_on_the_order_and_every_language_comes_first_once(tmp_path: Path) -> None:
    test = [utterance(tmp_path, language, number) for language in LANGUAGES for number in range(5)]
    chosen = choose(systems(test), test)
    assert choose(systems(test[::-1]), test) == chosen
    assert [sample.language for sample in chosen] == list(LANGUAGES) * 3
    assert all(sample.hypotheses["gdps"] == sample.reference for sample in chosen)
    many = [dataclasses.replace(test[0], id=str(number), source_lang=f"l{number:03}") for number in range(100)]
    assert len(choose(systems(many), many)) == 100


def test_audio_stays_within_its_limit_and_what_is_left_out_says_so(tmp_path: Path) -> None:
    test = {each.id: each for each in (utterance(tmp_path, language, n) for language in LANGUAGES for n in range(5))}
    chosen = choose(systems(list(test.values())), test.values())
    size = len(flac(test[chosen[0].id]))
    heard = with_audio(chosen, test, limit=round(4.5 * size))
    assert [sample.audio is not None for sample in heard] == [True] * 4 + [False] * 8
    assert all("audio left out: the page holds" in sample.note for sample in heard[4:])


def test_audio_that_is_gone_is_a_note(tmp_path: Path) -> None:
    test = {each.id: each for each in (utterance(tmp_path, language, 0) for language in LANGUAGES)}
    chosen = choose(systems(list(test.values())), test.values())
    Path(test["bem-0"].audio).unlink()
    del test["gle-0"]
    notes = {sample.language: sample.note for sample in with_audio(chosen, test)}
    assert notes["aeb"] == "" and f"{tmp_path}/audio/bem.wav: missing file" in notes["bem"]
    assert notes["gle"] == "no audio: the run's data has no such utterance"
    assert "missing file" in str(sample_sections(with_audio(chosen, test))[1].tables[0].rows[0][1])


@pytest.mark.parametrize(
    ("hypothesis", "reference", "expected"),
    [
        ("a b c", "a b c", "a b c"),
        ("a x y c", "a b c", "a <mark>x y</mark> c"),
        ("<i> & b", "a b", "<mark>&lt;i&gt; &amp;</mark> b"),
        ("x <y>", None, "x &lt;y&gt;"),
        ("", "a", "<em>empty</em>"),
    ],
)
def test_words_that_the_reference_lacks_are_marked(hypothesis: str, reference: str | None, expected: str) -> None:
    assert str(marked(hypothesis, reference)) == expected


def test_texts_are_no_markup() -> None:
    sample = Sample("<id>", "aeb", None, "<src>", "<ref>", {"gdps": "<hyp>"}, None, "<note>")
    ((section,), rows) = (sample_sections([sample]), dict(sample_sections([sample])[0].tables[0].rows))
    assert section.tables[0].head == ("<id>", "")
    assert rows == {
        "": "<note>",
        "spoken": "<bdi>&lt;src&gt;</bdi>",
        "reference": "<bdi>&lt;ref&gt;</bdi>",
        "gdps": "<mark>&lt;hyp&gt;</mark>",
    }
    assert type(rows[""]) is str  # escaped by the page
