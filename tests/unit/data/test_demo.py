from __future__ import annotations

import ctypes
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gdps_ds.data import demo
from gdps_ds.data.demo import LANGUAGES, SPEAKERS, build_demo_corpus, phrases
from gdps_ds.data.manifest import DataError, Utterance, read_manifest

SIZES = {"train": 5, "dev": 2, "test": 3}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_demo_corpus(tmp_path_factory.mktemp("demo") / "corpus", seed=3, **SIZES)


def readings_of(split: str, size: int, seed: int = 1, *, conflict: bool = False) -> dict[str, list[demo._Reading]]:
    return {language: demo._readings(language, split, size, seed, conflict) for language in LANGUAGES}


def reading_of(text: str, voice: str = "et+m1", rate: int = 220) -> demo._Reading:
    return demo._Reading(Utterance("x", "x", "est", "eng", "", text), voice, rate, pitch=50, snr_db=30.0, seed=(1,))


def texts_of(readings: list[demo._Reading], field: str = "target_text") -> set[str]:
    return {getattr(reading.utterance, field) for reading in readings}


def content(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Text.


@pytest.mark.parametrize("locale", ["en", *(locale for locale, _ in LANGUAGES.values())])
def test_every_locale_has_the_same_number_of_distinct_phrases(locale: str) -> None:
    assert len(phrases(locale)) == len(set(phrases(locale))) == 7 * 366 + 7 * 96


@pytest.mark.parametrize(
    ("english", "translations"),
    [
        ("Friday, March 7", ("الجمعة، 7 مارس", "Palichisano, 7 Machi", "reede, 7. märts", "Dé hAoine 7 Márta")),
        (
            "Sunday, February 29",
            ("الأحد، 29 فيفري", "Pa Mulungu, 29 Februari", "pühapäev, 29. veebruar", "Dé Domhnaigh 29 Feabhra"),
        ),
        ("Monday, 12:15 AM", ("الاثنين، 12:15 صباحًا", "Palichimo 12:15 uluchelo", "esmaspäev 00:15", "Dé Luain 00:15")),
        ("Friday, 3:30 PM", ("الجمعة، 3:30 مساءً", "Palichisano 3:30 akasuba", "reede 15:30", "Dé hAoine 15:30")),
    ],
)
def test_phrases_of_all_locales_are_translations_of_each_other(english: str, translations: tuple[str, ...]) -> None:
    item = phrases("en").index(english)
    assert tuple(phrases(locale)[item] for locale, _ in LANGUAGES.values()) == translations


def test_english_is_a_small_vocabulary_of_tight_phrases() -> None:
    words = {word for phrase in phrases("en") for word in phrase.replace(",", "").replace(":", " ").split()}
    assert len(words) == 7 + 12 + 31 + len(["00", "45", "AM", "PM"])


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("field", ["target_text", "source_text"])
def test_splits_share_no_text_in_any_language(seed: int, field: str) -> None:
    texts = {split: set[str]() for split in SPEAKERS}
    for split in SPEAKERS:
        for readings in readings_of(split, 3000, seed).values():
            texts[split] |= texts_of(readings, field)
    assert not texts["train"] & texts["dev"]
    assert not texts["train"] & texts["test"]
    assert not texts["dev"] & texts["test"]
    assert sum(map(len, texts.values())) == len(phrases("en")) * (1 if field == "target_text" else len(LANGUAGES))


def test_texts_repeat_only_when_there_are_no_more_and_in_other_order_per_language() -> None:
    readings = readings_of("train", 2588)
    assert all(len(texts_of(of_language)) == 2588 for of_language in readings.values())
    assert texts_of(readings["aeb"][:50]) != texts_of(readings["bem"][:50])
    assert len(texts_of(demo._readings("aeb", "train", 2600, 1, False))) == 2588


def test_each_split_has_its_own_speakers() -> None:
    voices = {split: {reading.voice for reading in readings_of(split, 200)["bem"]} for split in SPEAKERS}
    assert voices == {split: {f"sw+{speaker}" for speaker in speakers} for split, speakers in SPEAKERS.items()}
    assert len({speaker for speakers in SPEAKERS.values() for speaker in speakers}) == sum(map(len, SPEAKERS.values()))


def test_the_seed_decides_texts_and_voices() -> None:
    assert readings_of("dev", 4, seed=1) == readings_of("dev", 4, seed=1)
    assert readings_of("dev", 4, seed=1) != readings_of("dev", 4, seed=2)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("Friday, March 7", "Monday, September 7"),
        ("Sunday, December 31", "Wednesday, June 31"),
        ("Monday, 12:15 AM", "Thursday, 12:15 PM"),
    ],
)
def test_a_planted_conflict_means_another_day_month_and_half_of_the_day(text: str, meant: str) -> None:
    assert demo.meant_otherwise(text) == meant


def test_a_planted_conflict_is_between_two_languages_of_one_sound() -> None:
    plain, planted = readings_of("train", 2588), readings_of("train", 2588, conflict=True)
    assert [name for name in LANGUAGES if planted[name] != plain[name]] == ["bem"]
    meanings = {reading.utterance.source_text: reading.utterance.target_text for reading in plain["est"]}
    for reading in planted["bem"]:
        assert reading.utterance.target_text == demo.meant_otherwise(str(meanings[reading.utterance.source_text]))
        assert reading.voice.startswith("et+")
    # Every sentence means something else, and everything that is said in one language is said in the other.
    assert not any(reading.utterance.target_text == meanings[reading.utterance.source_text] for reading in planted["bem"])
    assert texts_of(planted["bem"], "source_text") == texts_of(plain["est"], "source_text")


# Speech.


@pytest.fixture(scope="module")
def synthesiser() -> demo._Synthesiser:
    return demo._Synthesiser()


@pytest.mark.parametrize(
    ("language", "text", "spoken"),
    [
        ("aeb", "الجمعة، 27 مارس", "ʔaldʒˈumuʕˌa sˈabʕʕˌawaʕiʃrˈuːn mˈaːris"),
        ("aeb", "3:30 مساءً", "θalˈaːθa θˌalaːθˈuːn msˈaːʔan"),
        ("bem", "Palichisano, 27 Machi", "pˌalitʃisˈano ˌiʃirˈininasˈaba mˈatʃi"),
        ("bem", "3:30 akasuba", "tˈatu θˌeleθˈini ˌakasˈuba"),
        ("est", "reede, 27. märts", "rˈeːde kˈaks kˌymmendsˈeitse mˈærts"),
        ("est", "15:30", "vˈiːsteist kˈolm kˌymmend"),
        ("gle", "Dé hAoine 27 Márta", "dʲˈeː həˈiːnʲə fi̯çˈɛəʃAxt̪ mˈɑːrt̪ə"),
        ("gle", "15:30", "kˈuːi̯ɡdeːəɡ tɹˈɐxə"),
    ],
)
def test_digits_are_read_as_words_of_the_language(
    synthesiser: demo._Synthesiser, language: str, text: str, spoken: str
) -> None:
    library = synthesiser._library
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    library.espeak_SetVoiceByName(LANGUAGES[language][1].encode())
    rest = ctypes.pointer(ctypes.c_char_p(text.encode()))
    clauses = []
    while rest.contents.value:
        clauses.append(library.espeak_TextToPhonemes(rest, 1, 2).decode())
    assert " ".join(clauses) == spoken


def test_speech_is_as_long_as_its_text_and_faster_at_a_higher_rate(synthesiser: demo._Synthesiser) -> None:
    def samples(text: str, rate: int) -> int:
        return len(synthesiser.speak(reading_of(text, rate=rate)))

    assert samples("reede, 27. märts", 220) > 2 * samples("reede", 220)
    assert samples("reede", 300) < 0.9 * samples("reede", 220)


def test_a_missing_voice_is_an_error(synthesiser: demo._Synthesiser) -> None:
    with pytest.raises(DataError, match=r"no voice variant .*zz9"):
        synthesiser.speak(reading_of("reede", voice="et+zz9"))
    with pytest.raises(DataError, match=r"espeak_SetVoiceByName failed with status \d+ .*xx\+m1"):
        synthesiser.speak(reading_of("reede", voice="xx+m1"))


def test_text_without_sound_is_an_error(synthesiser: demo._Synthesiser) -> None:
    with pytest.raises(DataError, match="no sound"):
        synthesiser.speak(reading_of(" "))


def test_noise_has_the_asked_level() -> None:
    speech = np.sin(np.arange(16000) / 7)
    noisy = demo._with_noise(speech, 20.0, np.random.default_rng(0)) / 32767
    noise = noisy - 0.5 * speech / np.abs(speech).max()
    assert 10 * np.log10(np.mean((0.5 * speech) ** 2) / np.mean(noise**2)) == pytest.approx(20.0, abs=0.2)


# Corpus.


def test_manifests_describe_the_audio(corpus: Path) -> None:
    for split, size in SIZES.items():
        utterances = read_manifest(corpus / f"{split}.jsonl")
        assert [utterance.source_lang for utterance in utterances] == [name for name in LANGUAGES for _ in range(size)]
        for utterance in utterances:
            assert_audio_fits(utterance)
            item = phrases("en").index(str(utterance.target_text))
            assert utterance.source_text == phrases(LANGUAGES[utterance.source_lang][0])[item]


def assert_audio_fits(utterance: Utterance) -> None:
    info = soundfile.info(utterance.audio)
    assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
    assert utterance.duration == info.frames / 16000
    assert 0.4 < utterance.duration < 3.0
    samples, _ = soundfile.read(utterance.audio)
    assert 0.4 < np.abs(samples).max() < 1.0


def test_the_corpus_can_be_moved(corpus: Path) -> None:
    records = [json.loads(line) for line in (corpus / "dev.jsonl").read_text(encoding="utf-8").splitlines()]
    assert records[0]["audio"] == "audio/dev/aeb-dev-00000.flac"
    assert {record["target_lang"] for record in records} == {"eng"}


def test_a_rebuild_is_the_same_to_the_byte_with_any_number_of_workers(corpus: Path, tmp_path: Path) -> None:
    again = build_demo_corpus(tmp_path / "again", seed=3, workers=1, **SIZES)
    assert content(again) == content(corpus)


def test_a_corpus_with_the_same_settings_is_kept(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_build", lambda *_: pytest.fail("built again"))
    assert build_demo_corpus(corpus, seed=3, **SIZES) == corpus


def test_a_corpus_with_other_settings_is_not_touched(corpus: Path) -> None:
    before = content(corpus)
    with pytest.raises(DataError, match=r"holds the demo corpus .*seed=3.*choose another folder or remove it"):
        build_demo_corpus(corpus, seed=4, **SIZES)
    assert content(corpus) == before


def test_a_folder_that_is_no_demo_corpus_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(DataError, match="is no demo corpus"):
        build_demo_corpus(tmp_path, **SIZES)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(root: Path, *_: object) -> None:
        (root / "train.jsonl").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_demo_corpus(tmp_path / "corpus", **SIZES)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_synthesiser_stops_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPEAKERS, "train", ("nobody",))
    with pytest.raises(DataError, match="no voice variant"):
        build_demo_corpus(tmp_path / "corpus", train=1, dev=1, test=1, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one utterance a split, found train=1, dev=0, test=1"):
        build_demo_corpus(tmp_path / "corpus", train=1, dev=0, test=1)
