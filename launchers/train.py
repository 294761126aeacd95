"""Train, mine, plan, split, specialise and evaluate, as an experiment file says.

    deepspeed --num_gpus 2 launchers/train.py --config ds_configs/experiments/demo.yaml [key.sub=value ...]

Without a launcher, as python launchers/train.py, it trains in one process, on one GPU where there are any.
Started again with the same run directory it goes on where it stopped (run.resume: auto). The exit code is 75 (try again)
where a signal has stopped it, and another one than 0 where it has failed.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import warnings
from pathlib import Path
from typing import Any

# MKL otherwise chooses kernels by where operands lie in memory, and a run that goes on is not the undisturbed one in every bit.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
# One message a fault, not one a rank and library: set before the libraries that read it are imported.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
warnings.filterwarnings("ignore", category=FutureWarning)

from gdps_ds.config import Config
from gdps_ds.config_file import ConfigError, load_config
from gdps_ds.data.manifest import DataError
from gdps_ds.deepspeed_file import load_deepspeed_file, untested_keys
from gdps_ds.launching import fault, location
from gdps_ds.options import options


def main() -> int:
    arguments, overrides = _parser().parse_known_args()
    try:
        config = load_config(arguments.config, [text for text in overrides if text != "--"])
        settings = load_deepspeed_file(config.deepspeed)
    except ConfigError as error:
        return fault("train", error)
    return _run(config, settings, arguments.local_rank)


def _run(config: Config, settings: dict[str, Any], local_rank: int) -> int:
    # Imported after the configuration has been checked, because they take seconds.
    import deepspeed.utils

    from gdps_ds.distributed.comm import Communicator, MeetingError, RankZeroError
    from gdps_ds.distributed.saved_state import ForeignStateError
    from gdps_ds.distributed.settings import check_settings
    from gdps_ds.distributed.shards import UnreadableEngineError
    from gdps_ds.distributed.watchdog import Watchdog
    from gdps_ds.plan import PlanError
    from gdps_ds.reporting.tracking import Tracker
    from gdps_ds.training.checkpoint import CheckpointError
    from gdps_ds.training.inputs import load_inputs
    from gdps_ds.training.interrupt import Interrupted, Interruptible, StopSignal
    from gdps_ds.training.phases import Run
    from gdps_ds.training.run_dir import check_shared, clear_left, open_run_dir
    from gdps_ds.training.run_lock import hold_run_dir
    from gdps_ds.training.trainer import Trainer

    # A million objects that imports have made need not be looked through whenever an engine is closed.
    gc.freeze()
    deepspeed.utils.logger.setLevel("WARNING")
    stop = StopSignal()
    try:
        comm = Communicator.start(local_rank, config.guard.setup_timeout)
    except MeetingError as error:
        print(f"train: rank {os.environ.get('RANK', '0')}: {error}", file=sys.stderr, flush=True)
        return 1
    watchdog = Watchdog.start(comm, config.guard.timeout)
    try:
        check_settings(settings, config.train, comm.world_size, config.deepspeed)
        if comm.is_main and (untested := untested_keys(settings)):
            print(f"{config.deepspeed}: not tested here with splits and checkpoints: {', '.join(untested)}", flush=True)
        run_dir = Path(config.run.dir)
        comm.from_main(lambda: hold_run_dir(run_dir))
        if comm.from_main(lambda: clear_left(run_dir)) and comm.is_main:
            print("what a killed job left half-written in run.dir was removed", flush=True)
        comm.from_main(lambda: open_run_dir(config))
        check_shared(run_dir, comm)
        inputs = load_inputs(config, Interruptible(comm, stop))
        comm.limit_waiting(config.guard.timeout)
        tracker = Tracker(config, run_dir, is_main=comm.is_main)
        try:
            Run(Trainer(config, comm, inputs, tracker, stop, watchdog)).execute()
        finally:
            tracker.close()
        code = 0
    except Interrupted as interrupted:
        if comm.is_main:
            print(interrupted, flush=True)
        code = os.EX_TEMPFAIL
    except (
        RankZeroError, DataError, PlanError, ConfigError, CheckpointError, ForeignStateError, UnreadableEngineError,
        FloatingPointError,
    ) as error:  # fmt: skip
        watchdog.fail(error, told=True)
    except Exception as error:
        watchdog.fail(error)
    watchdog.close()
    comm.barrier()
    comm.stop()
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=location, help="experiment file (YAML)")
    parser.add_argument("--options", action="version", version=options(), help="list every option of experiment files")
    parser.add_argument("--local_rank", type=int, default=int(os.environ.get("LOCAL_RANK", "0")), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
