"""Files as streams, killed recorders, failed downloads and other systems leave them."""

from __future__ import annotations

import struct
import tracemalloc
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

from gdps_ds.data import audio, containers, mp3, preparation
from gdps_ds.data.audio import AudioError, load_audio, read_segment
from gdps_ds.data.features import FeatureStore
from gdps_ds.data.manifest import ManifestError, Measured, Utterance, stream_manifest, write_manifest
from gdps_ds.data.preparation import prepare
from gdps_ds.data.preparation_report import PreparationReport

SHARED = Path(__file__).parents[4] / "shared" / "data"
RATE = 16000
needs_samples = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no speech samples in {SHARED}")


def noise(seconds: float, channels: int = 1, seed: int = 0, rate: int = RATE) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, (round(seconds * rate), channels)).astype(np.float32)


def write(path: Path, samples: NDArray[np.float32], rate: int = RATE, **kind: object) -> Path:
    soundfile.write(path, samples, rate, **kind)
    return path


def without_length(flac: Path) -> Path:
    """The file as an encoder that writes to a pipe leaves it: 36 bits of STREAMINFO, and the digest, are zero."""
    content = bytearray(flac.read_bytes())
    assert content[:4] == b"fLaC" and content[4] & 0x7F == 0
    content[21] &= 0xF0
    content[22:42] = bytes(20)
    flac.write_bytes(content)
    return flac


def without_index(path: Path, samples: NDArray[np.float32], rate: int = RATE) -> Path:
    """An MP3 file of varying bit rate without its first frame, which holds the Xing index; ffmpeg writes none to a pipe."""
    write(path, samples, rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.0)
    content = path.read_bytes()
    sync, second = content[:2], content.find(content[:2], 4)
    assert b"Xing" in content[:second] and sync == content[second : second + 2]
    path.write_bytes(content[second:])
    return path


def reports(path: Path, training: bool = True, **fields: object) -> tuple[list[Utterance], PreparationReport]:
    row = replace(Utterance("a", str(path), "bem", "eng", "text"), **fields)
    return prepare([row], languages=None, min_seconds=0.1, max_seconds=60.0, training=training)


# Unknown lengths


def test_flac_that_does_not_say_how_long_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = noise(5.0)
    whole = soundfile.read(write(tmp_path / "whole.flac", samples), dtype="float32")[0]
    path = without_length(write(tmp_path / "piped.flac", samples))
    monkeypatch.setattr(audio, "BLOCK", 3000)
    np.testing.assert_array_equal(load_audio(str(path)), whole)
    np.testing.assert_array_equal(load_audio(str(path), 1.25, 2.0), whole[20000:52000])
    np.testing.assert_array_equal(load_audio(str(path), 4.5, 2.0), whole[72000:])
    with pytest.raises(AudioError, match=audio.BEYOND_END):
        load_audio(str(path), 5.5, 1.0)
    (kept,), report = reports(path)
    assert (kept.duration, report.of("bem").cut) == (5.0, 0)


@pytest.mark.parametrize(("riff", "data"), [(0, 0), (36, 0), (2**32 - 1, 2**32 - 1), (0x7FFFF024, 0x7FFFF000), (2**31, 2**31)])
def test_wav_of_a_program_that_could_not_go_back_to_its_header(tmp_path: Path, riff: int, data: int) -> None:
    samples = noise(1.0)
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, 4, riff)
    struct.pack_into("<I", content, content.index(b"data") + 4, data)
    path.write_bytes(content)
    np.testing.assert_array_equal(load_audio(str(path)), samples[:, 0])
    np.testing.assert_array_equal(load_audio(str(path), 0.25, 0.5), samples[4000:12000, 0])
    assert [row.duration for row in reports(path)[0]] == [1.0]


def test_wav_that_is_empty_indeed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(0.0))
    for follows in (b"", b"LIST\x04\0\0\0INFO"):
        path.write_bytes(path.read_bytes()[:44] + follows)
        with pytest.raises(AudioError, match=audio.EMPTY):
            load_audio(str(path))


def test_mp3_without_an_index_is_read_to_its_end(tmp_path: Path) -> None:
    """libsndfile takes the bit rate of the first frame for that of all, and reads a part."""
    samples = np.concatenate([noise(2.0), noise(8.0) / 1000])
    write(tmp_path / "whole.mp3", samples, format="MP3", bitrate_mode="VARIABLE", compression_level=0.0)
    whole = soundfile.read(tmp_path / "whole.mp3", dtype="float32")[0]
    path = without_index(tmp_path / "piped.mp3", samples)
    assert soundfile.info(path).frames < 0.9 * len(whole)
    found = load_audio(str(path))
    # Without the index, nothing tells that 576 samples are the encoder's delay and 529 the decoder's.
    np.testing.assert_allclose(found[1105 : 1105 + len(whole)], whole, atol=2e-7)
    np.testing.assert_allclose(load_audio(str(path), 7.5, 0.5), found[120000:128000], atol=2e-7)
    (kept,), report = reports(path)
    assert kept.duration == len(found) / RATE and report.of("bem").cut == 0


# Cut off


def flac_without_length(path: Path, samples: NDArray[np.float32]) -> Path:
    return without_length(write(path, samples))


CUT: dict[str, Callable[[Path, NDArray[np.float32]], Path]] = {
    "a.wav": write,
    "a.flac": write,
    "b.flac": flac_without_length,
    "a.mp3": write,
    "a.ogg": write,
    "a.au": write,
    "a.aiff": write,
    "opus.ogg": lambda path, samples: write(path, samples, subtype="OPUS"),
    "ulaw.wav": lambda path, samples: write(path, samples, subtype="ULAW"),
    "a.sph": lambda path, samples: write(path, samples, format="NIST", subtype="ULAW"),
}


@pytest.mark.parametrize("name", CUT)
def test_truncated_files_are_not_trained_on(tmp_path: Path, name: str) -> None:
    path = CUT[name](tmp_path / name, noise(4.0))
    kept, report = reports(path)
    assert len(kept) == 1 and report.of("bem").cut == 0
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 7 // 10 + 1])
    kept, report = reports(path)
    assert (kept, dict(report.of("bem").skipped)) == ([], {preparation.TRUNCATED: 1})
    (kept,), report = reports(path, training=False)
    assert 1.5 < kept.duration < 3.2
    assert dict(report.of("bem").notes) == {preparation.TRUNCATED: 1}
    assert "1  kept, but truncated or damaged file" in report.summary({})


def test_segments_of_a_truncated_file(tmp_path: Path) -> None:
    """Those before the cut are whole."""
    for name in ("a.wav", "a.flac"):
        path = write(tmp_path / name, noise(10.0))
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 6 // 10])
        assert [row.duration for row in reports(path, offset=1.0, duration=4.0)[0]] == [4.0]
        assert dict(reports(path, offset=4.0, duration=4.0)[1].of("bem").skipped) == {preparation.TRUNCATED: 1}
        assert dict(reports(path, offset=8.0, duration=1.0)[1].of("bem").skipped) == {audio.CUT_OFF: 1}
        assert dict(reports(path, offset=10.5, duration=1.0)[1].of("bem").skipped) == {audio.BEYOND_END: 1}


@pytest.mark.parametrize(("missing", "kept"), [(726, True), (1452, True), (3000, True), (3400, False), (16000, False)])
def test_a_header_that_overstates_by_a_recorders_buffers_is_no_truncation(tmp_path: Path, missing: int, kept: bool) -> None:
    """Bytes of 16-bit samples at 16 kHz: .1 s are 3,200."""
    path = write(tmp_path / "a.wav", noise(2.0), subtype="PCM_16")
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    struct.pack_into("<I", content, place, 64000 + missing)
    path.write_bytes(content)
    found, report = reports(path)
    assert [row.duration for row in found] == ([2.0] if kept else [])
    assert report.of("bem").cut == kept
    assert report.of("bem").skipped[preparation.TRUNCATED] == (not kept)


@needs_samples
def test_real_speech_whose_headers_overstate_is_kept() -> None:
    paths = [*SHARED.glob("mboshi-french/dev/*.wav"), *sorted(SHARED.glob("natural-speech/*/dev/audio/*.ogg"))[::8]]
    rows = [Utterance(path.name, str(path), "mdw", "fra", "x") for path in sorted(paths)]
    kept, report = prepare(rows, languages=None, min_seconds=0.1, max_seconds=60.0)
    assert len(kept) == len(rows) and report.of("mdw").cut == 3


# Signals


def test_channels_that_cancel_out_are_not_averaged(tmp_path: Path) -> None:
    speech, other = noise(1.0), noise(1.0, seed=1)
    for channels in (
        np.concatenate([speech, -speech], axis=1),
        np.concatenate([speech + 0.1, 0.1 - 0.7 * speech], axis=1),
        np.concatenate([speech, 0.02 * other - speech, 0.01 * other], axis=1),
    ):
        segment = read_segment(str(write(tmp_path / "opposite.wav", channels, subtype="FLOAT")))
        loudest = np.square(channels).sum(axis=0).argmax()
        assert segment.opposite and not segment.silent
        np.testing.assert_array_equal(segment.samples, channels[:, loudest])
    _, report = reports(tmp_path / "opposite.wav")
    assert dict(report.of("bem").notes) == {preparation.OPPOSITE: 1}


@pytest.mark.parametrize("second", [1.0, 0.0, -0.3, None])
def test_other_channels_are_averaged(tmp_path: Path, second: float | None) -> None:
    """Equal, silent, weakly opposite, and independent ones."""
    first = noise(1.0)
    channels = np.concatenate([first, noise(1.0, seed=1) if second is None else second * first], axis=1)
    segment = read_segment(str(write(tmp_path / "a.wav", channels, subtype="FLOAT")))
    assert not segment.opposite
    np.testing.assert_allclose(segment.samples, channels.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize(("name", "level"), [("a.wav", 0.0), ("a.wav", 0.25), ("a.mp3", 0.0), ("a.ogg", 0.0)])
def test_digital_silence_is_not_trained_on(tmp_path: Path, name: str, level: float) -> None:
    path = write(tmp_path / name, np.full((RATE, 2), level, dtype=np.float32))
    kept, report = reports(path)
    assert (kept, dict(report.of("bem").skipped)) == ([], {preparation.SILENT: 1})
    kept, report = reports(path, training=False)
    assert len(kept) == 1 and dict(report.of("bem").notes) == {preparation.SILENT: 1}


def test_the_quietest_recording_is_no_silence(tmp_path: Path) -> None:
    steps = np.random.default_rng(0).integers(0, 2, RATE).astype(np.int16)
    kept, _ = reports(write(tmp_path / "a.wav", steps))
    assert len(kept) == 1


@pytest.mark.parametrize("kind", ["alike", "opposite", "silent"])
def test_long_audio_is_never_held_with_all_its_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What is told of channels is of all blocks: here, the first half is silent."""
    loud = noise(20.0, rate=44100) * (np.arange(20 * 44100) > 10 * 44100)[:, None]
    channels = {"alike": [loud, loud], "opposite": [loud, -loud], "silent": [0 * loud, 0 * loud]}[kind]
    path = write(tmp_path / "a.wav", np.concatenate([channels[0], channels[1]], axis=1), 44100, subtype="FLOAT")
    monkeypatch.setattr(audio, "BLOCK", 2**14)
    segment = read_segment(str(path))
    assert (segment.opposite, segment.silent, segment.channels) == (kind == "opposite", kind == "silent", 2)
    np.testing.assert_array_equal(segment.samples, soxr.resample(channels[0][:, 0], 44100, RATE))
    tracemalloc.start()
    try:
        read_segment(str(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.25 * 2 * loud.nbytes, "of the samples of the file"


# What is no audio


@pytest.mark.parametrize(
    ("content", "kind", "advice"),
    [
        (b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom" + bytes(40), "MP4/M4A/MOV file", "ffmpeg -i"),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01webm", "WebM/Matroska file", "ffmpeg -i"),
        (b"\xff\xf1\x50\x80\x02\x1f\xfc" + bytes(60), "AAC file", "ffmpeg -i"),
        (b"OggS\0\x02" + bytes(20) + b"\x01\x50Speex   1.2", "Ogg/Speex file", "ffmpeg -i"),
        (b"\n<!DOCTYPE html>\n<title>404</title>", "HTML page", "fetch it again"),
        (b'\xef\xbb\xbf{"error": "quota exceeded"}', "JSON", "fetch it again"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML document", "fetch it again"),
        (b"PK\x03\x04\x14\0\0\0\x08\0", "zip archive", "unpack it"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "gzip archive", "unpack it"),
        (bytes(2000), "zero bytes only", "fetch it again"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_audio_is_named_with_what_to_do(tmp_path: Path, content: bytes, kind: str, advice: str) -> None:
    for name in ("a.wav", "a.mp3", "a.flac"):
        path = tmp_path / name
        path.write_bytes(content)
        _, report = reports(path)
        ((reason, count),) = report.of("bem").skipped.items()
        assert count == 1 and reason.startswith(kind) and advice in reason
        with pytest.raises(AudioError, match=kind):
            load_audio(str(path))


def test_samples_without_a_header_do_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(range(256)))
    assert dict(reports(tmp_path / "a.raw")[1].of("bem").skipped) == {containers.HEADERLESS: 1}


# Names


@pytest.mark.parametrize(("stated", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_the_other_normal_form_are_found(tmp_path: Path, stated: str, on_disk: str) -> None:
    """macOS writes names in NFD."""

    def folder(form: str) -> Path:
        return tmp_path / unicodedata.normalize(form, "Aymará") / unicodedata.normalize(form, "señal.wav")

    there, named = folder(on_disk), folder(stated)
    there.parent.mkdir()
    write(there, noise(1.0))
    assert not named.exists()
    np.testing.assert_array_equal(load_audio(str(named)), load_audio(str(there)))
    kept, _ = reports(named)
    assert [row.audio for row in kept] == [str(there)]
    measured = Measured("a", str(named), "bem", "eng", "text", duration=1.0)
    assert [row.audio for row in prepare([measured], languages=None, min_seconds=0.1, max_seconds=2.0)[0]] == [str(there)]
    assert len(FeatureStore.build([measured], tmp_path / "features")) == 1
    mixed = there.parent / named.name
    assert len(load_audio(str(mixed))) == RATE


def test_a_link_out_of_the_corpus_is_not_followed_by_another_name(tmp_path: Path) -> None:
    write(tmp_path / "outside.wav", noise(1.0))
    (tmp_path / "corpus").mkdir()
    name = "señal.wav"
    (tmp_path / "corpus" / unicodedata.normalize("NFD", name)).symlink_to(tmp_path / "outside.wav")
    row = Utterance("a", str(tmp_path / "corpus" / unicodedata.normalize("NFC", name)), "bem", "eng", "text")
    write_manifest(tmp_path / "corpus" / "train.jsonl", [row])
    with pytest.raises(ManifestError, match="lies outside of"):
        list(stream_manifest(tmp_path / "corpus" / "train.jsonl", audio_roots=[]))


# Segments of long MP3 files


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2), (22050, 1), (48000, 1)])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_segments_of_an_mp3_file_are_those_of_the_whole(tmp_path: Path, rate: int, channels: int, mode: str) -> None:
    loud = np.linspace(0.0, 1.0, 12 * rate, dtype=np.float32)[:, None]
    path = write(tmp_path / "a.mp3", loud * noise(12.0, channels, rate=rate), rate, format="MP3", bitrate_mode=mode)
    whole = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
    starts = [1, 500, 1151, 3 * rate + 7, *np.random.default_rng(0).integers(0, 11 * rate, 12).tolist(), 11 * rate + rate // 2]
    for start in starts:
        found = load_audio(str(path), start / rate, 1.0, rate)
        np.testing.assert_allclose(found, whole[start : start + rate], atol=3e-7)
    np.testing.assert_allclose(load_audio(str(path), 10.0, None, rate), whole[10 * rate :], atol=3e-7)
    with pytest.raises(AudioError, match=audio.BEYOND_END):
        load_audio(str(path), 12.5, 1.0)


def test_segments_cost_what_they_are_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The places of frames are found once, and of each segment no more than it and a second is decoded."""
    path = write(tmp_path / "talk.mp3", noise(60.0))
    decoded: list[int] = []
    original = soundfile.SoundFile.buffer_read_into

    def counting(self: soundfile.SoundFile, buffer: NDArray[np.float32], dtype: str) -> int:
        decoded.append(original(self, buffer, dtype))
        return decoded[-1]

    monkeypatch.setattr(soundfile.SoundFile, "buffer_read_into", counting)
    mp3._frames_of.cache_clear()
    for offset in range(1, 59):
        load_audio(str(path), float(offset), 1.0)
    assert len(decoded) == 58 and max(decoded) < 2 * RATE
    assert mp3._frames_of.cache_info().misses == 1


def test_mp3_with_something_between_its_frames_is_read_all_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3", noise(8.0))
    whole = soundfile.read(path, dtype="float32")[0]
    frames = mp3.frames_of(str(path))
    assert frames is not None
    content, place = path.read_bytes(), int(frames.starts[60])
    path.write_bytes(content[:place] + bytes(50) + content[place:])
    assert mp3.frames_of(str(path)) is None
    np.testing.assert_allclose(load_audio(str(path), 1.0, 0.5), whole[16000:24000], atol=3e-7)
