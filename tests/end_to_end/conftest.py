from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gdps_ds.data.demo import build_demo_corpus
from tests.end_to_end.runs import run
from tests.tiny import ARCHITECTURE


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A handful of the demo corpus's utterances."""
    return build_demo_corpus(tmp_path_factory.mktemp("corpora") / "demo", train=32, dev=6, test=5, workers=1)


@pytest.fixture(scope="session")
def experiment(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All phases, a few updates each; groups and site are given, so that the plan splits whatever a run so short finds."""
    tree = {
        "deepspeed": "ds_configs/zero2.json",
        "run": {"dir": "set by the test"},
        "data": {
            "languages": ["aeb", "bem", "est", "gle"],
            "corpora": [{"layout": "manifest", "root": str(corpus)}],
            "max_seconds": 10,
            "max_frames": 500,
        },
        "model": {"vocab_size": 100, "config": ARCHITECTURE | {"max_source_positions": 512, "dropout": 0.1}},
        "train": {
            "unify": {"updates": 6, "lr": 2e-3, "warmup": 2},
            "specialise": {"updates": 4, "lr": 2e-3, "private_lr": 4e-3},
            "micro_batches": 4,
            "log_every": 1,
            "dev_every": 3,
            "checkpoint_every": 2,
        },
        "mine": {"updates": 3, "sketch": 16, "folds": 4},
        "plan": {
            "round_to": 8,
            "groups": [["aeb", "gle"], ["bem", "est"]],
            "sites": ["speech_encoder.encoder.layers.1.ffn2"],
            "shared": 0.5,
        },
        "decode": {"beams": 2, "max_new_tokens": 8, "resamples": 100, "trials": 100},
        "track": {"report": False},
    }
    path = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="session")
def finished(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run: 2 ranks, ZeRO-2, logged to W&B offline."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    output = run(experiment, folder, "track.wandb=true", "track.report=true")
    (folder / "output.txt").write_text(output)
    return folder
