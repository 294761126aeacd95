"""Utterances and labels of a run in Arrow files, mapped into memory: ten million of them cost pages of the file, no objects.

A row becomes an object when it is asked for; what is needed of all rows at once comes as one numpy array.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from numpy.typing import NDArray

from gdps_ds.data.manifest import DataError, Utterance, absolute
from gdps_ds.data.parallel import parts_of
from gdps_ds.files import atomic_path

UTTERANCES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("audio", pa.string(), nullable=False),
        pa.field("source_lang", pa.string(), nullable=False),
        pa.field("target_lang", pa.string(), nullable=False),
        pa.field("target_text", pa.string()),
        pa.field("source_text", pa.string()),
        pa.field("offset", pa.float64(), nullable=False),
        pa.field("duration", pa.float64()),
    ]
)
"""The fields of :class:`Utterance`."""
LABELS = pa.schema([pa.field("labels", pa.list_(pa.int32()), nullable=False)])
BLOCK = 2**14
"""Rows that are written together, and turned into objects together when all are gone through."""


class UtteranceTable(Sequence[Utterance]):
    """Utterances, read-only; loader processes that it is sent to map the file themselves."""

    def __init__(self, rows: pa.Table, path: Path | None = None) -> None:
        """``rows`` as :data:`UTTERANCES` says; ``path`` is the file that they are mapped from."""
        self._rows, self._path = rows, path

    @classmethod
    def open(cls, path: Path) -> UtteranceTable:
        """What :func:`write_utterances` wrote."""
        return cls(_mapped(path), path)

    @classmethod
    def of(cls, utterances: Iterable[Utterance]) -> UtteranceTable:
        """A table as it is, and other utterances in memory."""
        if isinstance(utterances, UtteranceTable):
            return utterances
        return cls(pa.Table.from_pylist([_row(utterance) for utterance in utterances], UTTERANCES))

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    def __getitem__(self, index: int) -> Utterance:  # type: ignore[override]
        return Utterance(*(column[index].as_py() for column in self._rows.columns))

    def __iter__(self) -> Iterator[Utterance]:
        for block in self._rows.to_batches(BLOCK):
            for row in block.to_pylist():
                yield Utterance(**row)

    def __reduce__(self) -> tuple[Any, ...]:
        return (UtteranceTable.open, (self._path,)) if self._path else (UtteranceTable, (self._rows,))

    def durations(self) -> NDArray[np.float64]:
        """(N,) seconds.

        Raises:
            DataError: an utterance's duration is unknown.
        """
        found = self._complete(self._rows["duration"], "unknown duration; run gdps_ds.data.preparation.prepare first")
        durations: NDArray[np.float64] = found.to_numpy()
        return durations

    def language_ids(self, languages: Sequence[str]) -> NDArray[np.int32]:
        """(N,) index of each utterance's source language in ``languages``.

        Raises:
            DataError: an utterance of another language.
        """
        found = pc.index_in(self._rows["source_lang"], value_set=pa.array(languages, pa.string()))
        ids: NDArray[np.int32] = self._complete(
            found, f"data.languages lacks its language, has {', '.join(languages)}"
        ).to_numpy()
        return ids

    def target_languages(self) -> list[str]:
        """Sorted, each once."""
        return sorted(pc.unique(self._rows["target_lang"]).to_pylist())

    def pairs(self) -> dict[str, int]:
        """Language pair, such as "bem-eng" -> utterances of it; sorted."""
        counts = pc.value_counts(pc.binary_join_element_wise(self._rows["source_lang"], self._rows["target_lang"], "-"))
        return dict(sorted((each["values"], each["counts"]) for each in counts.to_pylist()))

    def target_texts(self) -> Iterator[str | None]:
        for chunk in self._rows["target_text"].chunks:
            yield from chunk.to_pylist()

    def _complete(self, column: pa.ChunkedArray, fault: str) -> pa.ChunkedArray:
        """``column``, if none of its values is missing; else ``fault``, with the first utterance that lacks it."""
        if column.null_count:
            raise DataError(f"{self[pc.index(pc.is_null(column), True).as_py()].id}: {fault}")
        return column


class LabelTable(Sequence[list[int]]):
    """Label ids of utterances, as :class:`UtteranceTable` holds the utterances."""

    def __init__(self, path: Path) -> None:
        """Open what :func:`write_labels` wrote."""
        self._path, self._labels = path, _mapped(path)["labels"]

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> list[int]:  # type: ignore[override]
        labels: list[int] = self._labels[index].as_py()
        return labels

    def __reduce__(self) -> tuple[Any, ...]:
        return LabelTable, (self._path,)

    def equals(self, other: LabelTable) -> bool:
        """Whether all labels are the same."""
        same: bool = self._labels.equals(other._labels)
        return same

    def lengths(self) -> NDArray[np.int32]:
        """(N,) labels of each utterance."""
        lengths: NDArray[np.int32] = pc.list_value_length(self._labels).to_numpy()
        return lengths

    def rows_with(self, label: int) -> NDArray[np.int64]:
        """The rows that have ``label`` among theirs, in order."""
        found, start = [np.empty(0, np.int64)], 0
        for chunk in self._labels.chunks:
            parents = pc.list_parent_indices(chunk).to_numpy()
            found.append(start + np.unique(parents[chunk.flatten().to_numpy() == label]))
            start += len(chunk)
        return np.concatenate(found)


def write_utterances(path: Path, utterances: Iterable[Utterance], key: str) -> None:
    """Write utterances as they come, audio with absolute paths; ``path`` appears whole or not at all.

    ``key`` says what they were made from, see :func:`key_of`.
    """
    rows = (_row(utterance) | {"audio": utterance.audio and absolute(utterance.audio)} for utterance in utterances)
    _write(path, UTTERANCES, rows, key)


def write_labels(path: Path, labels: Iterable[Sequence[int]], key: str) -> None:
    """Write label ids as they come, as :func:`write_utterances` does."""
    _write(path, LABELS, ({"labels": ids} for ids in labels), key)


def key_of(path: Path) -> str | None:
    """The key that a file was written with; None where there is no such file."""
    if not path.is_file():
        return None
    with pa.memory_map(str(path)) as source:
        return str(pa.ipc.open_file(source).schema.metadata[b"key"].decode())


def _row(utterance: Utterance) -> dict[str, Any]:
    return {name: getattr(utterance, name) for name in UTTERANCES.names}


def _write(path: Path, schema: pa.Schema, rows: Iterable[Mapping[str, Any]], key: str) -> None:
    schema = schema.with_metadata({"key": key})
    with atomic_path(path) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for block in parts_of(rows, BLOCK):
            writer.write_batch(pa.RecordBatch.from_pylist(block, schema))


def _mapped(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
