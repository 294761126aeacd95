"""A saved engine goes on at any ZeRO stage and any number of ranks, through the real launcher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from gdps_ds.distributed.saved_state import ForeignStateError, SavedState, load_weights
from gdps_ds.model.surgery import split_model
from tests.launch import launch
from tests.tiny import LANGUAGES, tiny_model, tiny_plan

pytestmark = pytest.mark.launcher

STAGES = ("zero0", "zero1", "zero2", "zero3")
SAME_SIZE = [(stage, stage) for stage in (*STAGES, "zero2_bf16")]
SAME_SIZE += [("zero0", "zero2"), ("zero1", "zero0"), ("zero2", "zero3"), ("zero3", "zero1")]
OTHER_SIZE = [("zero0", "zero3"), ("zero2", "zero2"), ("zero3", "zero0")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, dict]:
    """Saved and loaded by 2 ranks; by 1 rank, also what 2 have saved; by 2, what 1 has saved."""
    program, found = "tests/distributed/state_worker.py", {}
    same = [f"{saved}-2:{stage}" for saved, stage in SAME_SIZE]
    fewer, more = ([f"{saved}-{ranks}:{stage}" for saved, stage in OTHER_SIZE] for ranks in (2, 1))
    launches = (
        (2, ["--save", *STAGES, "zero2_bf16", "--load", *same]),
        (1, ["--save", *(saved for saved, _ in OTHER_SIZE), "--load", *fewer]),
        (2, ["--load", *more]),
    )
    for ranks, arguments in launches:
        code, output = launch(program, "--out", folder, *arguments, ranks=ranks)
        assert code == 0, output[-3000:]
        loaded = json.loads((folder / f"results-{ranks}.json").read_text())
        found |= {f"{name}-{ranks}": result for name, result in loaded.items()}
    return found


def test_every_tensor_comes_back_at_every_stage_and_world_size(results: dict[str, dict]) -> None:
    assert len(results) == len(SAME_SIZE) + 2 * len(OTHER_SIZE)
    for name, result in results.items():
        assert result["changed"] == [], name
        assert result["tensors"] > 300, name
        assert result["frozen"] and result["buffer"] == [0.25], name
        assert result["steps"] == 4, name


def test_training_goes_on_as_if_never_stopped(results: dict[str, dict]) -> None:
    """At another stage or world size, sums over ranks run in another order; bit-equality of whole runs is tested end to end."""
    for name, result in results.items():
        saved, stage = name.split(":")
        assert result["losses"] == pytest.approx(result["expected"], abs=5e-6 if saved == stage else 5e-5), name


def test_a_whole_model_is_read_without_an_engine(results: dict[str, dict], folder: Path) -> None:
    truth = torch.load(folder / "zero2-2" / "truth.pt")
    model = tiny_model(seed=5)
    split_model(model, tiny_plan(), LANGUAGES, seed=3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("text_decoder.layer_norm."))
    with SavedState(folder / "zero2-2") as saved:
        load_weights(model, saved)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, truth[name, "master"]), name


def test_weights_of_another_model_are_refused(results: dict[str, dict], folder: Path) -> None:
    with SavedState(folder / "zero2-2") as saved, pytest.raises(ForeignStateError, match="written by another model") as caught:
        load_weights(tiny_model(), saved)
    assert "layers.1.ffn2.intermediate_dense.weight is missing" in str(caught.value)
    with (
        SavedState(folder / "zero2-2") as saved,
        pytest.raises(ForeignStateError, match=r"has shape .* the model's is \(61, 16\)"),
    ):
        wider = tiny_model(vocab_size=61)
        split_model(wider, tiny_plan(), LANGUAGES, seed=3)
        load_weights(wider, saved)


def test_a_missing_shard_is_named(results: dict[str, dict], folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "zero2-2", tmp_path / "state")
    (tmp_path / "state" / "shard-00001.safetensors").unlink()
    with SavedState(tmp_path / "state") as saved, pytest.raises(ForeignStateError, match="a shard file is missing"):
        for name in saved.shapes:
            saved.full(name)


def test_files_hold_no_pickle(results: dict[str, dict], folder: Path) -> None:
    files = {path.name for path in (folder / "zero3-2").iterdir()} - {"truth.pt", "losses.json"}
    assert files == {"engine.json", "fixed.safetensors", "shard-00000.safetensors", "shard-00001.safetensors"}
