"""Opens what a run has trained, without an engine: for export, evaluation and analysis."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from gdps_ds.config import Config
from gdps_ds.config_file import load_resolved
from gdps_ds.data.manifest import DataError
from gdps_ds.distributed.saved_state import SavedState, load_weights
from gdps_ds.model.export import TrainedModel
from gdps_ds.model.families import load_model
from gdps_ds.model.surgery import split_model
from gdps_ds.model.tokens import load_tokenizer
from gdps_ds.training.checkpoint import BEST, LATEST, Checkpoint, CheckpointError, pointer_of, saved_tags
from gdps_ds.training.run_dir import RESOLVED


def run_config(run_dir: Path) -> Config:
    """The configuration of a run that exists; its corpora need not be there any more.

    Raises:
        DataError: ``run_dir`` holds no run.
        ConfigError: its configuration cannot be read.
    """
    path = run_dir / RESOLVED
    if not path.is_file():
        raise DataError(f"{run_dir} is no run directory: it has no {RESOLVED}")
    return load_resolved(path)


def checkpoints_of(run_dir: Path, phase: str, which: str | None = None, count: int = 1) -> list[Checkpoint]:
    """The newest ``count`` checkpoints of a phase up to the one that ``which`` names.

    Args:
        which: latest, best, or a name such as update-000400; None for the one that the run itself uses (``run.use``).

    Raises:
        CheckpointError: there are not as many, or they are of different plans.
    """
    folder = run_dir / "checkpoints" / phase
    if not folder.is_dir():
        phases = sorted(path.name for path in folder.parent.glob("*"))
        raise CheckpointError(f"{run_dir} has no checkpoints of '{phase}' (--arm); there are {', '.join(phases) or 'none'}")
    tags = saved_tags(folder)
    which = which or pointer_of(folder, run_config(run_dir).run.use)
    pointer = folder / which
    last = pointer.read_text().strip() if which in (LATEST, BEST) and pointer.is_file() else which
    if last not in tags:
        raise CheckpointError(f"{folder} has no checkpoint '{which}'; there are {', '.join(tags) or 'none'}")
    chosen = tags[: tags.index(last) + 1][-count:]
    if len(chosen) < count:
        raise CheckpointError(
            f"{folder} keeps {len(chosen)} checkpoint(s) up to {last}, not {count}; set run.keep_checkpoints before training"
        )
    found = [Checkpoint.read(folder / tag) for tag in chosen]
    if len({each.plan.digest for each in found}) > 1:
        raise CheckpointError(f"{folder}: {', '.join(chosen)} are of different sharing plans and have no average")
    return found


def load_trained(run_dir: Path, phase: str, which: str | None = None, average: int = 1) -> TrainedModel:
    """The model of an arm (or ``unified``), or the mean of its newest ``average`` checkpoints.

    Args:
        which: see :func:`checkpoints_of`.

    Raises:
        CheckpointError: a checkpoint is missing or damaged, or was removed while it was read.
        ForeignStateError: the run's configuration no longer builds the model that was saved.
    """
    config = run_config(run_dir)
    checkpoints = checkpoints_of(run_dir, phase, which, average)
    try:
        return _loaded(checkpoints, config, run_dir)
    except Exception:  # of any type, as files may be gone anywhere in the middle
        for checkpoint in checkpoints:
            if checkpoint.is_removed():
                raise CheckpointError(
                    f"{checkpoint.folder} was removed while it was read, as a run that is training does with old checkpoints "
                    f"(run.keep_checkpoints); there are {', '.join(saved_tags(checkpoint.folder.parent)) or 'none'}"
                ) from None
        raise


def _loaded(checkpoints: Sequence[Checkpoint], config: Config, run_dir: Path) -> TrainedModel:
    for checkpoint in checkpoints:
        faults = list(checkpoint.faults(sorted(checkpoint.files)))
        if faults:
            raise CheckpointError(f"{checkpoint.folder} is damaged: {'; '.join(faults)}")
    plan, languages = checkpoints[-1].plan, config.data.languages
    tokenizer = load_tokenizer(config.model.pretrained or run_dir / "tokenizer")
    module = load_model(config.model, tokenizer, config.run.seed)
    router = None if plan.is_uniform else split_model(module, plan, languages, config.run.seed)
    with ExitStack() as stack:
        states = [stack.enter_context(checkpoint.state()) for checkpoint in checkpoints]
        load_weights(module, states[-1])
        if len(states) > 1:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(_mean(states, name))
    return TrainedModel(module, tokenizer, plan, languages, router)


def _mean(states: Sequence[SavedState], name: str) -> Tensor:
    """In float64, so that the mean does not depend on the order."""
    total = states[0].full(name).double()
    for state in states[1:]:
        total += state.full(name)
    return total / len(states)
