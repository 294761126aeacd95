"""What DeepSpeed is given: its file, completed by what the experiment file owns."""

from __future__ import annotations

import contextlib
import copy
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from deepspeed import DeepSpeedConfig
from pydantic import ValidationError
from transformers.integrations import HfDeepSpeedConfig

from gdps_ds.config import TrainConfig
from gdps_ds.config_file import ConfigError
from gdps_ds.deepspeed_file import TESTED


def accumulation_steps(train: TrainConfig, world_size: int) -> int:
    """Micro-batches of an update on each rank.

    Raises:
        ConfigError: ``train.micro_batches`` is not a multiple of the world size.
    """
    if train.micro_batches % world_size:
        raise ConfigError(
            "train.micro_batches",
            [f"{train.micro_batches}, which {world_size} ranks cannot share equally; make it a multiple of their number"],
        )
    return train.micro_batches // world_size


def check_settings(settings: Mapping[str, Any], train: TrainConfig, world_size: int, path: str) -> None:
    """Let DeepSpeed itself read its file before anything long begins.

    Raises:
        ConfigError: it refuses the file ``path``, or ``train.micro_batches`` is not a multiple of the world size.
    """
    complete = runtime_settings(settings, train, world_size)
    try:
        DeepSpeedConfig(complete)
    except ValidationError as error:
        raise ConfigError(path, [_said(problem) for problem in error.errors()]) from error
    except Exception as error:  # of many types: DeepSpeed's own, ValueError, assertions
        raise ConfigError(path, [f"DeepSpeed refuses it: {error}"]) from error


def _said(problem: Mapping[str, Any]) -> str:
    """A fault that DeepSpeed's own check of a section has found."""
    name = ".".join(map(str, problem["loc"]))
    close = difflib.get_close_matches(name, {key.rpartition(".")[2] for key in TESTED}, n=1)
    hint = f"; did you mean '{close[0]}'?" if problem["type"] == "extra_forbidden" and close else ""
    return f"DeepSpeed refuses {name}: {problem['msg']}{hint}"


def runtime_settings(settings: Mapping[str, Any], train: TrainConfig, world_size: int) -> dict[str, Any]:
    """The DeepSpeed file completed by what the experiment file owns."""
    return {
        # The optimiser is torch's AdamW, which may also run on offloaded shards.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        **copy.deepcopy(dict(settings)),
        # DeepSpeed counts in samples; here one "sample" is a micro-batch.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation_steps(train, world_size),
        "gradient_clipping": train.clip_norm,
    }


@contextlib.contextmanager
def model_loading(settings: Mapping[str, Any], train: TrainConfig, world_size: int, pretrained: bool) -> Iterator[None]:
    """At stage 3, ``from_pretrained`` inside this context partitions each weight as it is read.

    A new model is built whole: initialising a partitioned parameter at random fails inside transformers.
    """
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    # transformers looks for a live HfDeepSpeedConfig; dropping the last reference switches it off again.
    handle = HfDeepSpeedConfig(runtime_settings(settings, train, world_size)) if pretrained and stage == 3 else None
    yield
    del handle
