from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdps_ds.data import table
from gdps_ds.data.manifest import DataError, Measured, Utterance
from gdps_ds.data.table import LabelTable, UtteranceTable, key_of, write_labels, write_utterances

PLAIN = Utterance("a", "/data/a.wav", "bem", "eng", "Good day.", duration=1.5)


def some(count: int) -> list[Utterance]:
    """Utterances with and without texts, in three languages."""
    return [
        replace(
            PLAIN,
            id=f"u{number}",
            source_lang=("bem", "aeb", "gle")[number % 3],
            target_lang=("fra", "eng")[number % 2],
            target_text=None if number % 5 == 4 else f"Text {number} \u2028 'ü'",
            source_text=f"umo {number}" if number % 2 else None,
            offset=number / 7,
            duration=0.1 + number / 3,
        )
        for number in range(count)
    ]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks even of a few rows."""
    monkeypatch.setattr(table, "BLOCK", 4)


@given(st.integers(0, 20))
def test_a_table_in_memory_is_the_list_it_was_made_of(count: int) -> None:
    utterances = some(count)
    made = UtteranceTable.of(utterances)
    assert list(made) == utterances == [made[index] for index in range(len(made))]
    assert UtteranceTable.of(made) is made


@pytest.mark.usefixtures("small_blocks")
def test_a_file_gives_back_every_row_and_column(tmp_path: Path) -> None:
    utterances = some(11)
    write_utterances(tmp_path / "x.arrow", utterances, "key 1")
    found = UtteranceTable.open(tmp_path / "x.arrow")
    assert list(found) == utterances
    assert (found[7], found[-1], len(found)) == (utterances[7], utterances[10], 11)
    with pytest.raises(IndexError):
        found[11]
    np.testing.assert_array_equal(found.durations(), [utterance.duration for utterance in utterances])
    assert found.language_ids(["gle", "bem", "aeb"]).tolist() == [1, 2, 0] * 3 + [1, 2]
    assert found.target_languages() == ["eng", "fra"]
    assert list(found.target_texts()) == [utterance.target_text for utterance in utterances]
    assert key_of(tmp_path / "x.arrow") == "key 1"


def test_nothing_is_read_into_memory(tmp_path: Path) -> None:
    import pyarrow as pa

    write_utterances(tmp_path / "x.arrow", some(1000), "key")
    before = pa.total_allocated_bytes()
    found = UtteranceTable.open(tmp_path / "x.arrow")
    assert found[999] == some(1000)[999]
    assert pa.total_allocated_bytes() - before < 1000


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    """A generator of more than a block is never more than a block ahead of the file."""
    ahead = []

    def counted() -> Iterator[Utterance]:
        for number, utterance in enumerate(some(3 * 4)):
            written = sum(file.stat().st_size for file in tmp_path.iterdir())
            ahead.append((number, written))
            yield utterance

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "BLOCK", 4)
        write_utterances(tmp_path / "x.arrow", counted(), "key")
    sizes = dict(ahead)
    assert sizes[0] == sizes[3] < sizes[4] == sizes[7] < sizes[8]


def test_loader_processes_map_the_file_themselves(tmp_path: Path) -> None:
    write_utterances(tmp_path / "x.arrow", some(500), "key")
    write_labels(tmp_path / "y.arrow", [[number] * 9 for number in range(500)], "key")
    utterances, labels = UtteranceTable.open(tmp_path / "x.arrow"), LabelTable(tmp_path / "y.arrow")
    assert len(pickle.dumps((utterances, labels))) < 500
    again, labels_again = pickle.loads(pickle.dumps((utterances, labels)))
    assert (again[3], labels_again[3]) == (utterances[3], labels[3])
    in_memory = pickle.loads(pickle.dumps(UtteranceTable.of(some(3))))
    assert list(in_memory) == some(3)


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_utterances(Path("x.arrow"), [Measured("a", "x/../a.wav", "bem", "eng", None)], "key")
    assert UtteranceTable.open(Path("x.arrow"))[0].audio == str(tmp_path / "a.wav")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    write_utterances(path, [PLAIN], "old")

    def broken() -> Iterator[Utterance]:
        yield PLAIN
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_utterances(path, broken(), "new")
    assert key_of(path) == "old"
    assert list(tmp_path.iterdir()) == [path]
    assert key_of(tmp_path / "other.arrow") is None


def test_labels(tmp_path: Path) -> None:
    rows = [[7, 2], [], [7, 20, 21, 2]]
    write_labels(tmp_path / "y.arrow", iter(rows), "key")
    labels = LabelTable(tmp_path / "y.arrow")
    assert list(labels) == rows
    assert labels.lengths().tolist() == [2, 0, 4]


def test_faults_name_the_first_utterance() -> None:
    utterances = UtteranceTable.of([PLAIN, replace(PLAIN, id="b", duration=None), replace(PLAIN, id="c", source_lang="gle")])
    with pytest.raises(DataError, match="b: unknown duration"):
        utterances.durations()
    with pytest.raises(DataError, match=r"c: data\.languages lacks its language, has bem, aeb"):
        utterances.language_ids(["bem", "aeb"])
