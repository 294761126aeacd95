"""Long audio is cut by one rule: the fewest equally long pieces that are short enough."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from gdps_ds.data import pieces as pieces_module
from gdps_ds.data.collate import SpeechDataset
from gdps_ds.data.features import OnTheFlyFeatures, log_mel, waveform_of
from gdps_ds.data.manifest import Utterance
from gdps_ds.data.pieces import Pieces, bounds_of
from gdps_ds.data.table import UtteranceTable
from gdps_ds.evaluation.decoding import rank_share


@pytest.mark.parametrize(
    ("samples", "bounds"),
    [(1, [0, 1]), (100, [0, 100]), (101, [0, 50, 101]), (200, [0, 100, 200]), (250, [0, 83, 166, 250])],
)
def test_pieces_are_few_and_equally_long(samples: int, bounds: list[int]) -> None:
    assert bounds_of(samples, longest=100) == bounds


def test_a_piece_is_what_the_model_would_hear_of_that_stretch_alone(tmp_path: Path) -> None:
    """A short utterance, a segment of 3.25 s in two pieces of at most 2 s, and one without audio."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 80_000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    short, long = Utterance("short", str(tmp_path / "a.wav"), "bem", "eng", None, None, 0.5, 1.5), None
    long = Utterance("long", short.audio, "bem", "eng", None, None, 1.0, 3.25)
    table = UtteranceTable.of([short, Utterance("none", "nowhere.wav", "bem", "eng", None, duration=0.0), long])
    dataset = SpeechDataset(table, OnTheFlyFeatures(table), None, languages=["bem"], folds=2)
    pieces = Pieces(dataset, max_seconds=2.0)
    assert pieces.counts == [1, 0, 2]
    stretches = [samples[8_000:32_000], samples[16_000:42_000], samples[42_000:68_000]]
    for place, stretch in enumerate(stretches):
        expected = log_mel(stretch)
        np.testing.assert_array_equal(pieces[place].features, expected)
        assert pieces.lengths[place] == len(expected)
    parts = [pieces[place].utterance for place in (1, 2)]
    assert [(part.id, part.offset, part.duration) for part in parts] == [("long", 1.0, 1.625), ("long", 2.625, 1.625)]


def test_each_talk_is_decoded_about_once_whatever_the_number_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Talks of like lengths: their pieces differ by less than a frame. Batches are the same on 1 rank and on 4."""
    rows = []
    for number in range(12):
        seconds = 4.0 + (number % 3) / 1600
        samples = np.random.default_rng(number).uniform(-0.5, 0.5, round(seconds * 16_000)).astype(np.float32)
        soundfile.write(tmp_path / f"{number}.wav", samples, 16_000, subtype="FLOAT")
        rows.append(Utterance(str(number), str(tmp_path / f"{number}.wav"), "bem", "eng", None, None, 0.0, seconds))
    rows += [replace(rows[0], id=f"short {number}", duration=0.5) for number in range(5)]
    table = UtteranceTable.of(rows)
    dataset = SpeechDataset(table, OnTheFlyFeatures(table), None, languages=["bem"], folds=2)
    decoded: list[str] = []

    def counting(utterance: Utterance) -> NDArray[np.float32]:
        decoded.append(utterance.id)
        return waveform_of(utterance)

    monkeypatch.setattr(pieces_module, "waveform_of", counting)
    made = {}
    for ranks in (1, 4):
        decoded.clear()
        for rank in range(ranks):
            pieces = Pieces(dataset, max_seconds=0.5)
            batches = pieces.batches(ranks, max_frames=150, max_utterances=4)
            for indices, real in rank_share(batches, rank, ranks):
                if real:
                    assert [pieces[place].utterance for place in indices]
        assert len(decoded) <= 12 + ranks - 1 and set(decoded) == {row.id for row in rows[:12]}
        made[ranks] = sorted(tuple(batch.tolist()) for batch in batches)
        assert sorted(place for batch in made[ranks] for place in batch) == list(range(len(pieces.pieces)))
    assert made[1] == made[4]
