"""Rank program: save an engine's state, and load states that other stages and world sizes have saved."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from gdps_ds.deepspeed_file import load_deepspeed_file
from gdps_ds.distributed.comm import Communicator
from gdps_ds.distributed.engine import Engine
from gdps_ds.distributed.replacer import replace_blocks, split_partitioned
from gdps_ds.distributed.saved_state import SavedState, load_weights, restore, save_state
from tests.distributed.swap_worker import MICRO_BATCHES, UNIFORM, snapshot, train
from tests.rank_program import started
from tests.tiny import LANGUAGES, SITES, tiny_model, tiny_plan, tiny_train

FROZEN = "text_decoder.layer_norm."


def model(seed: int = 0) -> torch.nn.Module:
    """With frozen parameters and a buffer that no initialisation gives back."""
    module = tiny_model(seed)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not name.startswith(FROZEN))
    return module


def save(comm: Communicator, settings: Path, folder: Path) -> None:
    """Train, split, train on, save; rank 0 also saves what every tensor is, and the losses of two more updates."""
    engine = Engine(model(), comm, load_deepspeed_file(settings), tiny_train(MICRO_BATCHES), SITES)
    buffer = next(buffer for name, buffer in engine.module.named_buffers() if name.endswith("running_mean"))
    train(engine, range(2))
    engine = replace_blocks(engine, UNIFORM, tiny_plan(), LANGUAGES, seed=1)
    buffer.fill_(0.25)
    train(engine, range(2, 4))
    folder.mkdir(parents=True, exist_ok=True)
    save_state(engine, folder)
    truth = snapshot(engine)
    losses = train(engine, range(4, 6))
    if comm.is_main:
        torch.save(truth, folder / "truth.pt")
        (folder / "losses.json").write_text(json.dumps(losses))
    engine.close()


def load(comm: Communicator, settings: Path, folder: Path) -> dict:
    """Load into a model of other initial weights; says what is not as it was, and trains on."""
    module = model()
    router = split_partitioned(module, tiny_plan(), LANGUAGES, 9, comm)
    for parameter in module.parameters():
        parameter.data.fill_(7.0)
    with SavedState(folder) as saved:
        load_weights(module, saved)
        engine = Engine(module, comm, load_deepspeed_file(settings), tiny_train(MICRO_BATCHES), SITES, router)
        restore(engine, saved)
        frozen = saved.fixed[f"{FROZEN}weight"]
    truth, found = torch.load(folder / "truth.pt"), snapshot(engine)
    changed = [str(key) for key in truth if not torch.equal(truth[key], found[key])]
    means = [buffer for name, buffer in engine.module.named_buffers() if name.endswith("running_mean")]
    result = {
        "changed": changed,
        "tensors": len(truth),
        "steps": engine.deepspeed.global_steps,
        "frozen": bool((frozen == 1).all()),
        "buffer": means[0].unique().tolist(),
        "losses": train(engine, range(4, 6)),
        "expected": json.loads((folder / "losses.json").read_text()),
    }
    engine.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--save", nargs="*", default=[], help="stages")
    parser.add_argument("--load", nargs="*", default=[], help="saved folder:stage")
    with started(parser) as (options, comm):
        for stage in options.save:
            save(comm, Path(f"ds_configs/{stage}.json"), options.out / f"{stage}-{comm.world_size}")
            comm.barrier()
        results = {}
        for pair in options.load:
            folder, stage = pair.split(":")
            results[pair] = load(comm, Path(f"ds_configs/{stage}.json"), options.out / folder)
        if comm.is_main:
            (options.out / f"results-{comm.world_size}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
