from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import fields
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers.models.seamless_m4t.modeling_seamless_m4t import shift_tokens_right

from gdps_ds.analysis.sketch import fold_of
from gdps_ds.data.collate import Batch, Collator, SpeechDataset
from gdps_ds.data.manifest import DataError, Utterance

LANGUAGES = ("bem", "aeb")
TARGETS = [[7, 20, 2], [7, 20, 21, 22, 2], [7, 2]]
COLLATE = Collator(pad_id=0, start_id=3)


class RandomFeatures:
    """Noise of given lengths in the place of filter banks."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = np.array(lengths, dtype=np.int32)

    def __getitem__(self, index: int) -> np.ndarray:
        random = np.random.default_rng(index)
        return random.standard_normal((self.lengths[index], 160), dtype=np.float32)


def dataset(targets: list[list[int]] | None = TARGETS, lengths: Sequence[int] = (5, 9, 2)) -> SpeechDataset:
    spoken = ("aeb", "bem", "aeb")
    utterances = [
        Utterance(str(number), "/x.wav", language, "eng", None, duration=0.1 * (number + 1))
        for number, language in enumerate(spoken)
    ]
    return SpeechDataset(utterances, RandomFeatures(lengths), targets, languages=LANGUAGES, folds=16)


def batch_of(data: SpeechDataset) -> Batch:
    return COLLATE([data[index] for index in range(len(data))])


def test_features_are_padded_with_zeros_and_masked() -> None:
    data = dataset()
    batch = batch_of(data)
    assert batch.input_features.shape == (3, 9, 160)
    assert batch.input_features.dtype == torch.float32
    assert batch.attention_mask.dtype == torch.int64
    assert batch.attention_mask.sum(1).tolist() == [5, 9, 2]
    assert batch.attention_mask[0].tolist() == [1] * 5 + [0] * 4
    for row, features in enumerate(data.features[index] for index in range(3)):
        assert torch.equal(batch.input_features[row, : len(features)], torch.from_numpy(features))
        assert not batch.input_features[row, len(features) :].any()


def test_labels_and_decoder_inputs_are_pinned() -> None:
    batch = batch_of(dataset())
    assert batch.labels is not None and batch.decoder_input_ids is not None
    assert batch.labels.tolist() == [[7, 20, 2, -100, -100], [7, 20, 21, 22, 2], [7, 2, -100, -100, -100]]
    assert batch.decoder_input_ids.tolist() == [[3, 7, 20, 0, 0], [3, 7, 20, 21, 22], [3, 7, 0, 0, 0]]


def test_decoder_inputs_agree_with_the_models_own_shift_where_the_loss_looks() -> None:
    batch = batch_of(dataset())
    assert batch.labels is not None and batch.decoder_input_ids is not None
    counted = batch.labels != -100
    shifted = shift_tokens_right(batch.labels, 0, 3)
    assert torch.equal(batch.decoder_input_ids[counted], shifted[counted])


def test_counts_languages_and_folds() -> None:
    data = dataset()
    batch = batch_of(data)
    assert len(batch) == 3
    assert batch.languages.tolist() == [1, 0, 1] == data.language_ids.tolist()
    assert batch.folds.tolist() == [fold_of(name, 16) for name in "012"]
    assert batch.utterances == ("0", "1", "2")
    assert batch.target_languages == ("eng",) * 3
    assert (batch.frames, batch.target_tokens) == (16, 10)
    assert batch.seconds == pytest.approx(0.6)


def test_without_references_there_are_no_labels() -> None:
    batch = batch_of(dataset(targets=None))
    assert batch.labels is None and batch.decoder_input_ids is None
    assert batch.target_tokens == 0


def test_moving_keeps_everything_else() -> None:
    batch = batch_of(dataset())
    moved = batch.to("meta", non_blocking=True)
    assert {moved.input_features.device.type, moved.folds.device.type} == {"meta"}
    assert moved.labels is not None and moved.labels.device.type == "meta"
    assert moved.utterances == batch.utterances
    assert batch_of(dataset(targets=None)).to("meta").labels is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs an accelerator")
def test_pinned_memory() -> None:
    assert batch_of(dataset()).pin_memory().input_features.is_pinned()


def test_a_loader_with_processes_gives_the_same_batches() -> None:
    data = dataset()
    direct, loaded = (
        list(DataLoader(data, batch_sampler=[[0, 2], [1]], collate_fn=COLLATE, num_workers=workers)) for workers in (0, 1)
    )
    for one, other in zip(direct, loaded, strict=True):
        assert torch.equal(one.input_features, other.input_features)
        assert one.utterances == other.utterances
    assert pickle.loads(pickle.dumps(COLLATE)) == COLLATE


def test_a_batch_is_sent_between_processes_without_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers have 64 MB of it: a worker process would end with a bus error, or the batch would never come."""
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", lambda *arguments: pytest.fail("in /dev/shm"))
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", lambda *arguments: pytest.fail("in /dev/shm"))
    for targets in (TARGETS, None):
        batch = COLLATE([dataset(targets)[index] for index in range(3)])
        sent = pickle.loads(ForkingPickler.dumps(batch))
        for field in fields(Batch):
            before, after = getattr(batch, field.name), getattr(sent, field.name)
            assert type(before) is type(after)
            assert torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after
        sent.input_features.mul_(2.0)  # its own, and not read-only


def test_faults_name_what_differs() -> None:
    with pytest.raises(DataError, match=r"'utterances': 3, 'features': 3, 'targets': 2"):
        dataset(targets=TARGETS[:2])
    with pytest.raises(DataError, match=r"'features': 2"):
        dataset(lengths=(5, 9))
    utterance = Utterance("u1", "/x.wav", "gle", "eng", None, duration=1.0)
    with pytest.raises(DataError, match=r"u1: data\.languages lacks its language, has bem, aeb"):
        SpeechDataset([utterance], RandomFeatures([4]), None, languages=LANGUAGES, folds=2)
    data = dataset()
    with pytest.raises(DataError, match="labels for every utterance or for none"):
        COLLATE([data[0], dataset(targets=None)[1]])
