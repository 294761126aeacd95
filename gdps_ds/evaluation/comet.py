"""COMET (Rei et al. 2020, 2022): a model that scores a translation beside its source and its reference.

Lightning's ``Trainer``, which COMET's own ``predict`` runs in, takes the launcher's and the scheduler's variables (``RANK``,
``SLURM_NTASKS``) for its own and would start processes; the few lines here do without it and give the same scores.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from gdps_ds.data.manifest import DataError
from gdps_ds.evaluation.normalisers import normalised


def load_comet(name: str) -> Any:
    """A COMET model, on the CPU and in evaluation mode.

    Args:
        name: a ``model.ckpt`` with its ``hparams.yaml`` in the folder above, or a name on the hub.

    Raises:
        DataError: there is no such model, or it cannot be loaded; says what to do.
    """
    with warnings.catch_warnings():
        # Of torchmetrics, about pkg_resources, when it is imported.
        warnings.simplefilter("ignore")
        import comet
    logging.getLogger("comet").setLevel(logging.WARNING)
    advice = (
        "fetch it where there is network and give the path of its checkpoints/model.ckpt as decode.comet_model, or score "
        "without --comet"
    )
    if name.endswith(".ckpt") and not Path(name).is_file():
        raise DataError(f"decode.comet_model: there is no file {name}; {advice}")
    try:
        path = name if Path(name).is_file() else comet.download_model(name)
    except Exception as error:
        raise DataError(f"decode.comet_model: no COMET model '{name}' on disk or on the hub ({error}); {advice}") from error
    try:
        return comet.load_from_checkpoint(path).eval()
    except Exception as error:
        # Its encoder's tokenizer and configuration may be missing too: a checkpoint names them, but does not hold them.
        raise DataError(f"decode.comet_model: {path} cannot be loaded ({type(error).__name__}: {error}); {advice}") from error


def comet_scores(
    model: Any,
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    normaliser: str,
    batch: int,
    device: torch.device | str,
) -> NDArray[np.float64]:
    """(N,) scores. Hypotheses and references are normalised first; sources are read as they are.

    Raises:
        ValueError: a score is not finite.
    """
    samples = [
        {"src": source, "mt": normalised(hypothesis, normaliser), "ref": normalised(reference, normaliser)}
        for source, hypothesis, reference in zip(sources, hypotheses, references, strict=True)
    ]
    # Utterances of like length share a batch, so that little of it is padding.
    order = sorted(range(len(samples)), key=lambda index: sum(map(len, samples[index].values())))
    scores = np.full(len(samples), np.nan)
    model.to(device)
    with torch.inference_mode():
        for first in tqdm(range(0, len(order), batch), desc="COMET", unit="batch", disable=None):
            indices = order[first : first + batch]
            inputs = model.prepare_for_inference([samples[index] for index in indices])
            outputs = model.predict_step(model.transfer_batch_to_device(inputs, device, 0))
            scores[indices] = outputs["scores"].float().cpu().numpy()
    model.cpu()
    if not np.isfinite(scores).all():
        raise ValueError(f"COMET gave {np.count_nonzero(~np.isfinite(scores))} scores that are no finite numbers")
    return scores


def comet_signature(model: str, source: str, normaliser: str) -> str:
    """What a COMET score depends on, in the manner of sacreBLEU's signatures."""
    return f"model:{model}|source:{source}|version:{version('unbabel-comet')}|normaliser:{normaliser}"
