from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gdps_ds.data.manifest import DataError
from gdps_ds.evaluation.comet import comet_scores, comet_signature, load_comet
from tests.unit.evaluation.texts import corrupted, references
from tests.unit.evaluation.tiny_comet import build_comet

REFERENCES = references(11)
HYPOTHESES = corrupted(REFERENCES, 0.3, seed=1)
SOURCES = references(11, seed=5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_comet(tmp_path_factory.mktemp("comet") / "tiny")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return load_comet(str(checkpoint))


def scores(model: Any, sources: list[str] = SOURCES, normaliser: str = "none", batch: int = 4) -> np.ndarray:
    return comet_scores(model, sources, HYPOTHESES, REFERENCES, normaliser=normaliser, batch=batch, device="cpu")


def test_scores_are_those_of_comets_own_predict(model: Any) -> None:
    samples = [
        {"src": source, "mt": hypothesis, "ref": reference}
        for source, hypothesis, reference in zip(SOURCES, HYPOTHESES, REFERENCES, strict=True)
    ]
    theirs = model.predict(samples, batch_size=4, gpus=0, num_workers=0, progress_bar=False)["scores"]
    assert len({round(score, 4) for score in theirs}) > 8
    np.testing.assert_allclose(scores(model), theirs, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_scores_do_not_depend_on_batches(model: Any, batch: int) -> None:
    np.testing.assert_allclose(scores(model, batch=batch), scores(model), atol=1e-5)


def test_the_source_counts(model: Any) -> None:
    assert np.abs(scores(model) - scores(model, sources=[""] * 11)).max() > 1e-3


def test_hypotheses_and_references_are_normalised(model: Any) -> None:
    shouted = [f"{text.upper()}!" for text in HYPOTHESES]
    found = comet_scores(model, SOURCES, shouted, REFERENCES, normaliser="gmu", batch=4, device="cpu")
    np.testing.assert_allclose(found, scores(model, normaliser="gmu"), atol=1e-6)


def test_a_score_that_is_no_number_is_refused(checkpoint: Path) -> None:
    broken = load_comet(str(checkpoint))
    broken.estimator.ff[0].weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="11 scores that are no finite numbers"):
        scores(broken)


def test_a_missing_model_is_told_in_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"comet_model: there is no file .*none.ckpt; fetch it .* without --comet"):
        load_comet(str(tmp_path / "none.ckpt"))

    def offline(name: str) -> str:
        raise KeyError(f"Model '{name}' not supported by COMET.")

    monkeypatch.setattr("comet.download_model", offline)
    with pytest.raises(DataError, match=r"no COMET model 'Unbabel/wmt22-comet-da' on disk or on the hub .* without --comet"):
        load_comet("Unbabel/wmt22-comet-da")


def test_a_missing_encoder_is_told_too(tmp_path: Path) -> None:
    path = build_comet(tmp_path / "comet")
    (tmp_path / "comet" / "encoder" / "config.json").unlink()
    (tmp_path / "comet" / "hparams.yaml").unlink()
    with pytest.raises(DataError, match=r"model.ckpt cannot be loaded \(.*hparams.yaml file is missing"):
        load_comet(str(path))


def test_the_signature_names_model_source_version_and_normaliser() -> None:
    assert comet_signature("m", "empty", "gdps").startswith("model:m|source:empty|version:2.")
    assert comet_signature("m", "empty", "gdps").endswith("|normaliser:gdps")
