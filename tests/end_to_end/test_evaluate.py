"""launchers/evaluate.py: plain checkpoints on 1 and 2 ranks, files of translations, COMET, and faults."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from gdps_ds.config import ModelConfig
from gdps_ds.data.manifest import Utterance, read_manifest, write_manifest
from gdps_ds.evaluation.decoding import Translation
from gdps_ds.evaluation.systems import read_translations, write_translations
from gdps_ds.model.families import load_model
from gdps_ds.model.tokens import train_tokenizer
from launchers.evaluate import main
from tests.launch import launch
from tests.tiny import ARCHITECTURE
from tests.unit.evaluation.tiny_comet import build_comet

FEW = ["decode.resamples=20", "decode.trials=20", "decode.beams=2", "decode.max_new_tokens=8"]


@pytest.fixture(scope="module")
def utterances(corpus: Path) -> list[Utterance]:
    return list(read_manifest(corpus / "test.jsonl"))


@pytest.fixture(scope="module")
def checkpoints(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two plain ``transformers`` checkpoints with random weights and one tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoints")
    texts = [str(utterance.target_text) for utterance in read_manifest(corpus / "train.jsonl")]
    tokenizer = train_tokenizer(texts, ["eng"], folder / "tokenizer", vocab_size=100)
    settings = ModelConfig.model_validate({"config": ARCHITECTURE | {"max_source_positions": 512}})
    for seed in (1, 2):
        model = load_model(settings, tokenizer, seed)
        # Strong enough layers that translations depend on the speech, and are not the first token over and over.
        for parameter in model.text_decoder.layers.parameters():
            parameter.data *= 6.0 if parameter.dim() == 2 else 1.0
        model.save_pretrained(folder / f"tiny-{seed}")
        tokenizer.save_pretrained(folder / f"tiny-{seed}")
    return [folder / "tiny-1", folder / "tiny-2"]


@pytest.fixture(scope="module")
def translated(corpus: Path, checkpoints: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both checkpoints by one process, in large batches."""
    out = tmp_path_factory.mktemp("scores")
    assert main([*map(str, checkpoints), "--manifest", str(corpus / "test.jsonl"), "--out", str(out), *FEW]) == 0
    return out


@pytest.fixture(scope="module")
def clear(corpus: Path, checkpoints: list[Path], translated: Path, tmp_path_factory: pytest.TempPathFactory) -> list[set[str]]:
    """Of each checkpoint, the utterances whose translation is no near tie: it stays as it is where all weights change by
    1e-5 of themselves, a hundred times what kernels for other batches or processors do to a product."""
    folder = tmp_path_factory.mktemp("changed")
    torch.manual_seed(0)
    for path in checkpoints:
        shutil.copytree(path, folder / path.name)
        weights = load_file(path / "model.safetensors")
        for weight in filter(torch.is_floating_point, weights.values()):
            weight *= 1 + 1e-5 * torch.randn_like(weight)
        save_file(weights, folder / path.name / "model.safetensors", metadata={"format": "pt"})
    arguments = [*(str(folder / path.name) for path in checkpoints), "--manifest", str(corpus / "test.jsonl")]
    assert main([*arguments, "--out", str(folder / "out"), *FEW]) == 0
    pairs = zip(hypotheses(translated), hypotheses(folder / "out"), strict=True)
    found = [{row.id for row in rows if row in changed} for rows, changed in pairs]
    assert min(map(len, found)) >= 15
    return found


def hypotheses(out: Path) -> list[list[Translation]]:
    return [read_translations(path) for path in files_of(out)]


def files_of(out: Path) -> list[Path]:
    return sorted((out / "hypotheses").glob("*.jsonl"))


def assert_same(ours: list[Translation], theirs: list[Translation], clear: set[str]) -> None:
    """Where nothing depends on rounding; order and references everywhere."""
    assert [replace(row, hypothesis="") for row in ours] == [replace(row, hypothesis="") for row in theirs]
    assert [row for row in ours if row.id in clear] == [row for row in theirs if row.id in clear]


def results_of(out: Path) -> Any:
    return json.loads((out / "scores.json").read_text())


def test_checkpoints_are_translated_scored_and_compared(translated: Path, utterances: list[Utterance]) -> None:
    (first, second), scores = hypotheses(translated), results_of(translated)
    assert [row.id for row in first] == [utterance.id for utterance in utterances]
    assert len({row.hypothesis for row in first}) > 3
    assert [row.hypothesis for row in first] != [row.hypothesis for row in second]
    assert list(scores["scores"]) == ["tiny-1", "tiny-2"]
    assert set(scores["scores"]["tiny-1"]) == {"aeb", "bem", "est", "gle", "mean"}
    assert len(scores["comparisons"]) == 3 * 5


@pytest.mark.launcher
def test_two_ranks_give_the_same(
    translated: Path, clear: list[set[str]], corpus: Path, checkpoints: list[Path], tmp_path: Path
) -> None:
    """And in batches of three, where one process had all utterances in one or two."""
    code, output = launch(
        "launchers/evaluate.py", *checkpoints, "--manifest", corpus / "test.jsonl", "--out", tmp_path, *FEW,
        "decode.max_utterances=3",
    )  # fmt: skip
    assert code == 0, output[-3000:]
    for ours, theirs, ids in zip(hypotheses(tmp_path), hypotheses(translated), clear, strict=True):
        assert_same(ours, theirs, ids)
    assert output.count("BLEU tiny-1") == 2
    files = [str(path) for path in files_of(tmp_path)]
    assert main([*files, "--out", str(tmp_path / "again"), *FEW]) == 0
    assert results_of(tmp_path / "again") == results_of(tmp_path)


def test_an_utterance_alone_gives_the_same_and_durations_may_be_left_out(
    translated: Path,
    clear: list[set[str]],
    corpus: Path,
    utterances: list[Utterance],
    checkpoints: list[Path],
    tmp_path: Path,
) -> None:
    manifest = corpus / "without-durations.jsonl"
    write_manifest(manifest, [replace(utterance, duration=None) for utterance in utterances])
    arguments = [str(checkpoints[1]), "--manifest", str(manifest), "--out", str(tmp_path), *FEW]
    assert main([*arguments, "decode.max_utterances=1"]) == 0
    assert_same(hypotheses(tmp_path)[0], hypotheses(translated)[1], clear[1])


def test_the_translations_are_scored_again_as_files(translated: Path, tmp_path: Path) -> None:
    files = [str(path) for path in files_of(translated)]
    assert main([*files, "--out", str(tmp_path), *FEW]) == 0
    assert results_of(tmp_path) == results_of(translated)


def test_other_settings_than_translations_were_made_with_are_told(
    translated: Path, corpus: Path, checkpoints: list[Path], tmp_path: Path
) -> None:
    """One system from a file that two beams made, the other translated now with three."""
    file, out = files_of(translated)[0], tmp_path / "out"
    arguments = [f"old={file}", f"new={checkpoints[0]}", "--manifest", str(corpus / "test.jsonl"), "--out", str(out), *FEW]
    assert main([*arguments, "decode.beams=3"]) == 0
    told = [note for note in results_of(out)["notes"] if "settings" in note]
    assert told == ["old was decoded with other settings: decode.beams 2 instead of 3"]
    assert told[0] in (out / "scores.txt").read_text()
    assert json.loads((out / "hypotheses" / "new.decoding.json").read_text())["beams"] == 3


def test_every_utterance_has_its_line(
    utterances: list[Utterance], checkpoints: list[Path], translated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A manifest as it comes: no durations, audio that is missing or cannot be read, and 2.5 times the longest piece."""
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, 40_000)
    soundfile.write(tmp_path / "long.wav", samples, 16_000)
    rows = [replace(each, duration=None) for each in utterances[:2]]
    strange = {"broken": "broken.wav", "missing": "none.wav", "long": "long.wav"}
    rows[1:1] = [replace(rows[0], id=name, audio=str(tmp_path / file)) for name, file in strange.items()]
    write_manifest(tmp_path / "test.jsonl", rows)
    arguments = [str(checkpoints[0]), "--manifest", str(tmp_path / "test.jsonl"), "--out", str(tmp_path / "out"), *FEW]
    assert main([*arguments, "decode.max_seconds=1"]) == 0
    found = read_translations(tmp_path / "out" / "hypotheses" / "tiny-1.jsonl")
    assert [row.id for row in found] == [row.id for row in rows]
    pieces = {row.id: row.pieces for row in found}
    assert (pieces["broken"], pieces["missing"], pieces["long"]) == (0, 0, 3)
    assert [row.id for row in found if not row.hypothesis] == ["broken", "missing"]
    language = utterances[0].source_lang
    note = f"tiny-1: {language}: 2 of 5 utterances could not be translated (no usable audio); their lines are empty"
    assert note in (tmp_path / "out" / "scores.txt").read_text()
    assert "1  missing file, so their translations will be empty: missing" in capsys.readouterr().out


def test_files_with_byte_order_marks_score_as_without(tmp_path: Path) -> None:
    (tmp_path / "ref").write_text("the cat sat on the mat\n", encoding="utf-8-sig")
    (tmp_path / "marked").write_text("the cat sat on the mat\n", encoding="utf-8-sig")
    (tmp_path / "plain").write_text("the cat sat on the mat\n")
    arguments = [str(tmp_path / name) for name in ("marked", "plain")]
    assert main([*arguments, "--references", str(tmp_path / "ref"), "--out", str(tmp_path / "out"), *FEW]) == 0
    scores = results_of(tmp_path / "out")["scores"]
    assert [scores[name]["und"]["BLEU"]["score"] for name in ("marked", "plain")] == [pytest.approx(100)] * 2


def test_plain_lines_and_references(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ref").write_text("the cat sat on the mat\na dog ran off\n")
    (tmp_path / "good").write_text("the cat sat on the mat\na dog ran off\n")
    (tmp_path / "bad").write_text("the cat on the mat\nzzz\n")
    arguments = [f"ours={tmp_path / 'good'}", str(tmp_path / "bad"), "--references", str(tmp_path / "ref")]
    assert main([*arguments, "--language", "bem", "--out", str(tmp_path / "out"), *FEW]) == 0
    scores = results_of(tmp_path / "out")["scores"]
    assert scores["ours"]["bem"]["BLEU"]["score"] == pytest.approx(100)
    assert scores["bad"]["bem"]["TER"]["score"] == pytest.approx(100 * 5 / 10)
    assert "COMET was not asked for" in capsys.readouterr().out


@pytest.fixture(scope="module")
def comet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_comet(tmp_path_factory.mktemp("comet") / "tiny")


def test_comet_reads_source_text_nothing_or_transcripts(
    translated: Path, corpus: Path, utterances: list[Utterance], comet: Path, tmp_path: Path
) -> None:
    files = [str(path) for path in files_of(translated)]
    (tmp_path / "asr.txt").write_text("".join(f"{utterance.source_text}\n" for utterance in utterances), encoding="utf-8")
    found = {}
    for source in ("text", "empty", "transcript"):
        out = tmp_path / source
        options = ["--comet", f"decode.comet_model={comet}", f"decode.comet_source={source}", "--out", str(out), *FEW]
        options += ["--transcripts", str(tmp_path / "asr.txt")] if source == "transcript" else []
        assert main([*files, "--manifest", str(corpus / "test.jsonl"), *options]) == 0
        scores = results_of(out)
        assert f"|source:{source}|" in scores["signatures"]["COMET"]
        found[source] = scores["scores"]["tiny-1"]["mean"]["COMET"]
    assert found["text"] == found["transcript"] != found["empty"]


def finished_run(folder: Path, utterances: list[Utterance]) -> Path:
    """As much of a run directory as is read: configuration, plan and two arms' translations."""
    folder.mkdir()
    (folder / "config.yaml").write_text("decode: {normaliser: gmu, resamples: 20, trials: 20}\n")
    site = {"name": "speech_encoder.encoder.layers.1.ffn2", "hidden": 48, "shared_width": 24}
    plan = {"languages": ["aeb", "bem", "est", "gle"], "groups": [["bem"], ["aeb", "est", "gle"]], "sites": [site]}
    (folder / "plan.json").write_text(json.dumps(plan))
    for arm in ("gdps", "uniform"):
        rows = [
            Translation(each.id, each.source_lang, "eng", f"{str(each.target_text).upper()}!", each.target_text)
            for each in utterances
        ]
        write_translations(folder / "hypotheses" / f"{arm}.jsonl", rows)
    return folder


def test_a_run_directory_brings_arms_settings_and_groups(utterances: list[Utterance], tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", utterances)
    assert main([str(run)]) == 0
    scores = results_of(run / "evaluation")
    assert list(scores["scores"]) == ["gdps", "uniform"]
    assert scores["scores"]["gdps"]["aeb+est+gle"]["TER"]["score"] == 0, "normalised by gmu"
    assert main([f"first={run}", "--arm", "gdps", "decode.normaliser=none", "--out", str(tmp_path / "out")]) == 0
    scores = results_of(tmp_path / "out")
    assert list(scores["scores"]) == ["first-gdps"]
    assert scores["scores"]["first-gdps"]["mean"]["TER"]["score"] > 20


def fault(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_faults_are_told(
    translated: Path, corpus: Path, utterances: list[Utterance], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, manifest, out = translated / "hypotheses" / "tiny-1.jsonl", corpus / "test.jsonl", tmp_path / "out"
    assert "--out is needed" in fault(capsys, file)
    assert "decode.beams: input should be greater than or equal to 1 (found 0)" in fault(
        capsys, file, "--out", out, "decode.beams=0"
    )
    assert "decode.beans: unknown key; did you mean 'beams'?" in fault(capsys, file, "--out", out, "decode.beans=3")
    nowhere = fault(capsys, tmp_path / "none.jsonl", "--manifest", manifest, "--out", out)
    assert "none.jsonl: no SeamlessM4T checkpoint on disk or on the hub" in nowhere
    assert "needs audio: --manifest" in fault(capsys, tmp_path / "none", "--out", out)
    rows = read_translations(file)
    write_translations(tmp_path / "part.jsonl", rows[1:])
    assert f"part lacks 1 utterances of tiny-1, such as {rows[0].id}" in fault(
        capsys, file, tmp_path / "part.jsonl", "--out", out
    )
    missing = fault(capsys, file, "--manifest", manifest, "--out", out, "--comet", f"decode.comet_model={tmp_path}/m.ckpt")
    assert "decode.comet_model: there is no file" in missing and missing.count("\n") == 1
    write_manifest(tmp_path / "mute.jsonl", [replace(each, source_text=None) for each in utterances])
    silent = fault(capsys, file, "--manifest", tmp_path / "mute.jsonl", "--out", out, "--comet")
    assert f"{len(utterances)} utterances have no source_text" in silent
    assert [path.name for path in out.iterdir()] == [".evaluate.lock"], "nothing but the lock is written"


def test_an_unknown_target_language_fails(
    utterances: list[Utterance], checkpoints: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(tmp_path / "swahili.jsonl", [replace(each, target_lang="swh") for each in utterances[:2]])
    found = fault(capsys, checkpoints[0], "--manifest", tmp_path / "swahili.jsonl", "--out", tmp_path / "out")
    assert "the tokenizer has no target language 'swh'" in found
