"""Compare arms: from one unified model a seed, every arm of run.arms with the same updates, data order and seeds.

    python launchers/compare.py --config ds_configs/experiments/demo.yaml --seeds 1,2,3,4,5 --launcher-args "--num_gpus 2" \\
        run.dir=runs/compare run.arms=[uniform,gdps,paper,random-groups,wide]

Every seed is a run of launchers/train.py in run.dir/seed-N, started through the deepspeed launcher. The arms are those of
gdps_ds/analysis/arms.py. What is finished is skipped, and a comparison that was stopped or killed goes on when the same command
is given again; so it does with more seeds or more arms. After each seed run.dir gets comparison.txt, .json, .tex and .html and
the figure, of all seeds and arms that are finished there. A seed's own report is left to launchers/report.py, or
track.report=true.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from gdps_ds.config import Config
from gdps_ds.config_file import ConfigError, load_config
from gdps_ds.data.manifest import DataError
from gdps_ds.deepspeed_file import load_deepspeed_file
from gdps_ds.launching import fault, location
from gdps_ds.plan import PlanError
from gdps_ds.training.run_dir import clear_left, open_run_dir, plan_path
from gdps_ds.training.run_lock import LOCK, check_free, hold

TRAIN = Path(__file__).resolve().parent / "train.py"
SEED = "seed-"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 2 where options or data are at fault, and a run's own where that failed."""
    # One message a fault, not one a library: set before the libraries that read it are imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    options, overrides = _parser().parse_known_args(arguments)
    try:
        configs = [_of_seed(options.config, overrides, seed) for seed in options.seeds]
        hold(Path(configs[0].run.dir).parent, ".compare.lock", "compares arms in run.dir", "run.dir")
        for config in configs:
            check_free(Path(config.run.dir), LOCK, "trains in run.dir", "run.dir")
        clear_left(Path(configs[0].run.dir).parent)
        for config in configs:
            load_deepspeed_file(config.deepspeed)
            open_run_dir(config)
            _share_data(Path(config.run.dir))
    except (ConfigError, OSError) as error:
        return fault("compare", error)
    for config in configs:
        if not _finished(config):
            code = _train(config, options.launcher_args)
            if code != 0 or not _finished(config):
                print(f"compare: {config.run.dir} is not finished; the same command goes on with it", file=sys.stderr)
                return code or 1
        try:
            print(f"\n{report(configs[0], Path(config.run.dir).parent)}\n", flush=True)
        except (DataError, PlanError, OSError) as error:
            return fault("compare", error)
    print(f"wrote {Path(configs[0].run.dir).parent / 'comparison.html'}")
    return 0


def report(config: Config, out: Path) -> str:
    """Write the comparison of everything that is finished under ``out``; gives its text.

    Raises:
        DataError: nothing is finished, or what is finished cannot be compared.
    """
    # Imported after the options have been checked, because they take seconds.
    from gdps_ds.analysis.arms import REFERENCES
    from gdps_ds.evaluation.seeds import compare_arms
    from gdps_ds.evaluation.systems import read_system
    from gdps_ds.reporting.arms_report import read_record, write_comparison

    folders = {int(name): path for path in out.glob(f"{SEED}*") if (name := path.name.removeprefix(SEED)).isdecimal()}
    scored = sorted(path.stem for folder in folders.values() for path in folder.glob("scores/*.json"))
    arms = dict.fromkeys([*config.run.arms, *scored])
    finished = {
        arm: {seed: folder for seed, folder in sorted(folders.items()) if (folder / "scores" / f"{arm}.json").is_file()}
        for arm in arms
    }
    runs = {
        arm: {seed: read_system(arm, each / "hypotheses" / f"{arm}.jsonl") for seed, each in seeds.items()}
        for arm, seeds in finished.items()
        if seeds
    }
    records = {
        arm: {seed: read_record(each, arm, plan_path(each, arm), config.data.languages) for seed, each in seeds.items()}
        for arm, seeds in finished.items()
        if seeds
    }
    return write_comparison(compare_arms(runs, REFERENCES, config.decoding), records, out)


def _of_seed(path: Path, overrides: Sequence[str], seed: int) -> Config:
    """The configuration of one seed's run, with what the command line has for all of them."""
    out = load_config(path, overrides).run.dir
    return load_config(path, ["track.report=false", *overrides, f"run.dir={Path(out) / f'{SEED}{seed}'}", f"run.seed={seed}"])


def _share_data(folder: Path) -> None:
    """Data and features do not depend on the seed: all runs have those of the comparison, prepared by the first."""
    shared, link = folder.parent / "data", folder / "data"
    shared.mkdir(exist_ok=True)
    if not link.exists():
        link.symlink_to(Path("..") / shared.name, target_is_directory=True)


def _finished(config: Config) -> bool:
    return all((Path(config.run.dir) / "scores" / f"{arm}.json").is_file() for arm in config.run.arms)


def _train(config: Config, launcher_arguments: Sequence[str]) -> int:
    """Run the resolved configuration to its end or up to a signal; the exit code."""
    deepspeed = Path(sys.executable).parent / "deepspeed"
    command = [str(deepspeed), *launcher_arguments, str(TRAIN), "--config", str(Path(config.run.dir) / "config.yaml")]
    # A process group of its own: DeepSpeed's launcher does not tell its ranks of a signal that it alone gets.
    process = subprocess.Popen(command, process_group=0)

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.killpg(process.pid, number)

    # The run saves a checkpoint when it is told to stop, and is waited for.
    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        return process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def seeds(text: str) -> list[int]:
    return list(dict.fromkeys(int(part) for part in text.split(",")))


def words(text: str) -> list[str]:
    return shlex.split(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", required=True, type=location, help="experiment file (YAML); key.sub=value arguments override it"
    )
    parser.add_argument("--seeds", type=seeds, default="1,2,3,4,5", help="run.seed of each run (default: %(default)s)")
    launcher = 'arguments of deepspeed, such as "--num_gpus 2"'
    parser.add_argument("--launcher-args", type=words, default="", metavar="TEXT", help=launcher)
    return parser


if __name__ == "__main__":
    sys.exit(main())
