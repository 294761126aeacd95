"""Decode every utterance once, keep the usable ones with their true durations, and account for all the others.

Utterances come and go one at a time; of those that went by, only a hash of each id is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gdps_ds.data.audio import MISSING, SAMPLE_RATE, AudioError, Segment, read_segment
from gdps_ds.data.features import frames_of
from gdps_ds.data.manifest import DataError, Measured, Unusable, Utterance
from gdps_ds.data.parallel import map_in_order
from gdps_ds.data.preparation_report import NO_TEXT, Decoded, PreparationReport
from gdps_ds.data.text import has_text
from gdps_ds.files import existing

DUPLICATE = "duplicate id"
OTHER_LANGUAGE = "language not in the configuration"
TOO_SHORT = "too short"
TOO_LONG = "too long"
NOT_MEASURED = "no usable audio when its manifest was made"
TRUNCATED = "truncated or damaged file"
OVERRUN = "segment that ends far beyond its file"
SILENT = "no signal (digital silence)"
FAULTS = (TRUNCATED, OVERRUN, SILENT)
"""What training skips, and dev and test sets keep with a note."""
OPPOSITE = "with channels that cancel each other out, of which the loudest was taken"

CUT_TOLERANCE = 0.02
"""Seconds that a segment may reach beyond its file before it is counted as cut: one frame."""
TRUNCATED_SECONDS = 0.1
"""Seconds that may be missing of what a file's header declares before the file counts as truncated. Recorders that lose their
last buffers overstate by less: .045 s at most in Mboshi-French, where 67 of 4,616 files do."""
OVERRUN_SHARE = 0.1
"""Share of a segment that may lie beyond the end of its file, which annotators place roughly."""


def prepare(utterances: Iterable[Utterance], **options: Any) -> tuple[list[Utterance], PreparationReport]:
    """:func:`prepared` for what fits into a list, and the report of all."""
    report = PreparationReport()
    return list(prepared(utterances, report, **options)), report


def prepared(
    utterances: Iterable[Utterance],
    report: PreparationReport,
    *,
    languages: Sequence[str] | None,
    min_seconds: float,
    max_seconds: float,
    workers: int = 0,
    progress: bool = False,
    require_text: bool = True,
    too_long: Literal["skip", "cut"] = "skip",
    training: bool = True,
) -> Iterator[Utterance]:
    """Sort out what cannot be used, and fill in true durations.

    Args:
        report: what became of every utterance is added to it; complete when the last utterance is out.
        languages: source languages that are kept; None keeps all.
        min_seconds: shorter utterances are skipped.
        max_seconds: longer utterances are skipped, or cut to this.
        workers: decoding processes; the result does not depend on it.
        require_text: skip utterances without a translation; False is for decoding without references.
        progress: show a bar on stderr.
        too_long: ``cut`` keeps the beginning of what is too long, though its translation is of all of it.
        training: skip what would teach something wrong, as its audio is not what was translated: truncated files, segments of
            which much lies beyond the file, digital silence. False is for dev and test sets, which are translated whole: those
            are kept and noted, limits of length do not hold, and an utterance whose audio cannot be used stays in its place,
            with a duration of less than a frame.

    Yields:
        The usable utterances in their order, durations being whole samples at 16 kHz, audio under its name on disk.

    Raises:
        DataError: ``min_seconds`` and ``max_seconds`` leave nothing.
    """
    if not 0 <= min_seconds < max_seconds:
        raise DataError(f"min_seconds ({min_seconds}) must be at least 0 and below max_seconds ({max_seconds})")
    checked = _checked(utterances, languages, require_text, training)
    if not training:
        min_seconds, max_seconds = 0.0, math.inf
    measure = partial(_measure, min_seconds=min_seconds, max_seconds=max_seconds, shorten=too_long == "cut", training=training)
    for utterance, outcome in map_in_order(measure, checked, workers=workers, progress=progress, label="decoding"):
        if isinstance(outcome, _NoAudio) and not training:
            report.leave(utterance, outcome)
            yield _with_duration(utterance, 0.0)
        elif isinstance(outcome, str):
            report.skip(utterance, outcome)
        else:
            report.keep(utterance, outcome)
            yield _with_duration(utterance, outcome.seconds)


def _with_duration(utterance: Utterance, seconds: float) -> Utterance:
    return Utterance(**{name: getattr(utterance, name) for name in _FIELDS} | {"duration": seconds})


_FIELDS = tuple(field.name for field in fields(Utterance))


def overlaps(utterances: Iterable[Utterance], others: Mapping[str, Iterable[Utterance]]) -> dict[str, int]:
    """How many utterances come from the same place of the same file as one of another split, or are the same sentence.

    A sentence is the same where transcript and translation are, as far as they are known. ``others`` and the result go by the
    names of the splits; those that share nothing are left out.
    """
    ours = _marks(utterances)
    counts = {name: int(np.isin(ours, _marks(split)).any(axis=1).sum()) for name, split in others.items()}
    return {name: count for name, count in counts.items() if count}


def _marks(utterances: Iterable[Utterance]) -> NDArray[np.int64]:
    """(N, 2) what makes two utterances of two splits the same, hashed: their place, and their texts if there are any."""
    hashes = np.fromiter((mark for utterance in utterances for mark in _marks_of(utterance)), dtype=np.int64)
    return hashes.reshape(-1, 2)


def _marks_of(utterance: Utterance) -> tuple[int, int]:
    place = hash((utterance.audio or utterance.id, utterance.offset))
    texts = (utterance.source_text or "", utterance.target_text or "")
    return place, hash(texts) if any(texts) else place


class _NoAudio(str):
    """A reason why an utterance cannot be used that is its audio's, not its text's or its place in the corpus."""


def _checked(
    utterances: Iterable[Utterance], languages: Sequence[str] | None, require_text: bool, training: bool
) -> Iterator[tuple[Utterance, str | None]]:
    """Each utterance with what is wrong with it as far as can be told without its audio."""
    seen: set[int] = set()  # hashes: ids are long
    for utterance in utterances:
        if isinstance(utterance, Unusable) and (training or not utterance.stays):
            yield utterance, utterance.reason
        elif languages is not None and utterance.source_lang not in languages:
            yield utterance, OTHER_LANGUAGE
        elif (identity := hash(utterance.id)) in seen:
            yield utterance, DUPLICATE
        elif require_text and not has_text(utterance.target_text):
            yield utterance, utterance.reason if isinstance(utterance, Unusable) else NO_TEXT
        else:
            seen.add(identity)
            yield utterance, _NoAudio(utterance.reason) if isinstance(utterance, Unusable) else None


def _measure(
    checked: tuple[Utterance, str | None], *, min_seconds: float, max_seconds: float, shorten: bool, training: bool
) -> tuple[Utterance, Decoded | str]:
    """Decode one utterance unless a fault is known or its duration is; a string is the reason why it cannot be used."""
    utterance, fault = checked
    if fault is not None:
        return utterance, fault
    if not utterance.audio:
        return utterance, _NoAudio(NOT_MEASURED)
    utterance = replace(utterance, audio=existing(utterance.audio))
    asked = utterance.duration
    if isinstance(utterance, Measured) and asked is not None:
        if not Path(utterance.audio).is_file():
            return utterance, _NoAudio(MISSING)
        if asked == 0.0:
            return utterance, _NoAudio(NOT_MEASURED)
        segment, seconds = None, asked
    else:
        # No more than it takes to see that it is too long: a segment without an end may lie in a talk of hours.
        limit = min(asked if asked is not None else math.inf, max_seconds + 1.0)
        try:
            segment = read_segment(utterance.audio, utterance.offset, limit if math.isfinite(limit) else None)
        except AudioError as error:
            return utterance, _NoAudio(error.reason)
        seconds = len(segment.samples) / SAMPLE_RATE
    if segment is not None:
        faults = _faults(segment, seconds, asked and min(asked, limit))
        notes = [*faults, *([OPPOSITE] if segment.opposite else [])]
    else:
        notes = list(utterance.notes) if isinstance(utterance, Measured) else []
        faults = [note for note in notes if note in FAULTS]
    if training and faults and faults[0] != SILENT:
        return utterance, faults[0]
    if seconds < min_seconds or frames_of(seconds) == 0:
        return utterance, _NoAudio(TOO_SHORT)
    longer = seconds > max_seconds
    if longer and not shorten:
        return utterance, TOO_LONG
    if training and faults:
        return utterance, faults[0]
    ends_early = not longer and asked is not None and asked - seconds > CUT_TOLERANCE
    kept = math.floor(max_seconds * SAMPLE_RATE) / SAMPLE_RATE if longer else seconds
    if segment is None:
        return utterance, Decoded(kept, ends_early, longer, 0, 0, tuple(notes))
    ends_early |= segment.missing > CUT_TOLERANCE
    return utterance, Decoded(kept, ends_early, longer, segment.native_rate, segment.channels, tuple(notes))


def _faults(segment: Segment, seconds: float, asked: float | None) -> list[str]:
    """Why what was decoded, ``seconds`` long where ``asked`` were asked for, is not what was translated."""
    lost = 0.0 if asked is None else asked - seconds
    overrun = lost > max(TRUNCATED_SECONDS, OVERRUN_SHARE * (asked or 0.0))
    found = {TRUNCATED: segment.missing > TRUNCATED_SECONDS, OVERRUN: overrun, SILENT: segment.silent}
    return [fault for fault, there in found.items() if there]
