"""What decoding hands to beam search, and what it refuses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from gdps_ds.config import DecodeConfig
from gdps_ds.data.collate import Batch, Collator, SpeechDataset
from gdps_ds.data.features import OnTheFlyFeatures
from gdps_ds.data.manifest import DataError, Utterance
from gdps_ds.data.table import UtteranceTable
from gdps_ds.evaluation.decoding import Translation, oversized, translate
from gdps_ds.evaluation.replica import Replica
from tests.tiny import ALONE, tiny_model

LENGTHS = np.array([30, 50, 40], dtype=np.int32)


class Tokenizer:
    """Language codes, and ids as text."""

    unk_token_id, eos_token_id, pad_token_id = 1, 3, 0

    def get_added_vocab(self) -> dict[str, int]:
        return {"__eng__": 5, "__fra__": 6}

    def convert_tokens_to_ids(self, token: str) -> int:
        return self.get_added_vocab().get(token, self.unk_token_id)

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        return [" ".join(str(each) for each in row if each not in (0, 3)) for row in ids.tolist()]


class Features:
    lengths = LENGTHS

    def __getitem__(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).normal(size=(LENGTHS[index], 160)).astype(np.float32)


class Recorder:
    """Stands in for a model, and notes what it was asked for."""

    comm = ALONE

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        yield

    def generate(self, batch: Batch, decoder_input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        self.calls.append({"utterances": batch.utterances, "codes": decoder_input_ids[:, 0].tolist()} | options)
        return decoder_input_ids


def translated(model: Any, targets: tuple[str, ...] = ("eng", "fra", "eng"), **settings: Any) -> list[str]:
    return [row.hypothesis for row in translations(model, targets, **settings)]


def translations(model: Any, targets: tuple[str, ...] = ("eng", "fra", "eng"), **settings: Any) -> list[Translation]:
    table = UtteranceTable.of(Utterance(str(n), "a.wav", "aeb", target, None, duration=1.0) for n, target in enumerate(targets))
    dataset = SpeechDataset(table, Features(), None, languages=["aeb"], folds=2)
    tokenizer: Any = Tokenizer()
    chosen = DecodeConfig(**settings).with_pieces_of(30.0)
    return translate(model, dataset, tokenizer, Collator(pad_id=0, start_id=3), chosen)


def test_every_setting_reaches_beam_search() -> None:
    settings = {
        "max_new_tokens": 9, "length_penalty": 0.7, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3
    }  # fmt: skip
    recorder = Recorder()
    translated(recorder, beams=4, **settings)
    (call,) = recorder.calls
    assert {name: call[name] for name in settings} == settings
    assert (call["num_beams"], call["do_sample"]) == (4, False)
    assert (call["utterances"], call["codes"]) == (("1", "2", "0"), [6, 5, 5])


def test_batches_are_filled_by_frames() -> None:
    recorder = Recorder()
    translated(recorder, max_frames=80)
    assert [call["utterances"] for call in recorder.calls] == [("1",), ("2", "0")]


def test_an_utterance_longer_than_the_frame_budget_is_translated_alone() -> None:
    recorder = Recorder()
    translated(recorder, max_frames=45)
    assert [call["utterances"] for call in recorder.calls] == [("1",), ("2",), ("0",)]


def test_translations_that_reach_their_longest_length_are_counted_as_cut() -> None:
    """The model's own scores decide: where ``</s>`` is as good as never, all are cut; where it is the best, none."""
    model = tiny_model()
    head = model.lm_head.weight.data
    for sign, cut in ((-1.0, True), (1.0, False)):
        with torch.no_grad():
            model.text_decoder.layer_norm.bias.fill_(1.0)
            head[3] = sign * 100.0
        rows = translations(Replica(model, ALONE), beams=2, max_new_tokens=4)
        assert [(row.cut, row.pieces) for row in rows] == [(cut, 1)] * 3


def test_long_audio_is_translated_in_pieces_and_what_has_none_keeps_its_line(tmp_path: Path) -> None:
    """Five seconds in pieces of two: three translations, joined in order, whatever else is in the batch."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 80_000)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    cut = [0, 26_666, 53_333, 80_000]
    plain = Utterance("long", str(tmp_path / "a.wav"), "aeb", "eng", None, duration=5.0)
    none = replace(plain, id="none", audio="nowhere.wav", duration=0.0)
    parts = []
    for number, (start, stop) in enumerate(pairwise(cut)):
        soundfile.write(tmp_path / f"{number}.wav", samples[start:stop], 16_000, subtype="FLOAT")
        path = str(tmp_path / f"{number}.wav")
        parts.append(replace(plain, id=f"part {number}", audio=path, duration=(stop - start) / 16_000))
    model = Replica(tiny_model(), ALONE)
    settings = DecodeConfig(beams=2, max_new_tokens=6, max_seconds=2.0)
    one, empty, two = decoded(model, [plain, none, replace(plain, id="two")], settings)
    expected = " ".join(row.hypothesis for row in decoded(model, parts, settings))
    assert one.hypothesis == two.hypothesis == expected != ""
    assert (one.id, one.pieces, empty.id, empty.pieces, empty.hypothesis) == ("long", 3, "none", 0, "")
    whole = decoded(model, [plain], settings.model_copy(update={"max_seconds": 5.0}))
    assert whole[0].pieces == 1 and whole[0].hypothesis != expected
    assert oversized(dataset_of([plain, none]), settings) == ""
    narrow = settings.model_copy(update={"max_frames": 80})
    assert oversized(dataset_of([plain, none]), narrow) == (
        "decode.max_frames is 80, but 3 utterances or pieces of decode.max_seconds are longer, up to 82 frames (long): each is "
        "translated alone"
    )
    assert [row.hypothesis for row in decoded(model, [plain], narrow)] == [expected]


def dataset_of(utterances: list[Utterance]) -> SpeechDataset:
    table = UtteranceTable.of(utterances)
    return SpeechDataset(table, OnTheFlyFeatures(table), None, languages=["aeb"], folds=2)


def decoded(model: Any, utterances: list[Utterance], settings: DecodeConfig) -> list[Translation]:
    tokenizer: Any = Tokenizer()
    return translate(model, dataset_of(utterances), tokenizer, Collator(pad_id=0, start_id=3), settings)


def test_an_unknown_target_language_is_refused() -> None:
    """Before anything is translated, whichever batch it would be in."""
    recorder = Recorder()
    with pytest.raises(DataError, match=r"the tokenizer has no target language 'swh' \(token __swh__\); it has eng, fra"):
        translated(recorder, targets=("eng", "eng", "swh"), max_utterances=1)
    assert recorder.calls == []


def test_scores_that_are_not_numbers_fail() -> None:
    model = tiny_model()
    whole = translated(Replica(model, ALONE), beams=2, max_new_tokens=4)
    assert len(whole) == 3 and all(whole)
    model.text_decoder.layer_norm.weight.data.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="translating gave NaN in the batch of utterances 1, 2, 0"):
        translated(Replica(model, ALONE), beams=2, max_new_tokens=4)


@pytest.mark.parametrize("settings", [{"repetition_penalty": 0}, {"no_repeat_ngram_size": -1}, {"comet_source": "speech"}])
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        DecodeConfig(**settings)
