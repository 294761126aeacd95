"""What decoding hands to beam search, and what it refuses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from gdps_ds.config import DecodeConfig
from gdps_ds.data.collate import Batch, Collator, SpeechDataset
from gdps_ds.data.manifest import DataError, Utterance
from gdps_ds.data.table import UtteranceTable
from gdps_ds.evaluation.decoding import translate
from gdps_ds.evaluation.replica import Replica
from tests.tiny import ALONE, tiny_model

LENGTHS = np.array([30, 50, 40], dtype=np.int32)


class Tokenizer:
    """Language codes, and ids as text."""

    unk_token_id = 1

    def get_added_vocab(self) -> dict[str, int]:
        return {"__eng__": 5, "__fra__": 6}

    def convert_tokens_to_ids(self, token: str) -> int:
        return self.get_added_vocab().get(token, self.unk_token_id)

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in ids.tolist()]


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
    table = UtteranceTable.of(Utterance(str(n), "a.wav", "aeb", target, None, duration=1.0) for n, target in enumerate(targets))
    dataset = SpeechDataset(table, Features(), None, languages=["aeb"], folds=2)
    tokenizer: Any = Tokenizer()
    rows = translate(model, dataset, tokenizer, Collator(pad_id=0, start_id=3), DecodeConfig(**settings))
    return [row.hypothesis for row in rows]


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
