"""Speech from any audio file that libsndfile reads: one segment, mono, at the model's rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from gdps_ds.data.manifest import DataError

SAMPLE_RATE = 16_000
"""Samples a second that SeamlessM4T's features are defined on."""

MISSING = "missing file"
UNREADABLE = "unreadable"
GIT_LFS = "Git-LFS pointer"
SHORTEN = "shorten-compressed SPHERE file; convert it with sph2pipe"
EMPTY = "empty audio"
ZERO_LENGTH = "zero-length segment"
BEYOND_END = "segment beyond the end"
NOT_FINITE = "NaN or infinite samples"


class AudioError(DataError):
    """Audio that cannot be used; ``reason`` is one of the constants above, fit for counting."""

    def __init__(self, reason: str, path: str, detail: str = "") -> None:
        super().__init__(reason, path, detail)
        self.reason, self.path, self.detail = reason, path, detail

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Segment:
    """Decoded speech, and what the file held before: its own rate and number of channels."""

    samples: NDArray[np.float32]
    native_rate: int
    channels: int


def load_audio(path: str, offset: float = 0.0, duration: float | None = None, rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """The samples of :func:`read_segment`: (samples,) float32 in [-1, 1], mono, ``rate`` a second."""
    return read_segment(path, offset, duration, rate).samples


def read_segment(path: str, offset: float = 0.0, duration: float | None = None, rate: int = SAMPLE_RATE) -> Segment:
    """Read ``duration`` seconds from ``offset`` on (None: to the end), without reading the rest of the file.

    A segment that only ends beyond the file gives the samples there are; so does a header that declares more bytes
    than follow it. Otherwise there are exactly ``round(duration * rate)`` samples.

    Raises:
        AudioError: nothing can be read.
    """
    if duration is not None and round(duration * rate) == 0:
        raise AudioError(ZERO_LENGTH, path, f"duration {duration} s")
    with _open(path) as file:
        start = round(offset * file.samplerate)
        if file.frames == 0:
            raise AudioError(EMPTY, path)
        if start >= file.frames:
            raise AudioError(BEYOND_END, path, f"offset {offset} s of {file.frames / file.samplerate:.3f} s")
        file.seek(start)
        # One sample more than asked for, so that rounding between the rates never leaves the segment short.
        wanted = -1 if duration is None else math.ceil(duration * file.samplerate) + 1
        samples = file.read(wanted, dtype="float32", always_2d=True)
        native_rate, channels = file.samplerate, file.channels
    if len(samples) == 0:
        raise AudioError(EMPTY, path)
    if not np.isfinite(samples).all():
        raise AudioError(NOT_FINITE, path)
    mono = soxr.resample(samples.mean(axis=1), native_rate, rate)
    return Segment(mono if duration is None else mono[: round(duration * rate)], native_rate, channels)


@contextmanager
def _open(path: str) -> Iterator[soundfile.SoundFile]:
    if not Path(path).is_file():
        raise AudioError(MISSING, path)
    try:
        with soundfile.SoundFile(path) as file:
            yield file
    except soundfile.LibsndfileError as error:
        raise AudioError(_reason(Path(path)), path, error.error_string) from None


def _reason(path: Path) -> str:
    """Why libsndfile refuses a file that is there."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError:
        return UNREADABLE
    if not start:
        return EMPTY
    if start.startswith(b"NIST_1A") and b"shorten" in start:
        return SHORTEN
    return GIT_LFS if start.startswith(b"version https://git-lfs") else UNREADABLE
