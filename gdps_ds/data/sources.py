"""Which files prepared data were made from, and which of them have changed since.

Readers :func:`note` whatever they read or look for, before they do: also what is not there, for it may come. That costs one
stat a file, and so does looking again, thirty-two at a time; a file whose size or time differs is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]

from gdps_ds.data.manifest import MAX_LISTED_FAULTS, DataError, Utterance
from gdps_ds.files import atomic_path, digest_of, digest_of_ends, existing

Entry = tuple[int, int, str]
"""Size in bytes, time of change in ns, and a digest; of a folder's names, their number, 0, and the names; or :data:`NONE`."""
NONE: Entry = (-1, -1, "")
Files = dict[tuple[str, str], Entry]
"""(path, kind) -> how it was when it was noted, without a digest yet. Kinds are the four below, or else the patterns of the
names that a folder was searched for, divided by commas."""

CONTENT, ENDS = "content", "ends"
"""Where size or time differ, a file is compared by a digest: of all of it, or, for audio, large tables and weights, of its
ends, so that a copy that has lost its times is the same file."""
REVISION, MODEL = "revision ", "model"
"""Of a data set's or a model's name on the hub: compared by the commit that it is, where the hub, or its cache, can tell."""
THREADS, TOGETHER = 32, 256
SHOWN = 3
_NOTED: ContextVar[Files | None] = ContextVar("noted", default=None)


def note(path: Path, kind: str = CONTENT) -> None:
    """A reader is about to read ``path``, which need not be there, or to search it for the names that ``kind`` says."""
    if (noted := _NOTED.get()) is not None:
        add(noted, path, kind)


def add(files: Files, path: Path, kind: str = CONTENT) -> None:
    """Note ``path`` in ``files`` as it is now, unless it was noted before."""
    if (str(path), kind) not in files:
        files[str(path), kind] = _look((str(path), kind))


def is_there(path: Path) -> bool:
    """Whether a file that a corpus may lack is there; that it comes or goes later is seen."""
    note(path)
    return path.is_file()


def missed(path: Path) -> None:
    """A reader has looked for ``path`` and goes on elsewhere. Where its folder is not there either, that stands for it."""
    if _NOTED.get() is not None:
        note(path if path.parent.is_dir() else path.parent)


def note_tree(folder: Path, besides: Path) -> None:
    """A library is about to read data files anywhere in ``folder``, but for the folder ``besides`` and hidden ones."""
    if _NOTED.get() is not None:
        for place, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".") and Path(place, name) != besides]
            note(Path(place), "*")
            for name in names:
                if not name.startswith("."):
                    note(Path(place, name), CONTENT if name.endswith((".md", ".json", ".yaml")) else ENDS)


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
            add(files, Path(utterance.audio), ENDS)
        yield utterance


def write_sources(path: Path, files: Files) -> None:
    """Write down how ``files`` are.

    Raises:
        DataError: some are not as they were when they were noted; which of the two was read cannot be known.
    """
    now = _all_digested(dict.fromkeys(files, NONE))
    if changed := [line for item, entry in zip(files, now, strict=True) if (line := _difference(item, files[item], entry))]:
        raise DataError(
            f"{len(changed)} file(s) changed while they were read; start again when they stay as they are: "
            f"{'; '.join(changed[:MAX_LISTED_FAULTS])}"
        )
    names = {"path": [name for name, _ in files], "kind": [kind for _, kind in files]}
    values = {name: [entry[place] for entry in now] for place, name in enumerate(("bytes", "changed_ns", "digest"))}
    rows = pa.table(names | values)
    with atomic_path(path) as partial, pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)


def changes(path: Path) -> list[str]:
    """What has happened since to the files that :func:`write_sources` wrote down in ``path``, one a line."""
    rows = pa.ipc.open_file(str(path)).read_all().to_pylist()
    known = {(row["path"], row["kind"]): (row["bytes"], row["changed_ns"], row["digest"]) for row in rows}
    now = _all_digested(known)
    found = (_difference(item, known[item], entry) for item, entry in zip(known, now, strict=True))
    return list(dict.fromkeys(filter(None, found)))


def _difference(item: tuple[str, str], before: Entry, now: Entry) -> str:
    """What has become of a file or a folder, "" for nothing; a digest of "" is one that is not known."""
    path, kind = item
    if NONE in (before, now):
        return "" if before == now else f"{path} was {'added' if before == NONE else 'removed'}"
    if "*" in kind:
        old, new = (dict.fromkeys(filter(None, entry[2].split("\n"))) for entry in (before, now))
        gone, come = ([name for name in these if name not in those] for these, those in ((old, new), (new, old)))
        parts = [f"{_some(names)} {what}" for names, what in ((come, "added"), (gone, "removed")) if names]
        return f"{path}: {', '.join(parts)}" if parts else ""
    same = before[2] == now[2] if before[2] and now[2] else before[:2] == now[:2]
    return "" if same else f"{path} was changed"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more} {'was' if len(names) == 1 else 'were'}"


def _look(item: tuple[str, str]) -> Entry:
    name, kind = item
    if kind == MODEL or kind.startswith(REVISION):
        return 0, 0, _commit(name, kind)
    path = Path(existing(name))
    try:
        if kind in (CONTENT, ENDS):
            status = path.stat()
            return status.st_size, status.st_mtime_ns, ""
        found = sorted(file.name for file in path.iterdir() if not file.name.startswith("."))
    except OSError:
        return NONE
    patterns = kind.lower().split(",")
    found = [each for each in found if any(fnmatch(each.lower(), pattern) for pattern in patterns)]
    return len(found), 0, "\n".join(found)


def _commit(name: str, kind: str) -> str:
    """Which commit of a data set or a model on the hub this is now; "" where that cannot be known."""
    from huggingface_hub import HfApi, try_to_load_from_cache  # takes a second, which only names on the hub should pay

    try:
        if kind == MODEL:
            return str(HfApi().model_info(name, timeout=5.0).sha)
        return str(HfApi().dataset_info(name, revision=kind.removeprefix(REVISION), timeout=5.0).sha)
    except Exception:  # of many types, as there may be no network, no such name, or no permission
        # What is loaded then is what the cache holds.
        cached = try_to_load_from_cache(name, "config.json") if kind == MODEL else None
        return Path(cached).parent.name if isinstance(cached, str) else ""


def _digested(item: tuple[str, str], before: Entry = NONE) -> Entry:
    """How a file is now, with the digest of its content where that is compared, and is not known from ``before``."""
    entry, path = _look(item), Path(existing(item[0]))
    if item[1] not in (CONTENT, ENDS) or not path.is_file():
        return entry
    if entry[:2] == before[:2]:
        return (*entry[:2], before[2])
    return (*entry[:2], digest_of(path) if item[1] == CONTENT else digest_of_ends(path))


def _all_digested(files: Files) -> list[Entry]:
    items = list(files.items())
    parts = (items[start : start + TOGETHER] for start in range(0, len(items), TOGETHER))
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda part: [_digested(item, before) for item, before in part], parts)
        return list(chain.from_iterable(found))
