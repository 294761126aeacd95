"""What audio files say of themselves, before and beside decoding: what kind they are, and how long they mean to be."""

from __future__ import annotations

import io
import re
from pathlib import Path

import soundfile

EMPTY = "empty audio"
UNREADABLE = "unreadable"
GIT_LFS = "Git-LFS pointer"
SHORTEN = "shorten-compressed SPHERE file; convert it with sph2pipe"
HEADERLESS = "raw samples without a header; convert them: ffmpeg -f s16le -ar RATE -ac CHANNELS -i FILE NEW.flac"
BLANK = "zero bytes only: a download or copy that failed; fetch it again"
CONVERT = "libsndfile does not read it; convert it: ffmpeg -i FILE NEW.flac"
FETCH = "a download that failed; fetch it again"
UNPACK = "unpack it"
HEAD = 1024
"""Bytes at the start of a file that tell its kind."""

_MEDIA = f"{{}} file; {CONVERT}"
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", GIT_LFS),
    (4, b"ftyp", _MEDIA.format("MP4/M4A/MOV")),
    (0, b"\x1a\x45\xdf\xa3", _MEDIA.format("WebM/Matroska")),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _MEDIA.format("WMA/ASF")),
    (0, b"#!AMR", _MEDIA.format("AMR")),
    (0, b"FLV\x01", _MEDIA.format("FLV")),
    (0, b"\0\0\x01\xba", _MEDIA.format("MPEG video")),
    (8, b"AVI ", _MEDIA.format("AVI")),
    (28, b"Speex   ", _MEDIA.format("Ogg/Speex")),
    (0, b"wvpk", _MEDIA.format("WavPack")),
    (0, b"MAC ", _MEDIA.format("Monkey's Audio")),
    (0, b"\xff\xf1", _MEDIA.format("AAC")),
    (0, b"\xff\xf9", _MEDIA.format("AAC")),
    (0, b"PK\x03\x04", f"zip archive; {UNPACK}"),
    (0, b"\x1f\x8b", f"gzip archive; {UNPACK}"),
    (0, b"BZh", f"bzip2 archive; {UNPACK}"),
    (0, b"\xfd7zXZ\0", f"xz archive; {UNPACK}"),
    (0, b"\x28\xb5\x2f\xfd", f"zstd archive; {UNPACK}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"7z archive; {UNPACK}"),
    (0, b"Rar!", f"rar archive; {UNPACK}"),
    (257, b"ustar", f"tar archive; {UNPACK}"),
    (0, b"%PDF", f"PDF document: {FETCH}"),
)
_PAGES = ((b"<!doctype html", "HTML page"), (b"<html", "HTML page"), (b"<", "XML document"), (b"{", "JSON"), (b"[", "JSON"))

_OVERSTATED = re.compile(r"^\s*(?:data|Data Size|SSND|riff)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
"""Lines of libsndfile's log of a file whose header declares more bytes of audio than follow."""
_SPHERE_COUNT = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE)
_STREAMED = 2**31 - 2**20
"""Bytes from which on a declared size is what a program writes that does not know it: sox, arecord and ffmpeg take other values
of 31 or 32 bits."""
_UNKNOWN_FRAMES = 2**62
"""Frames from which on libsndfile means that it does not know."""
_WAV_SIZE = b"\xff\xff\xff\xff"
_OTHER_CHUNKS = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"fact", b"cue ")
"""Names of what may follow the audio of a WAV file."""


def kind_of(path: Path) -> str:
    """Why libsndfile refuses a file that is there: what the file is, and what to do with it."""
    try:
        with path.open("rb") as file:
            start = file.read(HEAD)
    except OSError:
        return UNREADABLE
    if not start:
        return EMPTY
    if start.startswith(b"NIST_1A") and b"shorten" in start:
        return SHORTEN
    for place, signature, kind in _SIGNATURES:
        if start.startswith(signature, place):
            return kind
    if not start.strip(b"\0"):
        return BLANK
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, kind in _PAGES:
        if text.startswith(beginning):
            return f"{kind}: {FETCH}"
    return HEADERLESS if path.suffix.lower() in (".raw", ".pcm") else UNREADABLE


def knows_length(file: soundfile.SoundFile) -> bool:
    """Whether ``frames`` of an open file is a number of frames; FLAC that was written to a pipe does not have any."""
    return bool(file.frames < _UNKNOWN_FRAMES)


def promised_frames(path: str, file: soundfile.SoundFile) -> float:
    """Frames that an open file has by its own header, which libsndfile cuts down to those there are.

    Infinity where the file is cut off and nothing tells how much it has lost.
    """
    if not knows_length(file):
        return 0.0
    if file.format == "OGG":
        return float("inf") if _last_page_is_cut(path) else float(file.frames)
    if file.format == "NIST":
        with Path(path).open("rb") as opened:
            stated = _SPHERE_COUNT.search(opened.read(HEAD))
        return float(max(int(stated[1]), file.frames)) if stated else float(file.frames)
    overstated = _OVERSTATED.search(file.extra_info)
    if overstated is None:
        return float(file.frames)
    declared, present = map(int, overstated.groups())
    return float(file.frames) if declared >= _STREAMED or present == 0 else file.frames * declared / present


def _last_page_is_cut(path: str) -> bool:
    """Whether the last page of an Ogg file, of at most 65,307 bytes, lacks its end."""
    with Path(path).open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 2**16))
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return len(page) < 27 or len(segments) < page[26] or len(page) < 27 + len(segments) + sum(segments)


class StreamedWav(io.FileIO):
    """A WAV file that declares no audio, as of a program that could not go back to the header, read as if it declared all."""

    def __init__(self, path: str, place: int) -> None:
        """``place``: the byte at which the size of the audio stands, from :func:`streamed_wav`."""
        super().__init__(path)
        self._place = place

    def readinto(self, buffer: bytearray, /) -> int | None:  # type: ignore[override]
        start, view = self.tell(), memoryview(buffer).cast("B")
        count = super().readinto(view)
        for shift, byte in enumerate(_WAV_SIZE):
            if start <= self._place + shift < start + (count or 0):
                view[self._place + shift - start] = byte
        return count


def streamed_wav(path: str) -> int | None:
    """Where a WAV file says that it holds no audio though bytes follow that are no other part of it; None in any other file."""
    with Path(path).open("rb") as file:
        start, size = file.read(2**16), file.seek(0, io.SEEK_END)
    if start[:4] != b"RIFF" or start[8:12] != b"WAVE":
        return None
    place = 12
    while place + 8 <= len(start):
        name, length = start[place : place + 4], int.from_bytes(start[place + 4 : place + 8], "little")
        if name == b"data":
            is_audio = start[place + 8 : place + 12] not in _OTHER_CHUNKS
            return place + 4 if length == 0 and size > place + 8 and is_audio else None
        place += 8 + length + length % 2
    return None
