"""Where each ZeRO stage keeps the fp32 weights and Adam's moments: one view of all of them.

DeepSpeed flattens the parameters of a group into *flats* and gives each rank a slice. :class:`ShardedState` names what lies
where on this rank, without copying, so that state can be handed from one engine to another:

- stage 0: every parameter is its own flat, whole on every rank;
- stages 1 and 2: a rank owns a contiguous slice of the group's flat, which may hold only part of a parameter, or none;
- stage 3: a rank owns slice ``rank`` of every parameter, the last one padded.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from gdps_ds.distributed.comm import Communicator

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 has taken the parameter's tensor apart."""
    return hasattr(parameter, "ds_id")


@contextlib.contextmanager
def gathered(parameters: Iterable[nn.Parameter], *, changed: bool = False) -> Iterator[None]:
    """Context in which the parameters are whole on every rank. Collective where they are partitioned.

    Those that were whole before (the small ones that ZeRO-3 keeps so) are whole in fp32 after it too: left to the next forward
    pass, they would be gathered in the 16 bits of an autocast, and training would go on otherwise than without the context.

    Args:
        changed: rank 0's values inside the context are everybody's after it.
    """
    parameters = list(parameters)
    whole: list[Any] = [each for each in parameters if getattr(each, "ds_status", None) == ZeroParamStatus.AVAILABLE]
    with deepspeed.zero.GatheredParameters(
        parameters, modifier_rank=0 if changed else None, enabled=any(map(is_partitioned, parameters))
    ):
        yield
    if whole:
        whole[0].all_gather(whole)


@dataclass(frozen=True)
class Fragment:
    """This rank's part of one parameter: ``numel`` values at ``offset`` of the flat, from ``start`` of the parameter."""

    name: str
    shape: tuple[int, ...]
    offset: int
    start: int
    numel: int


@dataclass(frozen=True)
class Flat:
    """A flat fp32 tensor of this rank with the optimiser state that belongs to it."""

    master: Tensor
    state: MutableMapping[str, Any]
    fragments: tuple[Fragment, ...]

    @property
    def layout(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Equal layouts at one world size are equal slices on every rank."""
        return tuple((fragment.name, fragment.shape) for fragment in self.fragments)

    def tensor(self, key: str) -> Tensor | None:
        """The flat of ``key`` (:data:`MASTER` or one of :data:`MOMENTS`) as one dimension; None before the first step."""
        tensor = self.master.data if key == MASTER else self.state.get(key)
        return None if tensor is None else tensor.view(-1)

    def writable(self, key: str) -> Tensor:
        """As :meth:`tensor`, for filling: moments that do not exist yet start as zeros."""
        if key != MASTER and key not in self.state:
            self.state[key] = torch.zeros_like(self.master.data)
        tensor = self.tensor(key)
        assert tensor is not None
        return tensor


class UnreadableEngineError(RuntimeError):
    """DeepSpeed keeps weights elsewhere than this package knows: they could neither be saved nor split."""


class ShardedState:
    """Views on the local shards of an engine; they stay valid after the engine is torn down."""

    def __init__(self, engine: DeepSpeedEngine, comm: Communicator) -> None:
        self.stage: int = engine.zero_optimization_stage()
        self._comm = comm
        kind, flats_of = _FLATS_OF_STAGE[self.stage]
        if not isinstance(engine.optimizer, kind):
            found = type(engine.optimizer).__name__
            raise UnreadableEngineError(f"DeepSpeed keeps the weights in its {found}, not in a {kind.__name__}")
        self.flats = tuple(flats_of(engine, _names(engine.module), comm.rank))
        self._where = {fragment.name: (flat, fragment) for flat in self.flats for fragment in flat.fragments}

    @property
    def fragments(self) -> Iterator[Fragment]:
        """This rank's part of every trainable parameter, in one order on all ranks."""
        return (fragment for flat in self.flats for fragment in flat.fragments)

    @property
    def has_moments(self) -> bool:
        """Whether the optimiser has taken a step: the same on every rank."""
        return all(key in flat.state for flat in self.flats for key in MOMENTS)

    @property
    def keys(self) -> tuple[str, ...]:
        """:data:`MASTER`, and :data:`MOMENTS` once there are some."""
        return (MASTER, *MOMENTS) if self.has_moments else (MASTER,)

    @property
    def step(self) -> float:
        """Adam's step count; one for all parameters."""
        return float(next(flat.state["step"] for flat in self.flats))

    def local(self, name: str, key: str) -> Tensor:
        """This rank's values of ``key`` for a parameter (a view; empty where it owns none)."""
        flat, fragment = self._where[name]
        tensor = flat.tensor(key)
        if tensor is None:
            raise RuntimeError(f"no {key} for '{name}': the optimiser has not taken a step")
        return tensor.narrow(0, fragment.offset, fragment.numel)

    def full(self, name: str, key: str) -> Tensor:
        """The whole tensor of a parameter on every rank. Collective at stages 1 to 3; holds one full tensor."""
        _, fragment = self._where[name]
        local = self.local(name, key)
        if self.stage == 0:
            return local.view(fragment.shape)
        whole = torch.zeros(max(math.prod(fragment.shape), fragment.start + fragment.numel), dtype=local.dtype)
        whole = whole.to(self._comm.device)
        whole.narrow(0, fragment.start, fragment.numel).copy_(local)
        return self._comm.sum(whole)[: math.prod(fragment.shape)].view(fragment.shape)

    def verify(self, module: nn.Module) -> None:
        """Compare this rank's part of the fp32 weights with the module's own parameters, made whole. Collective.

        What these views are made from are private names of DeepSpeed, and options move what lies behind them.

        Raises:
            UnreadableEngineError: on every rank, naming parameters, if weights of any rank are others than the module's.
        """
        wrong = []
        for name, parameter in module.named_parameters():
            if name in self._where:
                with gathered([parameter]):
                    if not self._holds(name, parameter.detach()):
                        wrong.append(name)
        found = list(dict.fromkeys(name for names in self._comm.gather(wrong) for name in names))
        if found:
            raise UnreadableEngineError(
                f"{len(found)} of {len(self._where)} parameters, such as {found[0]}, have other values in DeepSpeed's fp32 "
                "weights than in the model"
            )

    def _holds(self, name: str, whole: Tensor) -> bool:
        """Whether this rank's fp32 values are those of the whole parameter."""
        fragment = self._where[name][1]
        theirs = whole.reshape(-1)[fragment.start : fragment.start + fragment.numel]
        return equal_to_rounding(self.local(name, MASTER), theirs)


def equal_to_rounding(exact: Tensor, rounded: Tensor) -> bool:
    """Whether fp32 values are those of a tensor in its own precision, to a few roundings of it.

    Not to one: new 16-bit neurons are means of 16-bit weights, and the fp32 ones of fp32 weights. Below the smallest normal
    number the distance between neighbours is constant, which for fp16 is 6e-8.
    """
    if not rounded.numel():
        return True
    precision = torch.finfo(rounded.dtype)
    steps = precision.eps * max(float(rounded.abs().max()), precision.smallest_normal)
    return torch.allclose(exact, rounded.to(exact), rtol=4 * precision.eps, atol=4 * steps)


def begin_moments(engine: DeepSpeedEngine, state: ShardedState, step: float) -> None:
    """Tell a new engine of the moments that were written into its ``state``, as of Adam's step ``step``."""
    for flat in state.flats:
        # Each flat needs a tensor of its own: a shared one would be counted up once for every flat.
        flat.state["step"] = torch.tensor(step, dtype=torch.float32)
    if state.stage in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _names(module: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in module.named_parameters()}


def _replicated_flats(engine: DeepSpeedEngine, names: dict[int, str], rank: int) -> Iterator[Flat]:
    for group in engine.optimizer.param_groups:
        for parameter in group["params"]:
            fragment = Fragment(names[id(parameter)], tuple(parameter.shape), 0, 0, parameter.numel())
            yield Flat(parameter, engine.optimizer.state[parameter], (fragment,))


def _partitioned_flats(engine: DeepSpeedEngine, names: dict[int, str], rank: int) -> Iterator[Flat]:
    """From the optimiser's own order and offsets: ``_hp_mapping`` of the parameters has others than those under
    ``round_robin_gradients`` (DeepSpeed 0.19)."""
    zero = engine.optimizer
    for index, flat in enumerate(zero.single_partition_of_fp32_groups):
        first, last = rank * flat.numel(), (rank + 1) * flat.numel()
        fragments = []
        for parameter, at in zip(zero.round_robin_bit16_groups[index], zero.round_robin_bit16_offsets[index], strict=True):
            begin = min(max(at, first), last)
            numel = max(min(at + parameter.numel(), last) - begin, 0)
            start = begin - at if numel else 0
            fragments.append(Fragment(names[id(parameter)], tuple(parameter.shape), begin - first, start, numel))
        yield Flat(flat, zero.optimizer.state[flat], tuple(fragments))


def _fully_partitioned_flats(engine: DeepSpeedEngine, names: dict[int, str], rank: int) -> Iterator[Flat]:
    zero = engine.optimizer
    for index, parameters in enumerate(zero.fp16_groups):
        fragments = []
        for parameter in parameters:
            _, offset, padded = zero.grad_position[zero.get_param_id(parameter)]
            shape = tuple(parameter.ds_shape)
            start = min(rank * padded, math.prod(shape))
            numel = min(padded, math.prod(shape) - start)
            fragments.append(Fragment(names[id(parameter)], shape, offset, start, numel))
        flat = zero.fp32_partitioned_groups_flat[index]
        yield Flat(flat, zero.optimizer.state[flat], tuple(fragments))


_FLATS_OF_STAGE: dict[int, tuple[type, Callable[[DeepSpeedEngine, dict[int, str], int], Iterator[Flat]]]] = {
    0: (torch.optim.Optimizer, _replicated_flats),
    1: (DeepSpeedZeroOptimizer, _partitioned_flats),
    2: (DeepSpeedZeroOptimizer, _partitioned_flats),
    3: (DeepSpeedZeroOptimizer_Stage3, _fully_partitioned_flats),
}
"""ZeRO stage -> DeepSpeed's optimiser that is understood, and what it holds."""
