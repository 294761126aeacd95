"""Any stretch of a long MP3 file, at the cost of that stretch, with the samples of the whole file within rounding (1e-7).

A decoder that jumps into an MP3 file walks through all frames before, and begins with samples that are wrong, since a frame
leans on those before it. So the places of all frames are found once a file, from their headers alone, and a stretch is decoded
from a piece of the file that begins some frames early. What comes out depends on the file and the stretch only.
"""

from __future__ import annotations

import io
import mmap
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

Samples = NDArray[np.float32]

LEAD = 16
"""Frames that a piece begins early: a frame may lean on up to 511 bytes of those before, which are 24 bytes or longer each, and
overlaps with the last of them."""
DECODER_DELAY = 529
"""Samples that every decoder adds at the start, beside those that the encoder has noted in the file."""
FILES = 8
"""Files whose frames are remembered: 8 bytes a frame, 1 MB for an hour."""

_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_KBITS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_KBITS[0] = _KBITS[2]
_SAME_STREAM = 0xFFFE0C00
"""Bits of a frame's header that do not change within a file: sync, version, layer, rate."""


@dataclass(frozen=True)
class Mp3Frames:
    """Where the frames of a file are.

    Attributes:
        starts: (N + 1,) byte at which each frame of audio begins, and at which the last one ends.
        size: samples a frame.
        rate: samples a second.
        skipped: samples at the start that are not part of the audio (the delay of encoder and decoder).
        length: samples of the audio.
    """

    starts: NDArray[np.int64]
    size: int
    rate: int
    skipped: int
    length: int


class UnknownLength(io.BufferedReader):
    """A file that seems to be much longer than it is.

    libsndfile takes the length of an MP3 file without an index (a Xing or Info frame) from the bit rate of its first frame, and
    reads no further: half of the audio may be lost where the bit rate varies.
    """

    LONGER = 64
    """More than the highest bit rate is of the lowest."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        end = super().seek(offset, whence)
        return end if whence != io.SEEK_END or offset != 0 else super().seek(end * self.LONGER)


def has_index(path: str) -> bool:
    """Whether an MP3 file says how long it is, as encoders that cannot go back to its start (pipes) do not."""
    with Path(path).open("rb") as file:
        head = file.read(10)
        file.seek(_after_id3(head))
        start = file.read(4096)
    return any(tag in start for tag in (b"Xing", b"Info", b"VBRI"))


def decode(path: str, frames: Mp3Frames, start: int, count: int) -> Samples:
    """(samples, channels) of ``count`` samples from ``start`` on, or as many as there are."""
    first, last = start + frames.skipped, min(start + count, frames.length) + frames.skipped
    begin = max(first // frames.size - LEAD, 0)
    # The filter bank gives the end of a frame with the next one.
    end = min(-(-last // frames.size) + 2, len(frames.starts) - 1)
    with Path(path).open("rb") as file:
        file.seek(int(frames.starts[begin]))
        piece = file.read(int(frames.starts[end] - frames.starts[begin]))
    with soundfile.SoundFile(UnknownLength(io.BytesIO(piece))) as sound:
        block = np.empty(((end - begin) * frames.size, sound.channels), dtype=np.float32)
        found = sound.buffer_read_into(block, dtype="float32")
    # Counted from the end: a decoder may leave out frames at the start that lean on others it has not seen.
    offset = end * frames.size - found
    return block[max(first - offset, 0) : last - offset]


def frames_of(path: str) -> Mp3Frames | None:
    """The frames of a file; None where they do not follow upon each other as they should."""
    status = Path(path).stat()
    return _frames_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=FILES)
def _frames_of(path: str, size: int, time: int) -> Mp3Frames | None:
    """Files are told apart by size and time of change as well."""
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = _after_id3(data[:10])
        first = int.from_bytes(data[place : place + 4])
        version = first >> 19 & 3
        if first >> 21 != 0x7FF or first >> 17 & 3 != 1 or version not in _RATES or first >> 10 & 3 == 3:
            return None
        rate, samples = _RATES[version][first >> 10 & 3], 1152 if version == 3 else 576
        lengths = [samples // 8 * 1000 * kbits // rate for kbits in _KBITS[version]]
        starts = [place]
        while place + 4 <= size:
            header = int.from_bytes(data[place : place + 4])
            bits = header >> 12 & 15
            if (header ^ first) & _SAME_STREAM or not 0 < bits < 15:
                break
            place += lengths[bits] + (header >> 9 & 1)
            starts.append(place)
        if place > size:
            starts.pop()
        elif not _is_tag(data[place : place + 128]):
            return None
        delay, padding, is_index = _gaps(data[starts[0] : starts[0] + 512], version)
    places = np.array(starts[is_index:], dtype=np.int64)
    skipped = delay + DECODER_DELAY if delay or padding else 0
    length = (len(places) - 1) * samples - skipped - max(padding - DECODER_DELAY, 0)
    return Mp3Frames(places, samples, rate, skipped, length) if length > 0 else None


def _gaps(frame: bytes, version: int) -> tuple[int, int, bool]:
    """Samples that the encoder has put before and after the audio, and whether this first frame is an index, not audio."""
    mono, checked = frame[3] >> 6 == 3, not frame[1] & 1
    place = 4 + 2 * checked + ((17 if mono else 32) if version == 3 else (9 if mono else 17))
    if frame[place : place + 4] not in (b"Xing", b"Info"):
        return 0, 0, frame[36:40] == b"VBRI"
    flags = frame[place + 7]
    place += 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
    gaps = int.from_bytes(frame[place + 21 : place + 24])
    return gaps >> 12, gaps & 0xFFF, True


def _after_id3(head: bytes) -> int:
    """The byte after a tag at the start of a file, of which ``head`` holds the first ten bytes."""
    if head[:3] != b"ID3":
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + size + 10 * (head[5] >> 4 & 1)


def _is_tag(rest: bytes) -> bool:
    """Whether what follows the last frame is a tag, filling, or nothing."""
    return not rest.strip(b"\0") or rest.startswith((b"TAG", b"APETAGEX", b"ID3", b"LYRICSBEGIN"))
