"""DeepSpeed files that between them set every key that is known to be right, each to another value than DeepSpeed's default."""

from __future__ import annotations

from typing import Any


def zero(stage: int, **keys: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **keys}}


_SMALL_BUCKETS = {"overlap_comm": True, "reduce_bucket_size": 1000, "allgather_bucket_size": 1000}
_ON_THE_HOST = {"device": "cpu", "pin_memory": True}

OPTIONS: dict[str, dict[str, Any]] = {
    "stage 0": zero(0) | {"wall_clock_breakdown": True, "steps_per_print": 10**6, "communication_data_type": "fp32"},
    "stage 1": zero(1),
    "stage 1, round robin": zero(1, round_robin_gradients=True, **_SMALL_BUCKETS),
    "stage 1, round robin, offload": zero(1, round_robin_gradients=True, offload_optimizer=_ON_THE_HOST),
    "stage 2": zero(2, parameter_alignment=True, ignore_unused_parameters=False, load_from_fp32_weights=False),
    "stage 2, offload": zero(2, contiguous_gradients=False, offload_optimizer={"device": "cpu"}),
    "stage 2, round robin": zero(2, round_robin_gradients=True, parameter_alignment=True, allgather_partitions=False),
    "stage 2, round robin, offload": zero(2, round_robin_gradients=True, offload_optimizer=_ON_THE_HOST)
    | {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False},
    "stage 2, scaled before the sum": zero(2, reduce_scatter=False, use_multi_rank_bucket_allreduce=False)
    | {"prescale_gradients": True, "gradient_predivide_factor": 2.0},
    "stage 3": zero(3, round_robin_gradients=True, stage3_param_persistence_threshold=300),
    "stage 3, offload": zero(
        3,
        offload_optimizer=_ON_THE_HOST | {"buffer_count": 5, "fast_init": True},
        offload_param=_ON_THE_HOST,
        stage3_model_persistence_threshold=100,
        stage3_gather_16bit_weights_on_model_save=True,
    ),
    "stage 3, small pieces": zero(
        3,
        sub_group_size=2000,
        memory_efficient_linear=False,
        stage3_prefetch_bucket_size=1000,
        stage3_max_live_parameters=1000,
        stage3_max_reuse_distance=1000,
        stage3_allgather_sequential=True,
        stage3_use_all_reduce_for_fetch_params=True,
        **_SMALL_BUCKETS,
    ),
    "stage 2, 16-bit weights": zero(2, round_robin_gradients=True)
    | {"bf16": {"enabled": True}, "data_types": {"buffer_dtype": "bf16", "grad_accum_dtype": "fp32"}},
    # Last: DeepSpeed's autocast leaves marks in the process. Parameters are kept whole below the threshold, and fetched above.
    "stage 3, autocast": zero(3, stage3_param_persistence_threshold=300)
    | {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
}
