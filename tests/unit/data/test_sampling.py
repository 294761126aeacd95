from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from gdps_ds.data import sampling
from gdps_ds.data.manifest import DataError
from gdps_ds.data.sampling import Draws, MicroBatches, Position, UpdateSampler, length_batches

SETTINGS: dict[str, Any] = {"seed": 1, "temperature": 1.0, "max_frames": 300, "max_utterances": 8}


@st.composite
def corpora(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(lengths, languages) of up to 60 utterances in up to 4 languages, some of which may be absent."""
    size = draw(st.integers(1, 60))
    lengths = draw(st.lists(st.integers(1, 300), min_size=size, max_size=size))
    languages = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    return np.array(lengths, dtype=np.int32), np.array(languages, dtype=np.int64)


def corpus_of(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """As many utterances of each language as ``counts`` says, with lengths of 50 to 150 frames."""
    languages = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(0).integers(50, 150, len(languages)), languages


def epoch_batches(lengths: np.ndarray, languages: np.ndarray, *, epoch: int, **options: Any) -> list[np.ndarray]:
    return list(MicroBatches(lengths, languages, **options).epoch(epoch))


def draw(languages: np.ndarray, *, seed: int, epoch: int, temperature: float) -> np.ndarray:
    draws = Draws(languages, seed=seed, temperature=temperature)
    return np.concatenate([draws.chunk(epoch, number) for number in range(draws.chunks)])


@pytest.fixture(params=[sampling.CHUNK, 16], ids=["one chunk", "chunks of 16"], autouse=True, scope="module")
def chunk_size(request: pytest.FixtureRequest) -> Iterator[int]:
    """Everything holds however many chunks an epoch has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "CHUNK", request.param)
        yield request.param


def listed(batches: list[np.ndarray]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


@given(corpora(), st.integers(0, 5), st.integers(0, 3))
def test_at_temperature_1_every_utterance_comes_once_an_epoch(
    corpus: tuple[np.ndarray, np.ndarray], epoch: int, seed: int
) -> None:
    batches = epoch_batches(*corpus, **SETTINGS | {"seed": seed}, epoch=epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(corpus[0])))


@given(corpora(), st.floats(1, 20), st.integers(300, 2000), st.integers(1, 20), st.integers(0, 3))
def test_the_budget_holds_with_padding(
    corpus: tuple[np.ndarray, np.ndarray], temperature: float, max_frames: int, max_utterances: int, epoch: int
) -> None:
    lengths = corpus[0]
    limits: dict[str, Any] = {"max_frames": max_frames, "max_utterances": max_utterances}
    batches = epoch_batches(*corpus, seed=1, temperature=temperature, epoch=epoch, **limits)
    for batch in [*batches, *length_batches(lengths, **limits)]:
        assert 1 <= batch.size <= max_utterances
        assert lengths[batch].max() * batch.size <= max_frames


@given(corpora(), st.floats(1, 20), st.integers(0, 5))
def test_an_epoch_draws_as_many_as_there_are_from_languages_that_are_there(
    corpus: tuple[np.ndarray, np.ndarray], temperature: float, epoch: int
) -> None:
    lengths, languages = corpus
    drawn = draw(languages, seed=1, epoch=epoch, temperature=temperature)
    assert drawn.size == lengths.size
    assert set(languages[drawn]) <= set(languages)


def test_temperature_follows_the_power_law() -> None:
    languages = corpus_of([810, 160, 20, 10])[1]
    drawn = draw(languages, seed=1, epoch=0, temperature=2.0)
    roots = np.sqrt([810, 160, 20, 10])
    np.testing.assert_allclose(np.bincount(languages[drawn]), 1000 * roots / roots.sum(), atol=1)


def test_a_language_comes_round_before_an_utterance_repeats() -> None:
    languages = corpus_of([900, 90, 10])[1]
    drawn = np.concatenate([draw(languages, seed=1, epoch=epoch, temperature=3.0) for epoch in range(7)])
    for language, size in enumerate([900, 90, 10]):
        times = Counter(drawn[languages[drawn] == language].tolist())
        assert len(times) == size
        assert max(times.values()) - min(times.values()) <= 1


def test_small_languages_wrap_around_in_fresh_orders() -> None:
    languages = corpus_of([990, 10])[1]
    drawn = draw(languages, seed=1, epoch=0, temperature=1e6)
    small = drawn[languages[drawn] == 1].reshape(-1, 10)
    assert len(small) == 50
    assert (np.sort(small, axis=1) == np.arange(990, 1000)).all()
    assert len({tuple(row) for row in small.tolist()}) > 45


def test_epochs_and_seeds_differ_and_repeat_exactly() -> None:
    corpus = corpus_of([50, 50])
    orders = {
        (seed, epoch): listed(epoch_batches(*corpus, **SETTINGS | {"seed": seed}, epoch=epoch))
        for seed in (1, 2)
        for epoch in (0, 1)
    }
    assert len({str(order) for order in orders.values()}) == 4
    assert listed(epoch_batches(*corpus, **SETTINGS | {"seed": 2}, epoch=1)) == orders[2, 1]


def test_batches_mix_languages_and_do_not_come_by_length() -> None:
    lengths, languages = corpus_of([200, 200, 200])
    batches = epoch_batches(lengths, languages, **SETTINGS | {"max_frames": 1500}, epoch=0)
    assert np.mean([len(set(languages[batch])) for batch in batches]) > 2.5
    means = [lengths[batch].mean() for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_padding_stays_low(chunk_size: int) -> None:
    lengths = np.random.default_rng(0).gamma(3, 80, 5000).clip(10, 1500).astype(np.int32)
    batches = MicroBatches(lengths, np.zeros(5000, dtype=np.int64), **SETTINGS | {"max_frames": 3000})
    assert batches.padding_waste() < (0.1 if chunk_size > 16 else 0.3)


def test_padding_waste_is_the_share_of_padded_frames() -> None:
    batches = MicroBatches(np.array([10, 30]), np.array([0, 0]), **SETTINGS)
    assert batches.padding_waste() == pytest.approx(1 - 40 / 60)


@given(corpora(), st.integers(0, 40), st.integers(0, 40), st.floats(1, 5))
def test_taking_twice_equals_taking_once(
    corpus: tuple[np.ndarray, np.ndarray], first: int, second: int, temperature: float
) -> None:
    batches = MicroBatches(*corpus, **SETTINGS | {"temperature": temperature})
    middle = batches.advance(Position(), first)
    whole = listed(batches.take(Position(), first + second))
    assert whole == listed(batches.take(Position(), first)) + listed(batches.take(middle, second))
    assert batches.advance(middle, second) == batches.advance(Position(), first + second)


@settings(deadline=None)
@given(corpora(), st.sampled_from([4, 8]), st.integers(0, 6), st.integers(0, 6))
def test_any_number_of_ranks_and_any_interruption_make_the_same_updates(
    corpus: tuple[np.ndarray, np.ndarray], per_update: int, before: int, after: int
) -> None:
    whole = MicroBatches(*corpus, **SETTINGS).take(Position(), (before + after) * per_update)
    expected = [sorted(listed(whole[start : start + per_update])) for start in range(0, len(whole), per_update)]
    for world_size in (1, 2, 4):
        found: list[list[list[int]]] = [[] for _ in range(before + after)]
        for rank in range(world_size):
            # New objects on every rank and after the interruption: nothing but the position is handed on.
            middle = MicroBatches(*corpus, **SETTINGS).advance(Position(), before * per_update)
            share: list[list[int]] = []
            for start, updates in ((Position(), before), (middle, after)):
                sampler = UpdateSampler(
                    MicroBatches(*corpus, **SETTINGS),
                    start,
                    updates=updates,
                    per_update=per_update,
                    rank=rank,
                    world_size=world_size,
                )
                part = list(sampler)
                assert len(part) == len(sampler)
                share += [[index for index, _ in batch] for batch in part]
            steps = per_update // world_size
            for update, batches in enumerate(found):
                batches += share[update * steps : (update + 1) * steps]
        assert [sorted(batches) for batches in found] == expected


def test_a_data_loader_takes_the_sampler() -> None:
    batches = MicroBatches(*corpus_of([20]), **SETTINGS)
    sampler = UpdateSampler(batches, Position(), updates=2, per_update=2)
    whole = {(index, epoch): index for index in range(20) for epoch in range(9)}
    loader: DataLoader[int] = DataLoader(whole, batch_sampler=sampler, collate_fn=list)  # type: ignore[arg-type]
    assert list(loader) == listed(batches.take(Position(), 4))


def test_draws_name_the_epoch_that_they_belong_to() -> None:
    corpus = corpus_of([20])
    first, second = (len(epoch_batches(*corpus, **SETTINGS, epoch=epoch)) for epoch in (0, 1))
    sampler = UpdateSampler(MicroBatches(*corpus, **SETTINGS), Position(), updates=first + second, per_update=1)
    epochs = [{epoch for _, epoch in batch} for batch in sampler]
    assert epochs == [{0}] * first + [{1}] * second


def test_positions_are_ordered_and_normal() -> None:
    batches = MicroBatches(np.full(4, 300), np.zeros(4, dtype=np.int64), **SETTINGS)
    assert batches.advance(Position(), 4) == Position(1, 0)
    assert batches.advance(Position(0, 0, 4), 0) == Position(1, 0)
    assert batches.advance(Position(2, 0, 3), 6) == Position(4, 0, 1)
    assert Position(0, 1, 3) < Position(0, 2, 0) < Position(1, 0, 0)


def test_the_share_of_each_language_is_even_over_an_epoch(chunk_size: int) -> None:
    languages = corpus_of([40, 20])[1]
    draws = Draws(languages, seed=1, temperature=1.0)
    assert draws.chunks == -(-60 // chunk_size)
    for number in range(draws.chunks):
        counts = np.bincount(languages[draws.chunk(3, number)], minlength=2)
        np.testing.assert_allclose(counts, [40 / draws.chunks, 20 / draws.chunks], atol=1)


def test_a_late_position_is_reached_without_sorting_what_comes_before(chunk_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = MicroBatches(*corpus_of([400, 100]), **SETTINGS)
    last = -(-500 // chunk_size) - 1
    expected = MicroBatches(*corpus_of([400, 100]), **SETTINGS)
    list(expected.epoch(7))
    sorted_draws: list[int] = []
    cut = sampling._cut

    def counting(order: np.ndarray, *arguments: Any) -> list[np.ndarray]:
        sorted_draws.append(order.size)
        return cut(order, *arguments)

    monkeypatch.setattr(sampling, "_cut", counting)
    assert listed(batches.take(Position(7, last), 1)) == listed(expected.take(Position(7, last), 1))
    assert sum(sorted_draws) <= 2 * chunk_size


def test_length_batches_cover_everything_longest_first() -> None:
    lengths = np.array([10, 300, 20, 290, 20], dtype=np.int32)
    assert listed(length_batches(lengths, max_frames=300, max_utterances=8)) == [[1], [3], [2, 4, 0]]


def test_faults_name_the_option() -> None:
    zeros = np.zeros(2, dtype=np.int64)
    with pytest.raises(DataError, match=r"number 1 has 301 frames, but a batch holds 300: raise max_frames"):
        MicroBatches(np.array([5, 301]), zeros, **SETTINGS)
    with pytest.raises(DataError, match="utterance number 0 has no frames"):
        MicroBatches(np.array([0, 301]), zeros, **SETTINGS)
    with pytest.raises(DataError, match="no utterances"):
        MicroBatches(zeros[:0], zeros[:0], **SETTINGS)
    batches = MicroBatches(np.array([5, 5]), zeros, **SETTINGS)
    with pytest.raises(DataError, match=r"train\.micro_batches \(3\) must be a multiple of the world size \(2\)"):
        UpdateSampler(batches, Position(), updates=1, per_update=3, rank=0, world_size=2)
    with pytest.raises(DataError, match=r"batch 7 of chunk 0 of epoch 0 does not exist: .*data\.max_frames"):
        batches.take(Position(0, 0, 7), 1)
    with pytest.raises(DataError, match=r"batch 0 of chunk 9 of epoch 0 does not exist"):
        batches.take(Position(0, 9), 1)
