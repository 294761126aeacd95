from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gdps_ds.config import Config, ModelConfig
from gdps_ds.data.manifest import Utterance, write_manifest
from gdps_ds.model.families import load_model
from gdps_ds.model.tokens import train_tokenizer
from tests.tiny import ARCHITECTURE
from tests.unit.data.fixtures import tone
from tests.unit.reporting import test_tracking
from tests.unit.training.small_corpus import DAYS


@pytest.fixture
def run_config(tmp_path: Path) -> Config:
    (tmp_path / "zero.json").write_text("{}")
    return test_tracking.config(tmp_path / "run").model_copy(update={"deepspeed": str(tmp_path / "zero.json")})


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two languages, translated into two; the test set of one has no references, that of the other some."""
    for split, count in (("train", 14), ("dev", 4), ("test", 4)):
        rows = []
        for number in range(count):
            language, target = (("bem", "eng"), ("mdw", "fra"))[number % 2]
            audio = str(tone(tmp_path / "corpus" / split / f"{number}.wav", 0.2 + number / 20))
            text = f"{DAYS[number % 7]} {number}, {len(split)}"
            rows.append(Utterance(f"{split}-{number}", audio, language, target, text))
        if split == "test":
            rows = [replace(row, target_text=row.target_text if number == 0 else None) for number, row in enumerate(rows)]
        write_manifest(tmp_path / "corpus" / f"{split}.jsonl", rows)
    return tmp_path / "corpus"


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> Config:
    phase = {"updates": 1, "lr": 1.0}
    return Config.model_validate(
        {
            "deepspeed": "unused.json",
            "run": {"dir": str(tmp_path / "run")},
            "data": {"languages": ["bem", "mdw"], "corpora": [{"layout": "manifest", "root": str(corpus)}]},
            "model": {"vocab_size": 60},
            "train": {"unify": phase, "specialise": phase},
            "track": {"progress": False},
        }
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole checkpoint that translates into English and French."""
    tokenizer = train_tokenizer([f"{day} 0123456789, 345" for day in DAYS], ["eng", "fra"], tmp_path / "checkpoint", 60)
    load_model(ModelConfig(config=ARCHITECTURE), tokenizer, seed=1).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"
