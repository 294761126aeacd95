"""DeepSpeed files: which keys are known to train, save, restore and split exactly, which are refused, and which are untested.

DeepSpeed ignores keys that it does not know, and has options under which it trains otherwise than the experiment file says or
keeps the weights where they cannot be read. :func:`load_deepspeed_file` refuses those that are known; every engine compares
DeepSpeed's fp32 weights with the model when it starts (:meth:`gdps_ds.distributed.shards.ShardedState.verify`), whatever the
options are.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gdps_ds.config_file import ConfigError, text_of

_ZERO = (
    "stage", "round_robin_gradients", "overlap_comm", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size",
    "allgather_partitions", "allgather_bucket_size", "use_multi_rank_bucket_allreduce", "parameter_alignment",
    "ignore_unused_parameters", "load_from_fp32_weights", "memory_efficient_linear", "sub_group_size",
    "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_model_persistence_threshold",
    "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_gather_16bit_weights_on_model_save",
    "stage3_allgather_sequential", "stage3_use_all_reduce_for_fetch_params", "offload_optimizer.device",
    "offload_optimizer.pin_memory", "offload_optimizer.buffer_count", "offload_optimizer.fast_init", "offload_param.device",
    "offload_param.pin_memory",
)  # fmt: skip
TESTED = frozenset(
    [
        *(f"zero_optimization.{key}" for key in _ZERO),
        "torch_autocast.enabled",
        "torch_autocast.dtype",
        "bf16.enabled",
        "data_types.buffer_dtype",
        "data_types.grad_accum_dtype",
        "communication_data_type",
        "prescale_gradients",
        "gradient_predivide_factor",
        "steps_per_print",
        "wall_clock_breakdown",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
    ]
)
"""Keys with which checkpoints equal the model and training goes on as stage 0 does, at 1 and 2 ranks; each is tried in
``tests/distributed/test_deepspeed_options.py``."""

_FP32 = ("fp32", "float32", "float", "torch.float32")
TESTED_VALUES = {"communication_data_type": _FP32, "data_types.grad_accum_dtype": _FP32}
"""Of keys that are tested with some values alone: which."""

OWNED = {
    "optimizer": "train.unify and train.specialise",
    "scheduler": "train.unify.warmup",
    "gradient_clipping": "train.clip_norm",
    "train_batch_size": "train.micro_batches and data.max_frames",
    "train_micro_batch_size_per_gpu": "data.max_frames",
    "gradient_accumulation_steps": "train.micro_batches",
}
"""What the experiment file says -> the options that say it."""


_UNCHECKED = ("torch_autocast.", "data_types.")
"""Sections in which DeepSpeed ignores what it does not know; in others an unknown key is its error."""


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value in values


_DATA_PARALLEL = "every rank must hold all of the model or its ZeRO part; remove it"
_MASTER = "the optimiser's weights must be fp32, of which checkpoints and splits are made; remove it"
_NVME = "weights on NVMe can neither be saved nor split; take cpu"
REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "managed_gradient_accumulation": (_is(False), "every micro-batch would be an update of its own; remove it"),
    "gradient_allreduce_op": (_is("sum"), "gradients would be summed over ranks, and clipped too early; remove it"),
    "zero_optimization.compute_grad_norm": (_is(False), "train.clip_norm and the metrics need the norm; remove it"),
    "zero_optimization.offload_optimizer.device": (_is("nvme"), _NVME),
    "zero_optimization.offload_param.device": (_is("nvme"), _NVME),
    "zero_optimization.offload_optimizer.ratio": (lambda ratio: ratio != 1, "needs DeepSpeed's own Adam; remove it"),
    "zero_optimization.offload_optimizer.super_offload": (bool, "needs DeepSpeed's own Adam; remove it"),
    "zero_optimization.zenflow": (bool, "needs DeepSpeed's own Adam; remove it"),
    "zero_optimization.zero_quantized_weights": (bool, "8-bit weights would train, and the fp32 ones be saved; remove it"),
    "fp16.fp16_master_weights_and_grads": (bool, _MASTER),
    "bf16.bf16_master_weights_and_grads": (bool, _MASTER),
    "bf16.bf16_optimizer_states": (bool, _MASTER),
    "hybrid_engine.enabled": (bool, "it replaces layers of the model; remove it"),
    "data_efficiency.enabled": (bool, "data are drawn as data.* says; remove it"),
    "tensor_parallel": (bool, _DATA_PARALLEL),
    "pipeline": (bool, _DATA_PARALLEL),
    "expert_parallel": (bool, _DATA_PARALLEL),
    "sequence_parallel_size": (lambda size: size != 1, _DATA_PARALLEL),
}
"""Keys that are known to be wrong -> with which values, and why."""


def load_deepspeed_file(path: str | Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON file.

    Raises:
        ConfigError: the file cannot be read, or lists every key that is misspelt, that the experiment file owns (batch sizes,
            optimiser, schedule) or that is known to be wrong.
    """
    try:
        content = json.loads(text_of(Path(path)))
    except json.JSONDecodeError as error:
        raise ConfigError(str(path), [f"not valid JSON: {error}"]) from None
    if not isinstance(content, dict):
        raise ConfigError(str(path), [f"must be an object, found {type(content).__name__}"])
    faults = list(_wrong_sections(content)) or [*_wrong_keys(content), *_wrong_together(content)]
    if faults:
        raise ConfigError(str(path), faults)
    return content


def untested_keys(settings: Mapping[str, Any]) -> list[str]:
    """Keys of a DeepSpeed file, as ``section.key``, of which it is not known that they save, restore and split exactly."""
    values = _values(settings)
    other_values = {key for key, tested in TESTED_VALUES.items() if values.get(key, tested[0]) not in tested}
    return sorted((values.keys() - TESTED - REFUSED.keys()) | other_values)


def _values(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``section.key`` -> value, of all keys whose value is no section; and every section by its own name if it is refused."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in REFUSED:
            found |= _values(value, f"{name}.")
        else:
            found[name] = value
    return found


def _wrong_sections(settings: Mapping[str, Any]) -> Iterator[str]:
    """DeepSpeed takes no notice of a misspelt section, and would train without ZeRO or in another precision."""
    known = TESTED | REFUSED.keys()
    sections = sorted({key.partition(".")[0] for key in known if "." in key})
    names = sorted({*sections, *known, *OWNED})
    for key in sorted(settings.keys() - set(names)):
        if close := difflib.get_close_matches(key, names, n=1, cutoff=0.8):
            owner = f" It is set by {OWNED[close[0]]} of the experiment file" if close[0] in OWNED else ""
            yield f"{key}: unknown key; did you mean '{close[0]}'?{owner}"
    for key in sections:
        if not isinstance(settings.get(key, {}), dict):
            yield f"{key}: must be an object, found {settings[key]!r}"
    zero = settings.get("zero_optimization", {})
    if isinstance(zero, dict) and (stage := zero.get("stage", 0)) not in (0, 1, 2, 3, "auto"):
        yield f"zero_optimization.stage: must be 0, 1, 2 or 3, found {stage!r}"


def _wrong_keys(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, owner in OWNED.items():
        if key in settings:
            yield f"{key} is set by {owner} of the experiment file; remove it"
    for key, value in _values({key: value for key, value in settings.items() if key not in OWNED}).items():
        if value == "auto":
            yield f"{key}: 'auto' is filled in by the Trainer of transformers alone; give a value, or remove it"
        elif key in REFUSED and REFUSED[key][0](value):
            yield f"{key}: {json.dumps(value)} is refused: {REFUSED[key][1]}"
        elif key.startswith(_UNCHECKED) and key not in TESTED:
            yield from (
                f"{key}: unknown key; did you mean '{each}'?" for each in difflib.get_close_matches(key, TESTED, 1, 0.85)
            )


def _wrong_together(settings: Mapping[str, Any]) -> Iterator[str]:
    values = _values(settings)
    stage = values.get("zero_optimization.stage", 0)
    if stage == 0:
        for precision in ("fp16", "bf16"):
            if values.get(f"{precision}.enabled"):
                yield f"{precision} without ZeRO cannot be split; take a ZeRO stage of 1 to 3, or torch_autocast"
    sums_in_fp32 = values.get("data_types.grad_accum_dtype") in _FP32
    if stage == 1 and values.get("bf16.enabled") and sums_in_fp32:
        yield "data_types.grad_accum_dtype: fp32 with bf16 at ZeRO stage 1 cannot be saved; take stage 2, or torch_autocast"
    if (
        stage in (2, 3)
        and values.get("gradient_predivide_factor", 1.0) != 1.0
        and values.get("zero_optimization.reduce_scatter", True)
    ):
        yield "gradient_predivide_factor: needs zero_optimization.reduce_scatter: false at ZeRO stages 2 and 3"
    for key, first in (("offload_optimizer", 1), ("offload_param", 3)):
        if stage < first and values.get(f"zero_optimization.{key}.device", "none") != "none":
            yield f"zero_optimization.{key}: ignored at ZeRO stage {stage}; take stage {first} or above, or remove it"
