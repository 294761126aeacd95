"""Translations beside their references, and the speech itself: a few utterances of every language."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import soundfile
from markupsafe import Markup, escape

from gdps_ds.analysis.sketch import seed_of
from gdps_ds.data.audio import SAMPLE_RATE, AudioError, load_audio
from gdps_ds.data.manifest import Utterance
from gdps_ds.evaluation.systems import System
from gdps_ds.reporting.page import Section, Table

PER_LANGUAGE, IN_ALL = 3, 60
"""Most samples of a language, and about how many of all languages; every language has one."""
AUDIO_BYTES = 4_000_000
"""Most compressed audio in a page; base64 makes a third more of it."""


@dataclass(frozen=True)
class Sample:
    """An utterance and its translations.

    Attributes:
        seconds: of speech, where it is known.
        hypotheses: system -> translation.
        audio: a FLAC file, mono, 16 kHz; None where there is none.
        note: why there is none.
    """

    id: str
    language: str
    seconds: float | None
    source: str | None
    reference: str | None
    hypotheses: Mapping[str, str]
    audio: bytes | None = None
    note: str = ""


def choose(systems: Sequence[System], utterances: Iterable[Utterance]) -> list[Sample]:
    """Samples without audio, drawn by a hash of the utterances' ids: the same in every run, and nobody picked them.

    Args:
        systems: of :func:`gdps_ds.evaluation.systems.aligned`.
        utterances: the test set, as far as it is known.

    Returns:
        The first sample of every language, then the second of each, and so on.
    """
    rows = systems[0].translations
    by_language: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        by_language.setdefault(row.source_lang, []).append(place)
    count = max(1, min(PER_LANGUAGE, IN_ALL // max(1, len(by_language))))
    languages = sorted(by_language)
    places = {
        name: sorted(by_language[name], key=lambda place: seed_of("sample", rows[place].id))[:count] for name in languages
    }
    drawn = [places[language][turn] for turn in range(count) for language in languages if turn < len(places[language])]
    wanted = {rows[place].id for place in drawn}
    known = {utterance.id: utterance for utterance in utterances if utterance.id in wanted}
    return [_sample(systems, place, known.get(rows[place].id)) for place in drawn]


def with_audio(samples: Iterable[Sample], utterances: Mapping[str, Utterance], limit: int = AUDIO_BYTES) -> list[Sample]:
    """The samples with their speech, as long as ``limit`` bytes hold it; the others say why they have none."""
    found, left = [], limit
    for sample in samples:
        try:
            audio = flac(utterances[sample.id])
        except KeyError:
            found.append(replace(sample, note="no audio: the run's data has no such utterance"))
            continue
        except AudioError as error:
            found.append(replace(sample, note=f"no audio: {error}"))
            continue
        fits = len(audio) <= left
        left -= len(audio) if fits else 0
        note = "" if fits else f"audio left out: the page holds {limit / 1e6:g} MB of it"
        found.append(replace(sample, audio=audio if fits else None, note=note))
    return found


def flac(utterance: Utterance) -> bytes:
    """The utterance's speech as a FLAC file.

    Raises:
        AudioError: it cannot be read.
    """
    buffer = io.BytesIO()
    samples = load_audio(utterance.audio, utterance.offset, utterance.duration)
    soundfile.write(buffer, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def sample_sections(samples: Sequence[Sample]) -> list[Section]:
    """A section each language, a table each sample: short enough for a phone."""
    note = "Drawn by a hash of the utterances' ids. Words that the reference does not have in that place are marked."
    by_language = {
        language: [sample for sample in samples if sample.language == language]
        for language in sorted({sample.language for sample in samples})
    }
    return [
        Section(f"Translations from {language}", () if place else (note,), tables=tuple(map(_table, chosen)))
        for place, (language, chosen) in enumerate(by_language.items())
    ]


def marked(hypothesis: str, reference: str | None) -> Markup:
    """The hypothesis, its words that stand elsewhere or not at all in the reference marked."""
    words = hypothesis.split()
    matcher = SequenceMatcher(None, words, (reference or "").split(), autojunk=False)
    parts = []
    for kind, start, end, _, _ in matcher.get_opcodes():
        text = escape(" ".join(words[start:end]))
        if text:
            parts.append(text if kind == "equal" or reference is None else Markup("<mark>{}</mark>").format(text))
    return Markup(" ").join(parts) or Markup("<em>empty</em>")


def _sample(systems: Sequence[System], place: int, utterance: Utterance | None) -> Sample:
    row = systems[0].translations[place]
    return Sample(
        row.id,
        row.source_lang,
        utterance.duration if utterance else None,
        utterance.source_text if utterance else None,
        row.reference,
        {system.name: system.translations[place].hypothesis for system in systems},
    )


def _table(sample: Sample) -> Table:
    rows = [("", _player(sample))]
    rows += [("spoken", _isolated(sample.source))] if sample.source else []
    rows += [("reference", _isolated(sample.reference) if sample.reference is not None else "none")]
    rows += [(name, marked(text, sample.reference)) for name, text in sample.hypotheses.items()]
    return Table((sample.id, f"{sample.seconds:.1f} s" if sample.seconds else ""), tuple(rows))


def _player(sample: Sample) -> str:
    if sample.audio is None:
        return sample.note
    data = base64.b64encode(sample.audio).decode()
    # As wide as a phone leaves room for beside the names of the rows.
    player = '<audio controls preload="metadata" style="width: min(20rem, 62vw)" src="data:audio/flac;base64,{}"></audio>'
    return Markup(player).format(data)


def _isolated(text: str) -> Markup:
    """Text of any writing direction."""
    return Markup("<bdi>{}</bdi>").format(text)
