"""Small corpora in the very layouts of the large ones, of tones instead of speech."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile


def tone(path: Path, seconds: float = 1.0, rate: int = 16000, channels: int = 1, kind: str | None = None) -> Path:
    """Write a tone, a different one in each channel; the format follows from the suffix or is libsndfile's ``kind``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    samples = np.stack([0.3 * np.sin(2 * np.pi * (300 + 200 * channel) * time) for channel in range(channels)], axis=1)
    soundfile.write(path, samples, rate, format=kind, subtype="ULAW" if kind == "NIST" else None)
    return path


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def tsv(*rows: str, end: str = "\n") -> str:
    """Rows of cells that are written with ``|`` for a tab."""
    return "".join(row.replace("|", "\t") + end for row in rows)


def json_rows(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def aeb(root: Path) -> Path:
    """LDC2022E01: two sides of a call; equal start times, an empty text, an excluded and a zero-length segment."""
    for side in "AB":
        tone(root / f"data/audio/ta/20170601_110003_13355_{side}.sph", 8.0, rate=8000, kind="NIST")
    write(
        root / "data/transcripts/ta/20170601_110003_13355_A.tsv",
        tsv(
            "0.500|1.750|13355|أهلا",
            "2.000|2.500|13355|لاباس",
            "2.000|3.000|13355|O/merci",
            "3.0|3.0|13355|آه",
            "5.0|6.0|13355|بس",
        ),
    )
    write(
        root / "data/translations/ta/20170601_110003_13355_A.tsv",
        tsv("0.500|1.750|13355|Hello.", "2.000|2.500|13355|", "2.000|3.000|13355|thanks", "3.0|3.0|13355|uh"),
    )
    write(root / "data/transcripts/ta/20170601_110003_13355_B.tsv", tsv("1.000|2.000|13355|ايه"))
    write(root / "data/translations/ta/20170601_110003_13355_B.tsv", tsv("1.000|2.000|13355|yes"))
    write(root / "dev.file_id.txt", "20170601_110003_13355_A\n20170601_110003_13355_B\n")
    write(root / "exclude-utterance.txt", "20170601_110003_13355_B 1.000 2.000\n")
    return root


def aeb_stm(root: Path) -> Path:
    """The shared task's segmentation; an empty text at the end of a line."""
    tone(root / "20170601_110003_13355_A.sph", 8.0, rate=8000, kind="NIST")
    file = f"{root}/20170601_110003_13355_A.sph|1|13355"
    write(root / "asr-aeb.norm.dev.stm", tsv(f"{file}|0.5|1.75|<aeb>|أهلا", f"{file}|2.0|3.0|<aeb>|"))
    write(root / "st-aeb2eng.norm.dev.stm", tsv(f"{file}|0.5|1.75|<eng>|hello", f"{file}|2.0|3.0|<eng>|"))
    write(root / "asr-aeb.norm.test2.stm", tsv(f"{file}|0.5|1.75|<aeb>|"))
    return root


def stamped(root: Path, suffix: str = "eng", prefix: str = "wav/", end: str = "\r\n") -> Path:
    """Irish, Marathi, Bhojpuri: zero-padded times, stereo whose channels differ, a test set without references."""
    tone(root / "train/wav/z0001_000.wav", 4.0, channels=2)
    tone(root / "train/wav/z0001_001.wav", 1.0)
    tone(root / "test-2025/wav/t.wav", 1.0, channels=2)
    rows = [
        f"{prefix}z0001_000.wav|0.000000|01.500000",
        f"{prefix}z0001_000.wav|001.500|002.25",
        f"{prefix}z0001_001.wav|0|1.0",
    ]
    write(root / "train/stamped.tsv", tsv(*rows, rows[0], end=end))
    write(root / f"train/txt/train.{suffix}", end.join(["One.", "Two.", "", "One.", ""]))
    write(root / "test-2025/stamped.tsv", tsv(f"{prefix}t.wav|0.000000|01.000000", end=end))
    return root


def mustc(root: Path, folder: str = "data", source: str = "en", target: str = "de") -> Path:
    """Segments of a talk in YAML, texts aligned with it; a test set without texts."""
    tone(root / folder / "train/wav/ted_1.wav", 6.0)
    tone(root / folder / "tst-COMMON/wav/ted_2.wav", 2.0)
    entry = "- {{duration: {}, offset: {}, rW: 9, uW: 0, speaker_id: spk.1, wav: {}}}\n"
    write(
        root / folder / "train/txt/train.yaml", entry.format("1.500000", "0.25", "ted_1.wav") + entry.format(2, 3, "ted_1.wav")
    )
    write(root / folder / f"train/txt/train.{source}", "Thank you.\nOne\u2028two\n")
    write(root / folder / f"train/txt/train.{target}", "Danke.\nEins zwei\n")
    write(root / folder / "tst-COMMON/txt/tst-COMMON.yaml", entry.format(1.0, 0.0, "ted_2.wav"))
    return root


def bigc(root: Path) -> Path:
    """Ids and files that end in .wav, .wav.wav or neither; placeholders, a line feed inside a text, missing audio."""
    for name in ("1_a.wav", "2_b.wav.wav", "3_c.wav"):
        tone(root / "audio" / name)
    records = [
        {"audio_id": "1_a.wav", "duration": 4.1, "bem_transcription": "umo", "en_translation": "one"},
        {"audio_id": "2_b.wav", "bem_transcription": "babili\n", "en_translation": "two\nmen"},
        {"audio_id": "3_c", "bem_transcription": None, "en_translation": "three"},
        {"audio_id": "4_d.wav.wav", "bem_transcription": "x", "en_translation": "missing"},
        {"audio_id": "5_e.wav", "bem_transcription": "NOT PLAYING", "en_translation": "NOT PLAYING"},
        {"audio_id": "6_f.wav", "bem_transcription": "x", "en_translation": "."},
        {"audio_id": "7_g.wav", "bem_transcription": "x", "en_translation": ""},
    ]
    raw = '{"audio_id": "8_h.wav", "bem_transcription": "x", "en_translation": "raw\nfeed"}\n'
    write(root / "data/bem/splits/train.jsonl", json_rows(*records) + raw)
    return root


def taltech(root: Path) -> Path:
    """Quotes in cells, on one side only too."""
    for number in (1, 2):
        tone(root / f"audio/rec/rec_{number}_0_100.flac")
    rows = [
        "audio|Estonian|English",
        'rec/rec_1_0_100.flac|"tere|"Hello',
        'audio/rec/rec_2_0_100.flac|ta ütles "jah"|he said "yes"',
    ]
    write(root / "train.tsv", tsv(*rows))
    return root


def covost2(root: Path) -> Path:
    """mp3 clips, with and without a suffix in the table; escaped quotes; a table of another pair beside it."""
    tone(root / "clips/common_voice_et_1.mp3", 1.0, rate=32000)
    tone(root / "clips/common_voice_et_2.mp3", 1.0, rate=48000)
    rows = [
        "path|sentence|translation|client_id",
        'common_voice_et_1.mp3|Tere|Hello \\"you\\"|c0ffee',
        "common_voice_et_2|Jah|Yes|c0ffee",
    ]
    write(root / "covost_v2.et_en.train.tsv", tsv(*rows))
    write(root / "covost_v2.en_de.train.tsv", tsv(rows[0], "other.mp3|x|y|c0ffee"))
    return root


def covost2_distributed(root: Path) -> Path:
    """The table of the distribution in the folder of Common Voice, whose own tables have no translations."""
    covost2(root)
    (root / "covost_v2.et_en.train.tsv").unlink()
    rows = [
        "path|translation|split",
        "common_voice_et_1.mp3|Hello|train",
        "common_voice_et_2.mp3|Yes|train_covost",
        "common_voice_et_3.mp3|withdrawn|train",
        "common_voice_et_4.mp3|other|dev",
        "broken",
    ]
    write(root / "covost_v2.et_en.tsv", tsv(*rows))
    write(root / "train.tsv", tsv("client_id|path|sentence", "c0ffee|common_voice_et_1.mp3|Tere"))
    clips = ["client_id|path|sentence|up_votes", "c0ffee|common_voice_et_1.mp3|Tere|2", "c0ffee|common_voice_et_9.mp3|x|2"]
    write(root / "validated.tsv", tsv(*clips))
    return root


def gmu(root: Path) -> Path:
    """A cell that opens with a quote; two files of one name; a test set without translations."""
    for folder in "xy":
        tone(root / f"{folder}/1.wav")
    write(root / "train.tsv", tsv("audio_path|src_text|tgt_text", 'x/1.wav|umo|"One', f"{root}/y/1.wav|babili|Two"))
    write(root / "test.tsv", tsv("audio_path", "x/1.wav"))
    return root


def seamless(root: Path) -> Path:
    """Absolute and relative paths; two readings of one sentence."""
    for name in ("a.wav", "b.wav"):
        tone(root / name)

    def record(audio: str, text: str | None) -> dict[str, Any]:
        source = {"id": 7, "lang": "est", "text": "tere", "audio_local_path": audio, "waveform": None, "sampling_rate": 16000}
        return {"source": source, "target": {"id": 7, "lang": "eng", "text": text, "units": None}}

    write(root / "train_manifest.json", json_rows(record("a.wav", "hello"), record(f"{root}/b.wav", None)))
    return root
