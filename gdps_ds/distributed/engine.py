"""The one door to DeepSpeed: start an engine, step it, save and load it, and take it down without leaving anything behind."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import deepspeed
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.zero import parameter_offload
from torch import Tensor, nn

from gdps_ds.config import TrainConfig
from gdps_ds.data.collate import Batch
from gdps_ds.deepspeed_file import untested_keys
from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.settings import accumulation_steps, runtime_settings
from gdps_ds.distributed.shards import ShardedState, UnreadableEngineError
from gdps_ds.model.families import set_training_mode
from gdps_ds.model.routing import Router

TRUNK, SITES, PRIVATE = "trunk", "sites", "private"
"""Parameter groups. The blocks that may be split are kept apart from the trunk from the start, so that the trunk's flat
shards do not change in a split and are handed over by reference."""


class Engine:
    """A DeepSpeed engine around a model, with learning rates by parameter group and exact gradient scaling.

    Args:
        model: plain module; BatchNorm is kept in evaluation mode.
        settings: the DeepSpeed file's content (stage, precision, offload).
        train: the optimisation recipe; ``micro_batches`` must be a multiple of the world size.
        sites: the candidate blocks.
        router: routes utterances to lanes where the model is split.

    Raises:
        UnreadableEngineError: on every rank, if DeepSpeed keeps other weights than the model's where they would be read.
    """

    def __init__(
        self,
        model: nn.Module,
        comm: Communicator,
        settings: Mapping[str, Any],
        train: TrainConfig,
        sites: Sequence[str],
        router: Router | None = None,
    ) -> None:
        self.comm = comm
        self.router = router
        self.accumulation = accumulation_steps(train, comm.world_size)
        self._build = (settings, train, sites)
        groups = parameter_groups(model, sites)
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=train.betas, eps=train.eps, weight_decay=0.0)
        self.deepspeed: DeepSpeedEngine = deepspeed.initialize(
            model=model, optimizer=optimizer, config=runtime_settings(settings, train, comm.world_size)
        )[0]
        comm.limit_waiting()
        self._keep_small_parameters_exact()
        self.verify()
        self.train(True)

    @property
    def module(self) -> nn.Module:
        return self.deepspeed.module

    @property
    def stage(self) -> int:
        return self.deepspeed.zero_optimization_stage()

    def state(self) -> ShardedState:
        """Views on this rank's part of the fp32 weights and moments."""
        return ShardedState(self.deepspeed, self.comm)

    def verify(self) -> None:
        """Compare the fp32 weights as they would be saved with the model. Collective.

        Raises:
            UnreadableEngineError: on every rank; names the keys of the DeepSpeed file that may be the cause.
        """
        try:
            self.state().verify(self.module)
        except UnreadableEngineError as error:
            keys = ", ".join(untested_keys(self._build[0]))
            cause = f"remove {keys} from the DeepSpeed file" if keys else f"DeepSpeed {deepspeed.__version__} is not supported"
            raise UnreadableEngineError(f"{error}; they could neither be saved nor split: {cause}") from error

    def _keep_small_parameters_exact(self) -> None:
        """Let the parameters that ZeRO-3 keeps whole between updates be fp32 always, as they are after an update.

        Under autocast DeepSpeed would gather them in 16 bits until it has recorded the order of modules, and in fp32 from then
        on: the updates after a start, a resume or a split would not be those of an undisturbed run.
        """
        zero = self.deepspeed.optimizer
        persistent = getattr(zero, "persistent_parameters", [])
        if [parameter for parameter in persistent if parameter.__dict__.pop("comm_dtype", None)]:
            # Their gradients are summed in fp32 then: DeepSpeed has no bucket for that where all else is sent in 16 bits.
            known = next(iter(zero.ipg_buckets.values()))
            buffer = None if known.buffer is None else torch.empty_like(known.buffer, dtype=torch.float32)
            zero.ipg_buckets.setdefault(torch.float32, type(known)(buffer=buffer))
        if persistent:
            persistent[0].all_gather(persistent)

    def train(self, training: bool) -> None:
        set_training_mode(self.module, training)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients; training mode comes back at the end."""
        self.train(False)
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(True)

    def route(self, batch: Batch) -> None:
        """Send the utterances of ``batch`` to the lanes of their groups in the next forward pass of the module."""
        if self.router is not None:
            self.router.assign(batch.languages, self.comm.device)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, U, V) of a micro-batch that is on the host, on the engine's device."""
        self.route(batch)
        return self.deepspeed(**self.inputs(batch)).logits

    def forward_around(self, batch: Batch, input_features: Tensor) -> Tensor:
        """Logits by the module itself, around DeepSpeed's bookkeeping, for a backward pass that forms no gradients."""
        self.route(batch)
        with self._autocast():
            return self.module(**self.inputs(batch) | {"input_features": input_features}).logits

    def generate(self, batch: Batch, decoder_input_ids: Tensor, **options: Any) -> Tensor:
        """Token ids by ``transformers``' generate, from (B, 1) target language codes. Collective at stage 3."""
        self.route(batch)
        inputs = self.inputs(batch) | {"decoder_input_ids": decoder_input_ids.to(self.comm.device)}
        module: Any = self.module
        with self._autocast():
            # At ZeRO-3 a rank that has finished goes on generating until all have: weights are gathered together.
            return module.generate(**inputs, synced_gpus=self.stage == 3, **options)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The model's arguments on the device, floating ones in the precision of the weights (16-bit without autocast).

        Without ``labels``: the loss is ours, so the model must not compute its own.
        """
        dtype = next(self.module.parameters()).dtype
        inputs = {"input_features": batch.input_features.to(dtype), "attention_mask": batch.attention_mask}
        if batch.decoder_input_ids is not None:
            inputs["decoder_input_ids"] = batch.decoder_input_ids
        return {name: value.to(self.comm.device, non_blocking=True) for name, value in inputs.items()}

    def backward(self, loss_sum: Tensor, global_tokens: float) -> None:
        """Accumulate the gradient of ``loss_sum / global_tokens``, where the update's tokens are counted over all ranks.

        DeepSpeed averages over ranks and accumulation steps; both are undone here, so an update is the mean over tokens
        whatever the world size.
        """
        self.deepspeed.backward(loss_sum * (self.comm.world_size * self.accumulation / global_tokens))

    def undo_scaling(self, global_tokens: float) -> float:
        """Factor from the gradients inside :meth:`backward` to those of the summed token loss."""
        scaler = self._gradscaler()
        loss_scale = scaler.get_scale() if scaler is not None else getattr(self.deepspeed.optimizer, "loss_scale", 1.0)
        return global_tokens / (self.comm.world_size * loss_scale)

    def step(self, hyperparameters: Mapping[str, Mapping[str, float]]) -> bool:
        """Count a micro-batch; at the end of the accumulation, update with ``lr`` and ``weight_decay`` by group name.

        An update whose gradient is not finite leaves weights and moments as they are: DeepSpeed sees to that where it has an
        optimiser or a scaler of its own, which is everywhere but at stage 0 in full precision.

        Returns:
            False if such an update was left out. The same on every rank.
        """
        for group in self.deepspeed.optimizer.param_groups:
            group.update(hyperparameters[group["name"]])
        if not self.deepspeed.is_gradient_accumulation_boundary():
            self.deepspeed.step()
            return True
        skipped = self.deepspeed.skipped_steps
        bare = self.stage == 0 and isinstance(self.deepspeed.optimizer, torch.optim.Optimizer) and self._gradscaler() is None
        with self._step_left_out() if bare and not self._gradients_are_finite() else contextlib.nullcontext():
            self.deepspeed.step()
        return self.deepspeed.skipped_steps == skipped

    @contextlib.contextmanager
    def _step_left_out(self) -> Iterator[None]:
        """DeepSpeed counts an update in this context, and clears its gradients, but torch's optimiser does not make it."""
        self.deepspeed.skipped_steps += 1
        self.deepspeed.optimizer.step = lambda: None
        try:
            yield
        finally:
            del self.deepspeed.optimizer.step

    @property
    def scales_loss(self) -> bool:
        """Whether a loss scale is being found by trial, so that updates are left out now and then without a fault."""
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        return self._gradscaler() is not None or bool(getattr(scaler, "dynamic", False))

    def _gradients_are_finite(self) -> bool:
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        return bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))

    @property
    def gradient_norm(self) -> float | None:
        """Global norm of the last update's gradient before clipping; None where the stage computes none, or an infinite one."""
        norm = self.deepspeed.get_global_grad_norm()
        return float(norm) if norm is not None and math.isfinite(norm) else None

    def runtime_state(self) -> dict[str, Any]:
        """What is neither weights nor moments: DeepSpeed's counters and the loss scale; JSON-able, equal on all ranks."""
        scaler, own = self._gradscaler(), getattr(self.deepspeed.optimizer, "loss_scaler", None)
        numbers = {} if own is None else {k: v for k, v in vars(own).items() if isinstance(v, bool | int | float)}
        return {
            "counters": {name: getattr(self.deepspeed, name) for name in _COUNTERS},
            "gradscaler": None if scaler is None else scaler.state_dict(),
            "loss_scaler": {type(own).__name__: numbers},
        }

    def load_runtime_state(self, state: Mapping[str, Any]) -> None:
        """Take over :meth:`runtime_state` of another engine; a scaler of another kind stays as it starts."""
        for name, value in state["counters"].items():
            setattr(self.deepspeed, name, value)
        # By which DeepSpeed knows where an accumulation ends; another world size accumulates another number.
        self.deepspeed.micro_steps = self.deepspeed.global_steps * self.accumulation
        scaler, own = self._gradscaler(), getattr(self.deepspeed.optimizer, "loss_scaler", None)
        if scaler is not None and state["gradscaler"]:
            scaler.load_state_dict(state["gradscaler"])
        if own is not None:
            vars(own).update(state["loss_scaler"].get(type(own).__name__, {}))

    def _gradscaler(self) -> torch.amp.GradScaler | None:
        """torch's scaler, which autocast to fp16 has (at ZeRO 1 to 3 it is the optimizer's); plain fp16 has DeepSpeed's own."""
        autocast = self.deepspeed.torch_autocast_z0_gradscaler
        return autocast or getattr(self.deepspeed.optimizer, "torch_autocast_gradscaler", None)

    def close(self) -> nn.Module:
        """Take the engine down and give back the bare module (its parameters stay partitioned at stage 3)."""
        module = self.module
        _tear_down(self.deepspeed)
        # Collected here and not later: DeepSpeed's finaliser resets attributes of the parameters, which by then may
        # belong to the next engine.
        del self.deepspeed
        gc.collect()
        return module

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of DeepSpeed's forward pass, for calls of the module itself."""
        if not self.deepspeed.torch_autocast_enabled():
            return contextlib.nullcontext()
        return torch.autocast(self.comm.device.type, dtype=self.deepspeed.torch_autocast_dtype())

    def rebuilt(self, model: nn.Module, router: Router | None) -> Engine:
        """A new engine of the same settings around ``model``."""
        return Engine(model, self.comm, *self._build, router)


def parameter_groups(model: nn.Module, sites: Sequence[str]) -> list[dict[str, Any]]:
    """Trainable parameters as the named groups :data:`TRUNK`, :data:`SITES` (dense blocks and shared lanes) and
    :data:`PRIVATE` (private lanes), empty groups left out."""
    members: dict[str, list[nn.Parameter]] = {TRUNK: [], SITES: [], PRIVATE: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[_group_of(name, sites)].append(parameter)
    return [{"name": name, "params": parameters} for name, parameters in members.items() if parameters]


def _group_of(name: str, sites: Sequence[str]) -> str:
    for site in sites:
        if name.startswith(f"{site}."):
            return PRIVATE if name.startswith(f"{site}.private.") else SITES
    return TRUNK


_COUNTERS = ("global_steps", "global_samples", "skipped_steps")
_MODULE_ATTRIBUTES = (
    "pre_bwd_fn", "post_bwd_fn", "applied_pre_backward_ref_cnt", "ds_grads_remaining", "ds_recompute_parameters", "ds_id",
    "ds_inflight_param_registry", "_external_params",
)  # fmt: skip
_PARAMETER_ATTRIBUTES = (
    "_hp_mapping", "_z3_optimizer", "_zero_optimizer", "_dp_group", "get_full_hp_param", "get_full_hp_grad",
    "set_full_hp_param", "set_full_hp_grad", "_index_in_param_group", "grad_accum",
)  # fmt: skip


def _tear_down(engine: DeepSpeedEngine) -> None:
    """Destroy an engine and remove what ``destroy`` leaves on the module.

    Each of these keeps the whole old engine alive: two forward hooks, gradient-accumulation hooks, attributes on
    parameters and modules, ZeRO-3's nested parameter dictionaries and its stack of entered modules.
    """
    zero, module = engine.optimizer, engine.module
    if engine.zero_optimization_stage() == 3:
        zero.empty_partition_cache()
    engine.destroy()
    for name in ("module_forward_pre_hook", "module_forward_post_hook"):
        hook = getattr(engine, name)
        if hook is not None:
            hook.remove()
            setattr(engine, name, None)
    if hasattr(zero, "unregister_grad_acc_post_hooks"):
        zero.unregister_grad_acc_post_hooks()
    for submodule in module.modules():
        for attribute in _MODULE_ATTRIBUTES:
            submodule.__dict__.pop(attribute, None)
        if submodule.__dict__.pop("_original_parameters", None) is not None:
            submodule._parameters = dict(submodule._parameters.items())
    for parameter in module.parameters():
        for attribute in _PARAMETER_ATTRIBUTES:
            parameter.__dict__.pop(attribute, None)
        parameter.grad = None
    while module in parameter_offload.FWD_MODULE_STACK:
        parameter_offload.FWD_MODULE_STACK.remove(module)
