"""A small speech-translation corpus that is made offline: the four pairs of the paper, CLDR texts, eSpeak NG voices.

The task is to translate spoken dates and appointments of Tunisian Arabic (aeb), Bemba (bem), Estonian (est) and Irish
(gle) into English: ``reede, 7. märts`` -> ``Friday, March 7``; ``Dé hAoine 15:30`` -> ``Friday, 3:30 PM``. Words are
reordered, and Estonian and Irish tell the time on the 24-hour clock, Arabic and Bemba on the 12-hour clock.

- *Text* is what the Unicode CLDR (through Babel) writes for the locales ``ar_TN``, ``bem``, ``et``, ``ga`` and ``en``.
  The domain is what CLDR has in all of them: its Bemba covers days, months and halves of the day, but no units of time.
- *Speech* is synthesised by eSpeak NG, which also turns the digits into words. It has no Bemba voice: its Swahili voice
  (a related Bantu language with a similar spelling) reads the Bemba text and says the numbers in Swahili. Its Arabic
  voice is Modern Standard Arabic; what is Tunisian are CLDR's names of the months.
- *Splits* share no text, in any language: a date or time belongs to one split. Each split has speakers of its own.
- *A planted conflict* (``conflict=True``) makes sharing hurt: Bemba's speakers say what Estonia's say, in the same voices,
  but another day, another month and the other half of the day are meant. No model can tell from the sound which.

This is for demonstrations and tests. Nothing about natural speech follows from scores on it.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import date, time, timedelta
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import espeakng_loader
import numpy as np
import soundfile
import soxr
from babel import Locale
from babel.dates import format_date, format_time, get_period_names
from tqdm import tqdm

from gdps_ds.data.manifest import DataError, Utterance, write_manifest

LANGUAGES = {"aeb": ("ar_TN", "ar"), "bem": ("bem", "sw"), "est": ("et", "et"), "gle": ("ga", "ga")}
"""Source language -> CLDR locale of its text, eSpeak NG voice that reads it."""
CONFLICT = {"bem": "est"}
"""Where a conflict is planted: language -> the one whose words it says and means otherwise."""

SPEAKERS = {
    "train": ("m1", "m2", "m3", "m4", "m6", "f1", "f2", "f3"),
    "dev": ("m8", "f5"),
    "test": ("m7", "f4"),
}
"""eSpeak NG voice variants of each split; no speaker is in two."""

SAMPLE_RATE = 16_000
RATE = (220, 300)
"""Words a minute; eSpeak NG's default of 175 would make the demo wait for slow speakers."""
PITCH = (35, 65)
SNR_DB = (25.0, 40.0)
"""Signal-to-noise ratio of the white noise."""
PART = 200
"""Most utterances that one synthesiser process makes."""
FORMAT = 1
"""Raised when the same settings make another corpus than before."""


@dataclass(frozen=True)
class Settings:
    """What decides every byte of a demo corpus; kept beside it as ``corpus.json``. Sizes are utterances a language."""

    seed: int
    train: int
    dev: int
    test: int
    conflict: bool = False
    format: int = FORMAT


@dataclass(frozen=True)
class _Reading:
    """How one utterance is to be spoken."""

    utterance: Utterance
    voice: str
    rate: int
    pitch: int
    snr_db: float
    seed: tuple[int, ...]


def build_demo_corpus(
    root: Path,
    *,
    seed: int = 1,
    train: int = 1500,
    dev: int = 50,
    test: int = 100,
    conflict: bool = False,
    workers: int = 2,
    progress: bool = False,
) -> Path:
    """Make the corpus at ``root``: ``{train,dev,test}.jsonl``, ``audio/<split>/<id>.flac`` and ``corpus.json``.

    The corpus appears whole or not at all. The same seed and sizes give the same bytes whatever ``workers`` is, and a
    corpus that is already there is kept. Mono, 16 kHz, 16 bit.

    Args:
        train, dev, test: utterances a language. More than there are different texts repeats texts with other voices.
        conflict: plant one between the languages of :data:`CONFLICT`.
        workers: processes that synthesise; eSpeak NG is not thread-safe.

    Raises:
        DataError: ``root`` holds something else, a size is not positive, or eSpeak NG fails.
    """
    settings = Settings(seed, train, dev, test, conflict)
    if min(train, dev, test) < 1:
        raise DataError(f"the demo corpus needs at least one utterance a split, found {train=}, {dev=}, {test=}")
    if _is_complete(root, settings):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".partial", dir=root.parent))
    try:
        _build(partial, settings, workers, progress)
        partial.chmod(0o755)
        partial.replace(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _is_complete(root: Path, settings: Settings) -> bool:
    """Whether ``root`` is this corpus; refuses to touch a folder that holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = Settings(**json.loads((root / "corpus.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise DataError(f"{root}: exists and is no demo corpus; choose another folder or remove it") from None
    if found != settings:
        raise DataError(f"{root}: holds the demo corpus {found}, not {settings}; choose another folder or remove it")
    return True


def _build(root: Path, settings: Settings, workers: int, progress: bool) -> None:
    readings = {
        split: [
            reading
            for language in LANGUAGES
            for reading in _readings(language, split, getattr(settings, split), settings.seed, settings.conflict)
        ]
        for split in SPEAKERS
    }
    for split in SPEAKERS:
        (root / "audio" / split).mkdir(parents=True)
    everything = [reading for of_split in readings.values() for reading in of_split]
    spoken = iter(_speak_all(everything, root, workers, progress))
    for split, of_split in readings.items():
        write_manifest(root / f"{split}.jsonl", list(islice(spoken, len(of_split))))
    (root / "corpus.json").write_text(json.dumps(asdict(settings)) + "\n", encoding="utf-8")


def _speak_all(readings: list[_Reading], root: Path, workers: int, progress: bool) -> list[Utterance]:
    """Synthesise ``readings`` in parallel; the utterances with their audio, in order."""
    # A synthesiser's flutter depends on all it said before: every part gets a new process, so that the audio does not
    # depend on which worker is free. Spawned, because the caller may run threads that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    parts = [readings[start : start + PART] for start in range(0, len(readings), PART)]
    bar = tqdm(total=len(readings), desc="demo corpus", unit="utt", disable=not progress)
    with bar, ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        jobs = [pool.submit(_speak, part, root) for part in parts]
        utterances: list[Utterance] = []
        try:
            for job in jobs:
                utterances += job.result()
                bar.update(len(utterances) - bar.n)
        finally:
            for job in jobs:  # After an error: do not make the rest first.
                job.cancel()
    return utterances


# Text.


@cache
def phrases(locale_name: str) -> tuple[str, ...]:
    """Every date and appointment in one language, in an order that is the same for all locales.

    2562 dates (weekday, day, month; each combination that the Gregorian calendar has) and 672 appointments (weekday
    and quarter hour).
    """
    locale = Locale.parse(locale_name)
    return tuple(" ".join(text.split()) for text in (*_dates(locale), *_appointments(locale)))


def _dates(locale: Locale) -> Iterator[str]:
    # CLDR's full date without its year, which comes last in all five locales.
    pattern = locale.date_formats["full"].pattern.removesuffix("y").rstrip(", ")
    days = (date(2001, 1, 1) + timedelta(days=number) for number in range(28 * 365 + 7))
    unique = {(day.weekday(), day.month, day.day): day for day in days}
    return (format_date(day, pattern, locale=locale) for day in unique.values())


def _appointments(locale: Locale) -> Iterator[str]:
    weekdays = locale.days["format"]["wide"]
    template = locale.datetime_formats["short"]
    for weekday in range(7):
        for quarter in range(24 * 4):
            moment = time(quarter // 4, quarter % 4 * 15)
            yield template.format(_clock(moment, locale), weekdays[weekday])


def _clock(moment: time, locale: Locale) -> str:
    """CLDR's short time, with the half of the day as a word where CLDR has one rather than as a letter."""
    half = "am" if moment.hour < 12 else "pm"
    names = {
        **get_period_names("abbreviated", "format", locale),
        **get_period_names("wide", "stand-alone", locale),
    }
    pattern = locale.time_formats["short"].pattern.replace("a", f"'{names[half]}'" if half in names else "")
    return format_time(moment, pattern, locale=locale)


def meant_otherwise(text: str) -> str:
    """English with every day of the week three days later, months half a year later and the other half of the day."""
    return re.sub(r"[A-Za-z]+", lambda word: _other_words()[word[0]], text)


@cache
def _other_words() -> dict[str, str]:
    locale = Locale.parse("en")
    cycles = [
        (list(locale.days["format"]["wide"].values()), 3),
        (list(locale.months["format"]["wide"].values()), 6),
        (["AM", "PM"], 1),
    ]
    return {word: words[(place + step) % len(words)] for words, step in cycles for place, word in enumerate(words)}


def _readings(language: str, split: str, size: int, seed: int, conflict: bool) -> list[_Reading]:
    """``size`` utterances of a split: texts drawn without repetition until there are no more, random voices."""
    otherwise = conflict and language in CONFLICT
    locale, voice = LANGUAGES[CONFLICT[language] if otherwise else language]
    sources, targets = phrases(locale), phrases("en")
    keys = seed, list(LANGUAGES).index(language), list(SPEAKERS).index(split)
    generator = np.random.default_rng(keys)
    pool = _split_items(len(targets), seed)[split]
    rounds = [generator.permutation(pool) for _ in range(-(-size // len(pool)))]
    readings = []
    for number, item in enumerate(np.concatenate(rounds)[:size]):
        name = f"{language}-{split}-{number:05d}"
        reading = _Reading(
            Utterance(
                name,
                f"audio/{split}/{name}.flac",
                language,
                "eng",
                meant_otherwise(targets[item]) if otherwise else targets[item],
                sources[item],
            ),
            voice=f"{voice}+{generator.choice(SPEAKERS[split])}",
            rate=int(generator.integers(*RATE, endpoint=True)),
            pitch=int(generator.integers(*PITCH, endpoint=True)),
            snr_db=float(generator.uniform(*SNR_DB)),
            seed=(*keys, number),
        )
        readings.append(reading)
    return readings


def _split_items(items: int, seed: int) -> dict[str, np.ndarray]:
    """Which items belong to which split in all languages: a tenth each to dev and test, the rest to train."""
    order = np.random.default_rng(seed).permutation(items)
    tenth = items // 10
    return {"dev": order[:tenth], "test": order[tenth : 2 * tenth], "train": order[2 * tenth :]}


# Speech.


def _speak(readings: list[_Reading], root: Path) -> list[Utterance]:
    """Synthesise ``readings`` below ``root``, in a process of its own; the utterances with path and length."""
    synthesiser = _Synthesiser()
    utterances = []
    for reading in readings:
        path = root / reading.utterance.audio
        samples = soxr.resample(synthesiser.speak(reading), synthesiser.sample_rate, SAMPLE_RATE)
        samples = _with_noise(samples, reading.snr_db, np.random.default_rng(reading.seed))
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
        utterances.append(replace(reading.utterance, audio=str(path), duration=len(samples) / SAMPLE_RATE))
    return utterances


def _with_noise(samples: np.ndarray, snr_db: float, generator: np.random.Generator) -> np.ndarray:
    """16-bit samples: the speech at half scale plus white noise ``snr_db`` below its mean power."""
    speech = 0.5 * samples / np.abs(samples).max()
    deviation = np.sqrt(np.mean(speech**2)) * 10 ** (-snr_db / 20)
    noisy = speech + deviation * generator.standard_normal(len(speech))
    return np.round(32767 * np.clip(noisy, -1.0, 1.0)).astype(np.int16)


class _Synthesiser:
    """eSpeak NG through its C interface (``speak_lib.h``). The library keeps global state: one to a process."""

    _SYNCHRONOUS, _DONT_EXIT, _UTF8, _RATE, _PITCH = 2, 0x8000, 1, 1, 3
    _CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def __init__(self) -> None:
        self._data = Path(espeakng_loader.get_data_path())
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int),
            *(ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p),
        ]
        self.sample_rate = self._library.espeak_Initialize(self._SYNCHRONOUS, 0, str(self._data).encode(), self._DONT_EXIT)
        if self.sample_rate <= 0:
            raise DataError(f"eSpeak NG cannot start with its data in {self._data}; reinstall espeakng_loader")
        self._library.espeak_ng_SetRandSeed(1)  # Breath noise is seeded by the clock otherwise.
        self._chunks: list[np.ndarray] = []
        self._callback = self._CALLBACK(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, reading: _Reading) -> np.ndarray:
        """The waveform of the source text at ``sample_rate``, float64 within [-1, 1]."""
        variant = self._data / "voices" / "!v" / reading.voice.partition("+")[2]
        if not variant.is_file():  # eSpeak NG itself would quietly take the plain voice.
            raise DataError(f"eSpeak NG has no voice variant {variant}; reinstall espeakng_loader")
        text = f"{reading.utterance.source_text}\0".encode()
        self._chunks.clear()
        self._call("espeak_SetVoiceByName", reading, reading.voice.encode())
        self._call("espeak_SetParameter", reading, self._RATE, reading.rate, 0)
        self._call("espeak_SetParameter", reading, self._PITCH, reading.pitch, 0)
        self._call("espeak_Synth", reading, text, len(text), 0, 0, 0, self._UTF8, None, None)
        samples = np.concatenate(self._chunks) / 32768 if self._chunks else np.zeros(0)
        if not samples.any():
            raise DataError(f"eSpeak NG returned no sound for {reading}")
        return samples

    def _collect(self, samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def _call(self, function: str, reading: _Reading, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            raise DataError(f"eSpeak NG: {function} failed with status {status} for {reading}")
