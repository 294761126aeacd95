"""Filter banks exactly as SeamlessM4T was trained on them, computed when asked for or once, on disk.

80 log mel bins of 25 ms windows every 10 ms (Kaldi conventions, Povey window), normalised per utterance and bin, two
neighbours stacked: a frame is 160 values for 20 ms. The numbers are those of ``SeamlessM4TFeatureExtractor`` at the
frames that it does not mask, within 1e-4; where the count of windows is odd, it puts the last one, padded, behind the
mask, and we leave it out.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gdps_ds.data.audio import MISSING, SAMPLE_RATE, AudioError, load_audio
from gdps_ds.data.manifest import DataError, Utterance
from gdps_ds.data.parallel import map_in_order
from gdps_ds.data.table import UtteranceTable
from gdps_ds.files import atomic_folder, existing

Count = TypeVar("Count", int, NDArray[np.int64])

WINDOW = SAMPLE_RATE * 25 // 1000
HOP = SAMPLE_RATE * 10 // 1000
MEL_BINS = 80
STACKED = 2
FEATURES = MEL_BINS * STACKED
FULL_SCALE = 2**15
"""Kaldi takes samples as 16-bit integers."""
PREEMPHASIS = 0.97
FFT = 512
LOWEST_HERTZ = 20.0
ENERGY_FLOOR = float(np.finfo(np.float32).eps)
VARIANCE_FLOOR = 1e-7
BLOCK = 64
"""Windows at a time: memory of this size stays in the cache, which makes up a third of the speed."""
REVISION = 3
"""Raised whenever :func:`log_mel` or :func:`waveform_of` gives other numbers, so that stores of older ones are built again."""


def log_mel(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features of one utterance.

    Args:
        waveform: (samples,) mono, 16 kHz, in [-1, 1].

    Returns:
        (``frames_of_samples(samples)``, 160) float32.

    Raises:
        DataError: the waveform is too short for one frame.
    """
    if frames_of_samples(len(waveform)) == 0:
        raise DataError(f"{len(waveform)} samples at {SAMPLE_RATE} Hz are too short for one frame; raise data.min_seconds")
    with _one_thread():
        mel = _mel_energies(torch.from_numpy(waveform)).clamp_(min=ENERGY_FLOOR).log_()
        mel -= mel.mean(0)
        mel /= (mel.square().sum(0) / (len(mel) - 1) + VARIANCE_FLOOR).sqrt()
    normal: NDArray[np.float32] = mel[: len(mel) // STACKED * STACKED].reshape(-1, FEATURES).numpy()
    return normal


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices this small gain nothing from threads, and lose much where processes already fill the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _mel_energies(waveform: Tensor) -> Tensor:
    """(samples,) in [-1, 1] -> (windows, 80) float32.

    Double precision up to the spectrum: a bin may hold 1e-12 of its window's energy (above 4 kHz in telephone speech,
    say), which is below the rounding noise of a float32 transform, and normalisation scales every bin to the same size.

    Kaldi removes the mean of each window, then takes 0.97 of the sample before from each sample. Here each sample is filtered
    once for all its windows, which leaves 0.03 of the mean to remove. The first sample of a window needs no care, for the
    window's shape is zero there; nor does its place, for the power does not depend on it.
    """
    samples, shape, filters = waveform.double(), _scaled_window(), _mel_filters()
    filtered = torch.sub(samples[1:], samples[:-1], alpha=PREEMPHASIS).unfold(0, len(shape), HOP)
    mean = samples.unfold(0, WINDOW, HOP).mean(1, keepdim=True)
    energies = torch.empty(len(mean), MEL_BINS, dtype=torch.float32)
    padded = samples.new_zeros(BLOCK, FFT)
    for start in range(0, len(mean), BLOCK):
        stop = min(start + BLOCK, len(mean))
        block = padded[: stop - start]
        windows = block[:, : len(shape)]
        torch.sub(filtered[start:stop], mean[start:stop], alpha=1.0 - PREEMPHASIS, out=windows)
        windows *= shape
        squares = torch.view_as_real(torch.fft.rfft(block)).float().square_()
        torch.mm(squares[..., 0] + squares[..., 1], filters, out=energies[start:stop])
    return energies


@lru_cache(maxsize=1)
def _scaled_window() -> Tensor:
    """(399,) float64: Kaldi's default ("povey") window without its leading zero, times the scale of Kaldi's samples."""
    return FULL_SCALE * torch.hann_window(WINDOW, periodic=False, dtype=torch.float64)[1:] ** 0.85


@lru_cache(maxsize=1)
def _mel_filters() -> Tensor:
    """(257, 80) float32: triangles between neighbours of 82 points, equally spaced in mel = 1127 ln(1 + hertz / 700)."""
    mel = 1127.0 * np.log1p(np.linspace(0.0, SAMPLE_RATE / 2, FFT // 2 + 1) / 700.0)[:, None]
    points = np.linspace(1127.0 * np.log1p(LOWEST_HERTZ / 700.0), mel[-1, 0], MEL_BINS + 2)
    left, centre, right = points[:-2], points[1:-1], points[2:]
    triangles = np.minimum((mel - left) / (centre - left), (right - mel) / (right - centre))
    return torch.from_numpy(np.maximum(triangles, 0.0).astype(np.float32))


def frames_of_samples(samples: Count) -> Count:
    """Frames that :func:`log_mel` makes of 16 kHz waveforms."""
    windows = 1 + (samples - WINDOW) // HOP
    return windows * (windows > 0) // STACKED


def frames_of(seconds: float) -> int:
    """Frames of a prepared utterance's duration; exact, for that is a whole number of samples."""
    return frames_of_samples(round(seconds * SAMPLE_RATE))


def waveform_of(utterance: Utterance) -> NDArray[np.float32]:
    """Decode one prepared utterance: (samples,) at 16 kHz.

    Raises:
        AudioError: its audio cannot be read.
        DataError: the audio is not as long as the manifest says.
    """
    waveform = load_audio(utterance.audio, utterance.offset, utterance.duration)
    found, stated = frames_of_samples(len(waveform)), frames_of(utterance.duration or 0.0)
    if found != stated:
        raise DataError(
            f"{utterance.id}: {utterance.audio} has {found} frames, but its duration of {utterance.duration} s "
            f"stands for {stated}: the audio changed after it was measured; run launchers/prepare.py again where it wrote the "
            "manifest, and start again (where the run has trained, in another run.dir)"
        )
    return waveform


def features_of(utterance: Utterance) -> NDArray[np.float32]:
    """(frames, 160) of one prepared utterance; raises what :func:`waveform_of` does."""
    return log_mel(waveform_of(utterance))


class OnTheFlyFeatures:
    """Features decoded on every access; same interface as :class:`FeatureStore`."""

    def __init__(self, utterances: Sequence[Utterance]) -> None:
        self._utterances = utterances
        self.lengths = _lengths(utterances)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        return features_of(self._utterances[index])


class FeatureStore:
    """Features of a list of utterances in one memory-mapped file.

    The folder holds ``features.npy`` (all frames x 160, float32), ``lengths.npy`` (frames of each utterance) and
    ``key.json`` (a digest of everything that the features depend on).

    Attributes:
        lengths: (N,) int32 frames of each utterance.
    """

    def __init__(self, folder: Path) -> None:
        """Open a store that :meth:`build` made."""
        if not (folder / "key.json").is_file():
            raise DataError(f"{folder}: no feature store")
        self._folder = folder
        self.lengths: NDArray[np.int32] = np.load(folder / "lengths.npy")
        self._ends = np.cumsum(self.lengths, dtype=np.int64)
        self._frames: NDArray[np.float32] = np.load(folder / "features.npy", mmap_mode="r")

    @classmethod
    def build(cls, utterances: Sequence[Utterance], folder: Path, *, workers: int = 0, progress: bool = False) -> FeatureStore:
        """Compute the store, or open it where it already holds these utterances, settings and audio files.

        One process builds; the others wait for it and open. The folder appears whole or not at all.

        Raises:
            AudioError: audio that cannot be read any more.
            DataError: no utterances, unknown durations, audio that changed, a folder that is something else, or no room.
        """
        if folder.exists():
            if not (folder / "key.json").is_file():
                raise DataError(f"{folder}: exists and is no feature store; remove it or choose another run.dir")
            if cls.holds(utterances, folder):
                return cls(folder)
        key = _key(utterances)
        with atomic_folder(folder) as partial_folder:
            _fill(partial_folder, utterances, workers=workers, progress=progress)
            (partial_folder / "key.json").write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")
        return cls(folder)

    @staticmethod
    def holds(utterances: Sequence[Utterance], folder: Path) -> bool:
        """Whether a store is of these utterances, settings and audio files."""
        found: bool = json.loads((folder / "key.json").read_text(encoding="utf-8"))["key"] == _key(utterances)
        return found

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """(frames, 160) of one utterance: a read-only view of the file."""
        end = self._ends[index]
        return self._frames[end - self.lengths[index] : end]

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[Path]]:
        """Loader processes open the file again; a memory map would be pickled with all its contents."""
        return type(self), (self._folder,)


def _fill(folder: Path, utterances: Sequence[Utterance], *, workers: int, progress: bool) -> None:
    """Write ``features.npy`` and ``lengths.npy``; every process writes its utterances at their places."""
    lengths = _lengths(utterances)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    path, shape = folder / "features.npy", (int(lengths.sum()), FEATURES)
    frames = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    _reserve(path)
    jobs = ((start, utterance) for start, length, utterance in zip(starts, lengths, utterances, strict=True) if length)
    for _ in map_in_order(
        partial(_write, path), jobs, total=np.count_nonzero(lengths), workers=workers, progress=progress, label="filter banks"
    ):
        pass
    frames.flush()
    np.save(folder / "lengths.npy", lengths)


def _reserve(path: Path) -> None:
    """Take the room of a whole file: a disk that fills up under a memory map ends the process by a signal, without a word."""
    size = path.stat().st_size
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return  # a file system that cannot say
        path.unlink()
        raise DataError(
            f"{path.parent}: no room for features of {size / 1e9:.3g} GB ({error.strerror}); make room, take a run.dir "
            "elsewhere, or set data.cache_features: false"
        ) from None


def _write(path: Path, job: tuple[np.int64, Utterance]) -> None:
    start, utterance = job
    features = features_of(utterance)
    np.load(path, mmap_mode="r+")[start : start + len(features)] = features


def _lengths(utterances: Sequence[Utterance]) -> NDArray[np.int32]:
    if not utterances:
        raise DataError("no utterances to make features of")
    samples = np.rint(UtteranceTable.of(utterances).durations() * SAMPLE_RATE).astype(np.int64)
    return frames_of_samples(samples).astype(np.int32)


def _key(utterances: Sequence[Utterance]) -> str:
    """A digest of the utterances' audio (by name, size and time of change) and the settings."""
    digest = hashlib.blake2b(digest_size=16)
    settings = [SAMPLE_RATE, WINDOW, HOP, MEL_BINS, STACKED, VARIANCE_FLOOR, REVISION]
    digest.update(json.dumps(settings).encode())
    for utterance in utterances:
        if utterance.duration == 0.0:  # kept for its place in a test set: its audio may be anything
            digest.update(json.dumps([utterance.id, 0.0]).encode())
            continue
        try:
            status = Path(existing(utterance.audio)).stat()
        except FileNotFoundError:
            raise AudioError(MISSING, utterance.audio) from None
        entry = [
            utterance.id,
            utterance.audio,
            utterance.offset,
            utterance.duration,
            status.st_size,
            status.st_mtime_ns,
        ]
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()
