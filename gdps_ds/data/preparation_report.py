"""What became of every utterance of a split, by language and reason: as JSON, as a table for people, and as a list of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from gdps_ds.data.manifest import DataError, Utterance
from gdps_ds.data.text import has_text
from gdps_ds.files import atomic_write

NO_TEXT = "empty text"
EXAMPLES = 3
LISTED = ("id", "language", "reason", "file")
"""Columns of the lists of skipped utterances, and of those that are kept with a note."""


@dataclass(frozen=True)
class Decoded:
    """What was found; ``native_rate`` and ``channels`` are 0 where nothing had to be decoded."""

    seconds: float
    cut: bool
    shortened: bool
    native_rate: int
    channels: int
    notes: tuple[str, ...]


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

    def keep(self, utterance: Utterance, decoded: Decoded) -> None:
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
        noted: one that gets a line for each note of an utterance that is kept.
    """

    languages: dict[str, LanguageReport] = field(default_factory=dict)
    listing: TextIO | None = None
    noted: TextIO | None = None

    def of(self, language: str) -> LanguageReport:
        return self.languages.setdefault(language, LanguageReport())

    def skip(self, utterance: Utterance, reason: str) -> None:
        self.of(utterance.source_lang).skip(utterance, reason)
        self._list(utterance, reason)

    def leave(self, utterance: Utterance, reason: str) -> None:
        """Count an utterance that stays without audio."""
        self.of(utterance.source_lang).leave(utterance, reason)
        self._list(utterance, reason)

    def keep(self, utterance: Utterance, decoded: Decoded) -> None:
        self.of(utterance.source_lang).keep(utterance, decoded)
        if self.noted is not None:
            self.noted.writelines(row_of(utterance, note) for note in decoded.notes)

    def _list(self, utterance: Utterance, reason: str) -> None:
        if self.listing is not None:
            self.listing.write(row_of(utterance, reason))

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


def cell(text: str) -> str:
    """``text`` as it stands in a list: white space becomes a space."""
    return " ".join(text.split())


def listed(*cells: str) -> str:
    """A line of a tab-separated list with the columns :data:`LISTED`."""
    return "\t".join(map(cell, cells)) + "\n"


def row_of(utterance: Utterance, reason: str) -> str:
    """The line of an utterance in a list."""
    return listed(utterance.id, utterance.source_lang, reason, utterance.audio)


@contextmanager
def new_list(path: Path) -> Iterator[TextIO]:
    """A tab-separated list with its header, which is there when the block ends without an error."""
    with atomic_write(path) as file:
        file.write(listed(*LISTED))
        yield file


@contextmanager
def report_with_list(path: Path, noted: TextIO | None = None) -> Iterator[PreparationReport]:
    """A report that also writes every skipped utterance, as they come, to the list ``path``, and notes to ``noted``.

    The list is there when the block ends without an error.
    """
    with new_list(path) as file:
        report = PreparationReport(listing=file, noted=noted)
        yield report
        report.listing = report.noted = None
