"""Which DeepSpeed files are read, and which keys are refused or told of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gdps_ds.config_file import ConfigError
from gdps_ds.deepspeed_file import load_deepspeed_file, untested_keys
from tests.launch import ROOT


def refused(tmp_path: Path, settings: dict[str, Any]) -> str:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"zero\.json: 1 fault") as caught:
        load_deepspeed_file(path)
    return caught.value.faults[0]


def test_the_deepspeed_file_may_not_repeat_the_experiment(tmp_path: Path) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"optimizer": {}, "gradient_clipping": 1.0, "zero_optimization": {"stage": 2}}))
    with pytest.raises(ConfigError) as caught:
        load_deepspeed_file(path)
    assert len(caught.value.faults) == 2
    assert "train.clip_norm" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", r"not UTF-8 \(byte 0\)"),
        (b"[]", "must be an object, found list"),
        (b'{"bf16": true}', "bf16: must be an object, found True"),
        (b'{"zero_optimization": 2}', "zero_optimization: must be an object, found 2"),
        (b'{"zero_optimization": {"stage": 4}}', "zero_optimization.stage: must be 0, 1, 2 or 3, found 4"),
        (b'{"zero_optimisation": {"stage": 2}}', "zero_optimisation: unknown key; did you mean 'zero_optimization'?"),
    ],
)
def test_a_deepspeed_file_that_is_none_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "zero.json").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"zero\.json: 1 fault\(s\)\n  - {message}"):
        load_deepspeed_file(tmp_path / "zero.json")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_deepspeed_file(tmp_path / "nothing.json")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_sixteen_bit_weights_need_zero(tmp_path: Path, precision: str) -> None:
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({precision: {"enabled": True}}))
    with pytest.raises(ConfigError, match=f"{precision} without ZeRO .* torch_autocast"):
        load_deepspeed_file(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation: false is refused: every micro-batch"),
        ({"gradient_allreduce_op": "sum"}, 'gradient_allreduce_op: "sum" is refused'),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "zero_optimization.offload_param.device"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "zero_optimization.zero_quantized_weights: true"),
        ({"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}}}, "zero_optimization.zenflow"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}, "zero_optimization.reduce_bucket_size: 'auto'"),
        ({"torch_autocast": {"enable": True}}, "torch_autocast.enable: unknown key; did you mean 'torch_autocast.enabled'?"),
        (
            {"zero_optimization": {"stage": 2}, "gradient_predivide_factor": 2.0},
            "gradient_predivide_factor: needs zero_optimization.reduce_scatter: false",
        ),
        (
            {"gradient_cliping": 1.0},
            "gradient_cliping: unknown key; did you mean 'gradient_clipping'? It is set by",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "zero_optimization.offload_param: ignored",
        ),
        (
            {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
            "zero_optimization.offload_optimizer: ig",
        ),
        (
            {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
            "data_types.grad_accum_dtype: fp32 with bf16 at ZeRO stage 1 cannot be saved",
        ),
    ],
)
def test_keys_that_are_known_to_be_wrong_are_refused_by_name(tmp_path: Path, settings: dict, message: str) -> None:
    assert refused(tmp_path, settings).startswith(message)


def test_the_same_keys_with_harmless_values_pass(tmp_path: Path) -> None:
    settings = {
        "managed_gradient_accumulation": True,
        "gradient_allreduce_op": "mean",
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 1.0}},
    }
    (tmp_path / "zero.json").write_text(json.dumps(settings))
    assert load_deepspeed_file(tmp_path / "zero.json") == settings
    assert untested_keys(settings) == []


def test_keys_of_which_nothing_is_known_are_named() -> None:
    settings = {"zero_optimization": {"stage": 2, "elastic_checkpoint": True}, "comms_logger": {"enabled": True}}
    assert untested_keys(settings) == ["comms_logger.enabled", "zero_optimization.elastic_checkpoint"]
    assert untested_keys({"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}}) == []
    other_values = {"communication_data_type": "bf16", "data_types": {"grad_accum_dtype": "bf16"}}
    assert untested_keys(other_values) == ["communication_data_type", "data_types.grad_accum_dtype"]


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_deepspeed_file_is_valid(path: Path) -> None:
    settings = load_deepspeed_file(path)
    assert "zero_optimization" in settings
    assert untested_keys(settings) == []
