"""Files and folders that are whole or not there: written aside, synced, then renamed; and paths as users write them."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import unicodedata
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
"""Names that :func:`atomic_path` gives."""
_UMASK = os.umask(0)
os.umask(_UMASK)


END = 65_536
"""Bytes at each end of a file that :func:`digest_of_ends` reads."""


@contextmanager
def atomic_write(path: Path) -> Iterator[TextIO]:
    """Open a text file that takes the place of ``path`` only when the block ends without an error."""
    with atomic_path(path) as temporary, temporary.open("x", encoding="utf-8", newline="\n") as file:
        yield file


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside ``path`` for a file that takes its place only when the block ends without an error.

    Raises:
        OSError: naming ``path``, where the disk is full; the file that was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        permit(temporary)
        sync(temporary)
        temporary.replace(path)
    except Exception as error:
        # Libraries tell of a full disk by errors of their own, and name no file.
        number = errno.ENOSPC if "(os error 28)" in str(error) else getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path`` that takes its place only when the block ends without an error.

    One process at a time may write it. A kill between the two renames at the end leaves neither the old nor the new one under
    its name: it is for what can be made again.
    """
    # A fixed name, so that what a killed process left behind is cleared away by the next one.
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    replaced = path.with_name(f".{path.name}.replaced.partial")
    shutil.rmtree(replaced, ignore_errors=True)
    if path.exists():
        path.rename(replaced)
    temporary.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


def clear_partial(folder: Path, spared: str) -> int:
    """Remove what killed processes have left in ``folder`` of files and folders that were being written; gives its bytes.

    No other process may be writing there, but the file ``spared``.
    """
    size = 0
    for path in folder.glob(".*"):
        if path.name.startswith(f".{spared}."):
            continue
        if _TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            size += path.stat().st_size
            path.unlink()
        elif path.name.endswith(".partial") and path.is_dir() and not path.is_symlink():
            size += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            shutil.rmtree(path)
    return size


def existing(path: str) -> str:
    """``path``, or the file that it means where names on disk are in the other Unicode normal form, NFC or NFD.

    macOS writes names that it copies in NFD; most other programs write NFC. A path of which there is no such file stays.
    """
    if path.isascii() or Path(path).exists():
        return path
    found = Path()
    for part in Path(path).parts:
        forms = (part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part))
        step = next((found / form for form in forms if (found / form).exists()), None)
        if step is None:
            return path
        found = step
    return str(found)


def permit(path: Path) -> None:
    """Give a file the permissions of any new file: safetensors writes files that nobody but their owner can read."""
    path.chmod(0o666 & ~_UMASK)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_ends(path: Path) -> str:
    """SHA-256 of a file's first and last :data:`END` bytes, in hex: cheap for audio and weights, whatever their size."""
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(END))
        file.seek(max(0, path.stat().st_size - END))
        digest.update(file.read(END))
    return digest.hexdigest()


def expanded(path: str) -> str:
    """``path`` with ``~`` and environment variables written out: shells leave them alone in ``run.dir=~/x`` and ``--out=~/x``.

    Raises:
        ValueError: there is no such variable, or no such user.
    """
    found = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111  (also names on the hub)
    if unset := re.search(r"\$(\w+|\{\w+\})", found, re.ASCII):
        raise ValueError(f"the environment variable {unset[0]} is not set")
    if found.startswith("~"):
        raise ValueError(f"there is no home folder {found.partition('/')[0]}")
    return found
