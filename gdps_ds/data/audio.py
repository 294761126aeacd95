"""Speech from any audio file that libsndfile reads: one segment, mono, at the model's rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from gdps_ds.data import mp3
from gdps_ds.data.containers import EMPTY as EMPTY
from gdps_ds.data.containers import GIT_LFS as GIT_LFS
from gdps_ds.data.containers import SHORTEN as SHORTEN
from gdps_ds.data.containers import UNREADABLE as UNREADABLE
from gdps_ds.data.containers import StreamedWav, kind_of, knows_length, promised_frames, streamed_wav
from gdps_ds.data.manifest import DataError
from gdps_ds.files import existing

SAMPLE_RATE = 16_000
"""Samples a second that SeamlessM4T's features are defined on."""

MISSING = "missing file"
ZERO_LENGTH = "zero-length segment"
BEYOND_END = "segment beyond the end"
CUT_OFF = "in the missing part of a truncated or damaged file"
NOT_FINITE = "NaN or infinite samples"

BLOCK = 2**20
"""Frames that are read together: a talk of hours is never held with all its channels."""
LEAD_SECONDS = 1.0
"""Audio that is decoded before a segment of an MP3 file with frames that cannot be followed, and thrown away."""
SILENT_RANGE = 2.0**-15
"""Difference between the largest and the smallest sample below which there is no signal: one step of 16 bits."""
OPPOSITE = 0.2
"""Energy of the sum of channels over the sum of their energies: 2 where two are alike, 1 where they have nothing to do with
each other, 0 where they cancel out. Below this, their mean is not what was said."""


class AudioError(DataError):
    """Audio that cannot be used; ``reason`` is one of the constants above or in ``containers``, fit for counting."""

    def __init__(self, reason: str, path: str, detail: str = "") -> None:
        super().__init__(reason, path, detail)
        self.reason, self.path, self.detail = reason, path, detail

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Segment:
    """Decoded speech, and what the file held before.

    Attributes:
        samples: (samples,) mono.
        native_rate: samples a second in the file. channels: those of the file.
        missing: seconds of the segment that the file has by its own header, and that are not there; infinity where the file is
            cut off and nothing tells how much it has lost.
        opposite: the channels cancel each other out, and the loudest alone was taken.
        silent: there is no signal in any channel.
    """

    samples: NDArray[np.float32]
    native_rate: int
    channels: int
    missing: float = 0.0
    opposite: bool = False
    silent: bool = False


class _Mix:
    """Blocks of frames mixed down as they come, with what has to be known of their channels.

    Args:
        channel: takes this channel alone; None takes the mean of all.
    """

    def __init__(self, channel: int | None = None) -> None:
        self._channel, self.mono = channel, np.empty(0, dtype=np.float32)
        self.channels, self._total_squares = 0, 0.0
        self._low, self._high, self._sums, self._squares = np.full(1, np.inf), np.full(1, -np.inf), np.zeros(0), np.zeros(0)

    def add(self, block: NDArray[np.float32]) -> None:
        """``block``: (frames, channels)."""
        if not len(block):
            return
        if not self.channels:
            self.channels = block.shape[1]
            self._sums, self._squares = np.zeros(self.channels), np.zeros(self.channels)
        count, channels = len(self.mono), np.ascontiguousarray(block.T)
        # Grown in place: a list of blocks that is joined in the end would take twice the memory.
        self.mono.resize(count + len(block), refcheck=False)
        self.mono[count:] = channels.mean(axis=0) if self._channel is None else channels[self._channel]
        self._low, self._high = np.minimum(self._low, channels.min(axis=1)), np.maximum(self._high, channels.max(axis=1))
        self._sums += channels.sum(axis=1, dtype=np.float64)
        self._squares += np.square(channels, dtype=np.float64).sum(axis=1)
        if self.channels > 1:
            self._total_squares += float(np.square(channels.sum(axis=0, dtype=np.float64)).sum())

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self._squares).all())

    @property
    def silent(self) -> bool:
        return bool(np.all(self._high - self._low < SILENT_RANGE))

    @property
    def opposite(self) -> bool:
        """Whether there is a signal, and channels cancel each other out, apart from what is constant in them."""
        if self.channels < 2 or self.silent:
            return False
        count = len(self.mono)
        together = self._total_squares - self._sums.sum() ** 2 / count
        apart = (self._squares - self._sums**2 / count).sum()
        return bool(together < OPPOSITE * apart)

    @property
    def loudest(self) -> int:
        return int(self._squares.argmax())


@dataclass(frozen=True)
class _Decoded:
    """One frame or more of a segment, their rate, and the frame up to which the file goes by its header."""

    mix: _Mix
    rate: int
    promised: float


def load_audio(path: str, offset: float = 0.0, duration: float | None = None, rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """The samples of :func:`read_segment`: (samples,) float32 in [-1, 1], mono, ``rate`` a second."""
    return read_segment(path, offset, duration, rate).samples


def read_segment(path: str, offset: float = 0.0, duration: float | None = None, rate: int = SAMPLE_RATE) -> Segment:
    """Read ``duration`` seconds from ``offset`` on (None: to the end), without decoding the rest of the file.

    A segment that only ends beyond the file gives the samples there are; so does a file that is cut off, or whose header
    does not say how long it is. Otherwise there are exactly ``round(duration * rate)`` samples. Those of a segment are the
    same as in the whole file, up to the rounding of the decoder. A name in another Unicode normal form than the file's is
    found.

    Raises:
        AudioError: nothing can be read.
    """
    if duration is not None and round(duration * rate) == 0:
        raise AudioError(ZERO_LENGTH, path, f"duration {duration} s")
    path = existing(path)
    decoded = _decode(path, offset, duration)
    mix, native_rate = decoded.mix, decoded.rate
    if not mix.is_finite:
        raise AudioError(NOT_FINITE, path)
    start, length = round(offset * native_rate), len(mix.mono)
    wanted = math.inf if duration is None else start + duration * native_rate
    if mix.opposite:
        # Read again, as all channels of a talk of hours are not held: few files are so.
        decoded = _decode(path, offset, duration, mix.loudest)
    samples = soxr.resample(decoded.mix.mono, native_rate, rate)
    return Segment(
        samples if duration is None else samples[: round(duration * rate)],
        native_rate,
        mix.channels,
        missing=max(min(decoded.promised, wanted) - start - length, 0.0) / native_rate,
        opposite=mix.opposite,
        silent=mix.silent,
    )


def _decode(path: str, offset: float, duration: float | None, channel: int | None = None) -> _Decoded:
    """What there is of a segment: one frame at least. ``channel`` as :class:`_Mix` takes it."""
    mix = _Mix(channel)
    with _open(path) as file:
        start, rate = round(offset * file.samplerate), file.samplerate
        # One frame more than asked for, so that rounding between the rates never leaves the segment short.
        wanted = None if duration is None else math.ceil(duration * rate) + 1
        index = mp3.frames_of(path) if file.format == "MP3" and (start or not mp3.has_index(path)) else None
        if index is not None:
            wanted = index.length - start if wanted is None else wanted
            if start < index.length:
                mix.add(mp3.decode(path, index, start, wanted))
            promised = float(file.frames) if mp3.has_index(path) else 0.0
        else:
            promised = promised_frames(path, file)
            damaged = _read(file, start, wanted, mix)
            promised = math.inf if damaged and not knows_length(file) else promised
    if len(mix.mono):
        return _Decoded(mix, rate, promised)
    if start < promised:
        raise AudioError(CUT_OFF, path, f"offset {offset} s")
    raise AudioError(BEYOND_END if start else EMPTY, path, f"offset {offset} s" if start else "")


def _read(file: soundfile.SoundFile, start: int, wanted: int | None, mix: _Mix) -> bool:
    """Add up to ``wanted`` frames from ``start`` on to ``mix``, a block at a time; whether an error has ended them.

    libsndfile fails at the place where a file is cut off, and soundfile after the last frame of a FLAC file that does not say
    how many it has; neither tells how many frames came before. The buffer shows it: what was not written is NaN.
    """
    if knows_length(file):
        wanted = min(file.frames - start, file.frames if wanted is None else wanted)
        if wanted <= 0:
            return False
    lead = min(start, round(LEAD_SECONDS * file.samplerate)) if file.format == "MP3" else 0
    try:
        file.seek(start - lead)
    except soundfile.LibsndfileError:
        return False
    wanted, count = None if wanted is None else wanted + lead, 0
    while wanted is None or count < wanted:
        size = BLOCK if wanted is None else min(BLOCK, wanted - count)
        block = np.full((size, file.channels), np.nan, dtype=np.float32)
        try:
            found, error = file.buffer_read_into(block, dtype="float32"), None
        except soundfile.LibsndfileError as caught:
            found, error = int(np.argmax(np.append(np.isnan(block[:, 0]), True))), caught
        mix.add(block[max(lead - count, 0) : found])
        count += found
        if found < size or error is not None:
            return error is not None and error.code != _SEEK_FAILED
    return False


_SEEK_FAILED = 39
"""libsndfile's error where soundfile seeks to the end of what it has read, and the file does not say where its end is."""


@contextmanager
def _open(path: str) -> Iterator[soundfile.SoundFile]:
    if not Path(path).is_file():
        raise AudioError(MISSING, path)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(soundfile.SoundFile(path))
            if file.frames == 0 and (place := streamed_wav(path)) is not None:
                file = stack.enter_context(soundfile.SoundFile(StreamedWav(path, place)))
        except (soundfile.LibsndfileError, TypeError) as error:  # the latter for names that soundfile takes as raw samples
            raise AudioError(kind_of(Path(path)), path, getattr(error, "error_string", "")) from None
        yield file
