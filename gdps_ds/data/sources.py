"""Which files prepared data were made from, and which of them have changed since: by stat, and by digest where that differs.

Readers :func:`note` each index, text and listing as they read it. Audio costs one stat a file, thirty-two at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]

from gdps_ds.data.manifest import Utterance
from gdps_ds.files import atomic_path, digest_of, existing

Entry = tuple[int, int, str]
"""Size in bytes, time of change in ns, and a digest ("" for audio); -1, -1 and "" where there is no such file."""
Files = dict[tuple[str, str], None]
"""(path, kind): ``text``, ``audio``, or the suffixes that a folder was searched for, divided by commas."""

TEXT, AUDIO, THREADS = "text", "audio", 32
_NOTED: ContextVar[Files | None] = ContextVar("noted", default=None)


def note(path: Path, kind: str = TEXT) -> None:
    """A reader is about to read ``path``, which need not be there."""
    if (noted := _NOTED.get()) is not None:
        noted[str(path), kind] = None


def noting(utterances: Iterator[Utterance], files: Files) -> Iterator[Utterance]:
    """``utterances``, with the files that are read for them added to ``files``."""
    while True:
        # Set for the reader alone: the consumer may read another corpus in between.
        token = _NOTED.set(files)
        try:
            utterance = next(utterances)
        except StopIteration:
            return
        finally:
            _NOTED.reset(token)
        if utterance.audio:
            files[existing(utterance.audio), AUDIO] = None
        yield utterance


def write_sources(path: Path, files: Files) -> None:
    """Write down how ``files`` are now."""
    entries = _entries(files)
    names = {"path": [name for name, _ in files], "kind": [kind for _, kind in files]}
    values = {name: [entry[place] for entry in entries] for place, name in enumerate(("bytes", "changed_ns", "digest"))}
    rows = pa.table(names | values)
    with atomic_path(path) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)


def changes(path: Path) -> list[str]:
    """What has happened since to the files that :func:`write_sources` wrote down, one a line."""
    if not path.is_file():
        return []
    rows = pa.ipc.open_file(str(path)).read_all().to_pylist()
    now = _entries({(row["path"], row["kind"]): None for row in rows}, {row["path"]: row for row in rows})
    found = []
    for row, (size, changed_ns, digest) in zip(rows, now, strict=True):
        same = digest == row["digest"] if row["kind"] != AUDIO else changed_ns == row["changed_ns"]
        if size != row["bytes"] or not same:
            found.append(f"{row['path']} was {'added' if row['bytes'] < 0 else 'removed' if size < 0 else 'changed'}")
    return found


def _entries(files: Files, known: dict[str, dict[str, object]] | None = None) -> list[Entry]:
    def entry(item: tuple[str, str]) -> Entry:
        path, kind = Path(item[0]), item[1]
        try:
            status = path.stat()
        except OSError:
            return -1, -1, ""
        if kind not in (TEXT, AUDIO):
            names = sorted(file.name for file in path.iterdir() if file.name.lower().endswith(tuple(kind.split(","))))
            return len(names), 0, hashlib.sha256("\n".join(names).encode()).hexdigest()
        before = (known or {}).get(item[0], {})
        if kind == AUDIO:
            return status.st_size, status.st_mtime_ns, ""
        if (before.get("bytes"), before.get("changed_ns")) == (status.st_size, status.st_mtime_ns):
            return status.st_size, status.st_mtime_ns, str(before["digest"])
        return status.st_size, status.st_mtime_ns, digest_of(path)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(entry, files))
