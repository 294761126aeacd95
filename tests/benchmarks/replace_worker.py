"""Rank program of :mod:`tests.benchmarks.replace`: saves a model, and splits it in the live engine or after a restart."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from transformers import SeamlessM4TConfig, SeamlessM4TForSpeechToText

from gdps_ds.data.sampling import Position
from gdps_ds.deepspeed_file import load_deepspeed_file
from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.replacer import replace_blocks, split_partitioned
from gdps_ds.distributed.saved_state import load_weights
from gdps_ds.model.families import NO_LAYERDROP
from gdps_ds.plan import SharingPlan, SitePlan
from gdps_ds.training.checkpoint import PhaseCheckpoints, Progress
from gdps_ds.training.loss import utterance_losses
from tests.benchmarks.timing import seconds
from tests.rank_program import started
from tests.tiny import LANGUAGES, random_batch, tiny_train

# SeamlessM4T-Medium's speech-to-text model (821 M parameters), and a model of the same width with 157 M.
MEDIUM = {"speech_encoder_layers": 12, "decoder_layers": 12, "decoder_ffn_dim": 4096, "encoder_layers": 1, "vocab_size": 256206}
SMALL = MEDIUM | {"speech_encoder_layers": 3, "decoder_layers": 1, "vocab_size": 10000}
SIZES = {"medium": MEDIUM, "small": SMALL}
UNIFORM = SharingPlan.uniform(LANGUAGES)
ROUNDS = 3


def site(layers: int) -> str:
    return f"speech_encoder.encoder.layers.{layers - 1}.ffn2"


def plan(layers: int) -> SharingPlan:
    others = tuple(range(2048, 4096))
    split = SitePlan(site(layers), 4096, tuple(range(2048)), (others, others))
    return SharingPlan(LANGUAGES, (("aeb", "gle"), ("bem", "est")), (split,))


def build(size: str) -> SeamlessM4TForSpeechToText:
    torch.manual_seed(0)
    return SeamlessM4TForSpeechToText(SeamlessM4TConfig(**SIZES[size], **NO_LAYERDROP))


def peak_bytes() -> float:
    """Highest resident memory since :func:`forget_peak`."""
    return 1024.0 * float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def live(comm: Communicator, settings: Path, size: str, out: Path) -> dict[str, float]:
    """Step, save both ways, swap; what a rank measured, the slowest and the largest of all ranks."""
    train, layers = tiny_train(comm.world_size), SIZES[size]["speech_encoder_layers"]
    module = build(size)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    engine = Engine(module, comm, load_deepspeed_file(settings), train, [site(layers)])
    batch = random_batch(0)
    rates = {name: {"lr": 1e-4, "weight_decay": 0.0} for name in ("trunk", "sites", "private")}
    engine.backward(utterance_losses(engine.forward(batch), batch, 0.1).sum(), batch.target_tokens)
    engine.step(rates)
    step_peak = peak_bytes()
    checkpoints = PhaseCheckpoints(out / "ours", 1, comm)
    ratios = []
    for number in range(ROUNDS if size == "small" else 0):
        plain = seconds(lambda: engine.deepspeed.save_checkpoint(str(out / "plain"), tag="tag"))
        progress = Progress(number, Position())
        ratios.append(seconds(lambda progress=progress: checkpoints.save(engine, progress, UNIFORM)) / plain)
    comm.barrier()
    begin = time.time()
    if size == "small":
        checkpoints.save(engine, Progress(ROUNDS, Position()), UNIFORM)
    comm.barrier()
    forget_peak()
    swapped = seconds(lambda: replace_blocks(engine, UNIFORM, plan(layers), LANGUAGES, seed=1))
    own = {"seconds": swapped, "peak": peak_bytes(), "step_peak": step_peak, "save_ratio": statistics.median(ratios or [0.0])}
    worst = {key: max(each[key] for each in comm.gather(own)) for key in own}
    return worst | {"parameters": parameters, "begin": begin}


def restart(comm: Communicator, settings: Path, size: str, out: Path) -> dict[str, float]:
    """The usual way: a new process builds the model, loads the weights, splits it and starts an engine."""
    layers = SIZES[size]["speech_encoder_layers"]
    module = build(size)
    checkpoint = PhaseCheckpoints(out / "ours", 1, comm).latest()
    assert checkpoint is not None
    checkpoint.verify(comm)
    with checkpoint.state() as saved:
        load_weights(module, saved)
    router = split_partitioned(module, plan(layers), LANGUAGES, 1, comm)
    Engine(module, comm, load_deepspeed_file(settings), tiny_train(comm.world_size), [site(layers)], router)
    comm.barrier()
    return {"ready": time.time()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--do", choices=("live", "restart"), required=True)
    with started(parser) as (options, comm):
        result = {"live": live, "restart": restart}[options.do](comm, options.settings, options.size, options.out)
        if comm.is_main:
            (options.out / f"{options.do}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
