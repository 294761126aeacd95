"""Decode every utterance once, keep the usable ones with their true durations, and account for all the others.

Utterances come and go one at a time; of those that went by, only a hash of each id is kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
from numpy.typing import NDArray

from gdps_ds.data.audio import MISSING, SAMPLE_RATE, AudioError, Segment, load_audio, read_segment
from gdps_ds.data.features import frames_of
from gdps_ds.data.manifest import DataError, Measured, Unusable, Utterance
from gdps_ds.data.parallel import map_in_order
from gdps_ds.data.text import has_text
from gdps_ds.files import atomic_write, existing

DUPLICATE = "duplicate id"
OTHER_LANGUAGE = "language not in the configuration"
NO_TEXT = "empty text"
TOO_SHORT = "too short"
TOO_LONG = "too long"
NOT_MEASURED = "no usable audio when its manifest was made"
TRUNCATED = "truncated or damaged file"
OVERRUN = "segment that ends far beyond its file"
SILENT = "no signal (digital silence)"
OPPOSITE = "with channels that cancel each other out, of which the loudest was taken"

CUT_TOLERANCE = 0.02
"""Seconds that a segment may reach beyond its file before it is counted as cut: one frame."""
TRUNCATED_SECONDS = 0.1
"""Seconds that may be missing of what a file's header declares before the file counts as truncated. Recorders that lose their
last buffers overstate by less: .045 s at most in Mboshi-French, where 67 of 4,616 files do."""
OVERRUN_SHARE = 0.1
"""Share of a segment that may lie beyond the end of its file, which annotators place roughly."""
EXAMPLES = 3
LISTED = ("id", "language", "reason", "file")
"""Columns of the list of skipped utterances."""


@dataclass
class LanguageReport:
    """What became of one source language's utterances.

    Attributes:
        kept: utterances that can be used.
        seconds: their audio.
        cut: those among them whose file ends before their segment does.
        shortened: those among them that were too long and lost their end.
        unreferenced: those among them that have no translation.
        notes: what else is to be known of them -> utterances kept all the same.
        lengths: whole seconds -> utterances kept.
        skipped: reason -> utterances that cannot be used; reasons are constants here and in ``audio``.
        untranslatable: reason -> utterances of a dev or test set that stay, though they have no audio of a frame or more.
        examples: reason -> the first few ids.
        sample_rates: native rate in Hz -> utterances decoded and kept. channels: native channels -> likewise.
    """

    kept: int = 0
    seconds: float = 0.0
    cut: int = 0
    shortened: int = 0
    unreferenced: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    untranslatable: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    sample_rates: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)

    def skip(self, utterance: Utterance, reason: str) -> None:
        self.skipped[reason] += 1
        self._example(utterance, reason)

    def leave(self, utterance: Utterance, reason: str) -> None:
        """Count an utterance that stays without audio."""
        self.untranslatable[reason] += 1
        self._example(utterance, reason)

    def _example(self, utterance: Utterance, reason: str) -> None:
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(utterance.id)

    def keep(self, utterance: Utterance, decoded: _Decoded) -> None:
        self.kept += 1
        self.unreferenced += not has_text(utterance.target_text)
        self.lengths[int(decoded.seconds)] += 1
        self.seconds += decoded.seconds
        self.cut += decoded.cut
        self.shortened += decoded.shortened
        self.notes.update(decoded.notes)
        if decoded.native_rate:
            self.sample_rates[decoded.native_rate] += 1
            self.channels[decoded.channels] += 1

    def to_dict(self) -> dict[str, Any]:
        return {
            "kept": self.kept,
            "hours": round(self.seconds / 3600, 4),
            "cut": self.cut,
            "shortened": self.shortened,
            "unreferenced": self.unreferenced,
            "notes": dict(self.notes.most_common()),
            "lengths": {str(seconds): count for seconds, count in sorted(self.lengths.items())},
            "skipped": dict(self.skipped.most_common()),
            "untranslatable": dict(self.untranslatable.most_common()),
            "examples": self.examples,
            "sample_rates": {str(rate): count for rate, count in sorted(self.sample_rates.items())},
            "channels": {str(channels): count for channels, count in sorted(self.channels.items())},
        }


@dataclass
class PreparationReport:
    """Every utterance that was read, by source language.

    Attributes:
        listing: an open file that gets a line for each skipped utterance, see :func:`listed`; None lists none.
    """

    languages: dict[str, LanguageReport] = field(default_factory=dict)
    listing: TextIO | None = None

    def of(self, language: str) -> LanguageReport:
        return self.languages.setdefault(language, LanguageReport())

    def skip(self, utterance: Utterance, reason: str) -> None:
        self.of(utterance.source_lang).skip(utterance, reason)
        self._list(utterance, reason)

    def leave(self, utterance: Utterance, reason: str) -> None:
        """Count an utterance that stays without audio."""
        self.of(utterance.source_lang).leave(utterance, reason)
        self._list(utterance, reason)

    def _list(self, utterance: Utterance, reason: str) -> None:
        if self.listing is not None:
            self.listing.write(listed(utterance.id, utterance.source_lang, reason, utterance.audio))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, languages sorted."""
        return {language: self.languages[language].to_dict() for language in sorted(self.languages)}

    def summary(self, shared: Mapping[str, int], listing: Path | None = None) -> str:
        """A table for people: a line per language, and a line per reason for skipping with the first ids.

        Args:
            shared: utterances that other splits hold too, from :func:`overlaps`.
            listing: the file that names all skipped utterances.
        """
        lines = [f"{'language':<10}{'kept':>9}{'hours':>9}{'skipped':>9}{'cut':>7}  audio"]
        for language, report in sorted(self.languages.items()):
            audio = [f"{rate} Hz" for rate in sorted(report.sample_rates)]
            audio += [f"{channels} channel(s)" for channels in sorted(report.channels)]
            lines.append(
                f"{language:<10}{report.kept:>9}{report.seconds / 3600:>9.2f}{report.skipped.total():>9}{report.cut:>7}"
                f"  {', '.join(audio) or '-'}"
            )
            notes = {"shortened to the longest that is allowed": report.shortened, "without a translation": report.unreferenced}
            notes |= dict(report.notes.most_common())
            lines += [f"{'':<10}{count:>27}  kept, but {note}" for note, count in notes.items() if count]
            for reason, count in report.skipped.most_common():
                lines.append(f"{'':<10}{count:>27}  {reason}: {', '.join(report.examples[reason])}")
            for reason, count in report.untranslatable.most_common():
                ids = ", ".join(report.examples[reason])
                lines.append(f"{'':<10}{count:>27}  {reason}, so their translations will be empty: {ids}")
        if listing is not None and any(report.skipped or report.untranslatable for report in self.languages.values()):
            lines.append(f"every utterance that is skipped or has no usable audio is listed in {listing}")
        return "\n".join([*lines, *(f"{count} of them are in {split} too" for split, count in shared.items())])

    def require(self, languages: Iterable[str], without_text: str = "") -> None:
        """Raise a :class:`DataError` that names every language of ``languages`` without a usable utterance, and why.

        ``without_text`` says what to do where it is for want of translations.
        """
        missing = [language for language in languages if not self.languages.get(language, LanguageReport()).kept]
        if missing:
            listing = "\n".join(f"  {language}: {self._why(language)}" for language in missing)
            if any(self.languages[language].skipped[NO_TEXT] for language in missing if language in self.languages):
                listing += f"\n  {without_text}" if without_text else ""
            raise DataError(f"data.languages: no usable utterance is left of {len(missing)} language(s)\n{listing}")

    def _why(self, language: str) -> str:
        if language not in self.languages:
            return f"none in the corpora, which have {', '.join(sorted(self.languages)) or 'no utterances at all'}"
        skipped = self.languages[language].skipped + self.languages[language].untranslatable
        return f"{skipped.total()} read, " + ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())


def listed(*cells: str) -> str:
    """A line of a tab-separated list with the columns :data:`LISTED`; white space in a cell becomes a space."""
    return "\t".join(" ".join(cell.split()) for cell in cells) + "\n"


@contextmanager
def report_with_list(path: Path) -> Iterator[PreparationReport]:
    """A report that also writes every skipped utterance, as they come, to ``path``, a tab-separated file with a header.

    The file is there when the block ends without an error.
    """
    with atomic_write(path) as file:
        file.write(listed(*LISTED))
        report = PreparationReport(listing=file)
        yield report
        report.listing = None


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
    checked = _checked(utterances, languages, require_text)
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
            report.of(utterance.source_lang).keep(utterance, outcome)
            yield _with_duration(utterance, outcome.seconds)


def _with_duration(utterance: Utterance, seconds: float) -> Utterance:
    return Utterance(**asdict(utterance) | {"duration": seconds})


def with_durations(utterances: Sequence[Utterance]) -> list[Utterance]:
    """The utterances of a manifest that leaves durations out, decoded where it does.

    Raises:
        DataError: some cannot be decoded; counts them by reason.
    """
    found = [(each, None if each.duration is not None else _seconds_of(each)) for each in utterances]
    if faults := [(each.id, fault) for each, fault in found if isinstance(fault, str)]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(fault for _, fault in faults).most_common())
        raise DataError(f"{len(faults)} of {len(found)} utterances cannot be translated, such as {faults[0][0]}: {reasons}")
    return [each if seconds is None else replace(each, duration=float(seconds)) for each, seconds in found]


def _seconds_of(utterance: Utterance) -> float | str:
    """How long it is, or why it cannot be used."""
    try:
        seconds = len(load_audio(utterance.audio, utterance.offset)) / SAMPLE_RATE
    except AudioError as error:
        return error.reason
    return seconds if frames_of(seconds) else TOO_SHORT


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
    place = hash((utterance.audio, utterance.offset))
    texts = (utterance.source_text or "", utterance.target_text or "")
    return place, hash(texts) if any(texts) else place


class _NoAudio(str):
    """A reason why an utterance cannot be used that is its audio's, not its text's or its place in the corpus."""


@dataclass(frozen=True)
class _Decoded:
    """What was found; ``native_rate`` and ``channels`` are 0 where nothing had to be decoded."""

    seconds: float
    cut: bool
    shortened: bool
    native_rate: int
    channels: int
    notes: tuple[str, ...]


def _checked(
    utterances: Iterable[Utterance], languages: Sequence[str] | None, require_text: bool
) -> Iterator[tuple[Utterance, str | None]]:
    """Each utterance with what is wrong with it as far as can be told without its audio."""
    seen: set[int] = set()  # hashes: ids are long
    for utterance in utterances:
        if isinstance(utterance, Unusable):
            yield utterance, utterance.reason
        elif languages is not None and utterance.source_lang not in languages:
            yield utterance, OTHER_LANGUAGE
        elif (identity := hash(utterance.id)) in seen:
            yield utterance, DUPLICATE
        elif require_text and not has_text(utterance.target_text):
            yield utterance, NO_TEXT
        else:
            seen.add(identity)
            yield utterance, None


def _measure(
    checked: tuple[Utterance, str | None], *, min_seconds: float, max_seconds: float, shorten: bool, training: bool
) -> tuple[Utterance, _Decoded | str]:
    """Decode one utterance unless a fault is known or its duration is; a string is the reason why it cannot be used."""
    utterance, fault = checked
    if fault is not None:
        return utterance, fault
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
    faults = [] if segment is None else _faults(segment, seconds, asked and min(asked, limit))
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
        return utterance, _Decoded(kept, ends_early, longer, 0, 0, ())
    ends_early |= segment.missing > CUT_TOLERANCE
    notes = (*faults, *([OPPOSITE] if segment.opposite else []))
    return utterance, _Decoded(kept, ends_early, longer, segment.native_rate, segment.channels, notes)


def _faults(segment: Segment, seconds: float, asked: float | None) -> list[str]:
    """Why what was decoded, ``seconds`` long where ``asked`` were asked for, is not what was translated."""
    lost = 0.0 if asked is None else asked - seconds
    overrun = lost > max(TRUNCATED_SECONDS, OVERRUN_SHARE * (asked or 0.0))
    found = {TRUNCATED: segment.missing > TRUNCATED_SECONDS, OVERRUN: overrun, SILENT: segment.silent}
    return [fault for fault, there in found.items() if there]
