"""The run directory: holds everything a run makes, and the configuration that makes it again."""

from __future__ import annotations

import json
import shutil
import socket
import time
import uuid
from collections.abc import Collection
from pathlib import Path

import yaml

from gdps_ds.config import Config
from gdps_ds.config_file import ConfigError, dump_config, read_sections
from gdps_ds.data.manifest import DataError
from gdps_ds.distributed.comm import Communicator
from gdps_ds.files import atomic_write, clear_partial
from gdps_ds.reporting.run_metrics import METRICS_FILE, START, UNIFIED

RESOLVED, SKETCHES = "config.yaml", "sketches.safetensors"

MAY_CHANGE = (
    "deepspeed",
    "track",
    "run.dir",
    "run.resume",
    "run.arms",
    "run.keep_checkpoints",
    "decode",
    "guard",
    "data.workers",
    "train.checkpoint_every",
)
"""What a resumed run may set otherwise than the run that it goes on with."""

AFTER_UNIFYING = (*MAY_CHANGE, "run.dir", "run.unified", "train.specialise", "mine", "plan")
"""What a run may set otherwise than the run whose unified model it takes over."""
LINKED = ("data", "tokenizer", "checkpoints/unified")
"""What it takes over."""


def open_run_dir(config: Config) -> None:
    """Create the run directory with its resolved configuration, or check that the run there is this one.

    Until the first checkpoint, or the sketches where the unified model is another run's, there is nothing of a run but its
    data, so that an option that was at fault can be changed.

    Raises:
        ConfigError: ``run.resume`` is never and there is a run already, the run there has another configuration, nothing can be
            written there, or ``run.unified`` has no unified model that this run would have made.
    """
    folder = Path(config.run.dir)
    path = folder / RESOLVED
    if path.is_file():
        if config.run.resume == "never":
            raise ConfigError(str(folder), ["run.resume is never, but run.dir holds a run; choose another or remove it"])
        differences = _differences(read_sections(path), yaml.safe_load(dump_config(config)), MAY_CHANGE)
        if differences and has_begun(folder):
            raise ConfigError(str(folder), [*differences, "run.dir holds a run of another configuration; choose another"])
        if differences:
            forget(folder)
    # Read before it is written: a run may be started again with the file that it keeps.
    deepspeed = Path(config.deepspeed).read_text(encoding="utf-8")
    try:
        if config.run.unified is not None and not (folder / "checkpoints" / UNIFIED).exists():
            _take_over(Path(config.run.unified), config)
        for name, content in {"deepspeed.json": deepspeed, RESOLVED: dump_config(config)}.items():
            with atomic_write(folder / name) as file:
                file.write(content)
    except OSError as error:
        raise ConfigError(str(folder), [f"run.dir cannot be written to: {error}"]) from None


def clear_left(folder: Path) -> int:
    """Remove what killed jobs have left half-written in a run directory, where no other job is training; gives its bytes.

    Nothing behind links, which is another run's, and nothing that launchers/report.py, evaluate.py or export.py may be writing.
    """
    places = (folder / name for name in ("", "data", "plans", "hypotheses", "scores"))
    found = [*places, *folder.glob("checkpoints/*")]
    return sum(clear_partial(place, "report.html") for place in found if place.is_dir() and not place.is_symlink())


def plan_path(folder: Path, arm: str) -> Path:
    """Where a run keeps the plan of an arm."""
    return folder / "plan.json" if arm == "gdps" else folder / "plans" / f"{arm}.json"


def has_begun(folder: Path) -> bool:
    """Whether a run has made more than its data."""
    own = [path for path in folder.glob("checkpoints/*/latest") if not path.parent.is_symlink()]
    return any(path.exists() for path in (*own, folder / SKETCHES, plan_path(folder, "gdps")))


def forget(folder: Path) -> None:
    """Remove what does not know its configuration, as utterances and features do; it is made again in no time."""
    _unlink(folder)
    forget_tokens(folder)


def forget_tokens(folder: Path) -> None:
    """Remove the tokenizer and the labels that it made."""
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    for labels in (folder / "data").glob("*.labels.arrow"):
        labels.unlink()


def _unlink(folder: Path) -> None:
    for path in (folder / name for name in LINKED):
        if path.is_symlink():
            path.unlink()


def _take_over(source: Path, config: Config) -> None:
    """Link the unified model of another run, with its data and tokenizer, and copy what its metrics say of that phase.

    Raises:
        ConfigError: there is no such model, or this run would have made another one.
    """
    from gdps_ds.training.checkpoint import LATEST, Checkpoint  # takes seconds, for launchers that only read a run
    from gdps_ds.training.selection import is_over

    folder, train = Path(config.run.dir), config.train
    if not (source / RESOLVED).is_file():
        raise ConfigError("run.unified", [f"{source} is no run directory: it has no {RESOLVED}"])
    # Sums that were mined in training lie in the unified checkpoint.
    mined = "mine" if config.mine.during == "training" else ""
    free = [name for name in AFTER_UNIFYING if name != mined]
    differences = _differences(read_sections(source / RESOLVED), yaml.safe_load(dump_config(config)), free)
    if differences:
        raise ConfigError("run.unified", [*differences, f"{source} made its unified model by other settings"])
    unified = source / "checkpoints" / UNIFIED
    tag = unified / LATEST
    if not tag.is_file() or not is_over(Checkpoint.read(unified / tag.read_text().strip()).progress, train.unify, train):
        raise ConfigError("run.unified", [f"{source} has not finished its unified phase"])
    _unlink(folder)  # what an attempt that was killed has linked
    with atomic_write(folder / METRICS_FILE) as copy, (source / METRICS_FILE).open(encoding="utf-8") as lines:
        # The other run may be training its arms, and at a line of its own.
        whole = (line for line in lines if line.endswith("\n"))
        copy.writelines(line for line in whole if json.loads(line)["phase"] in (START, UNIFIED))
    for name in LINKED:
        if (source / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to((source / name).resolve(), target_is_directory=True)


def check_shared(folder: Path, comm: Communicator, patience: float = 10.0) -> None:
    """Check that every rank sees what rank 0 writes into ``folder``, within ``patience`` seconds. Collective.

    Prepared data, plan and checkpoints are written once, there, and read by all.

    Raises:
        DataError: on every rank, naming the nodes that do not see it.
    """
    token = folder / comm.from_main(lambda: f".seen-{uuid.uuid4().hex}")
    comm.from_main(token.touch)
    until = time.monotonic() + patience
    while not token.exists() and time.monotonic() < until:
        time.sleep(0.1)
    blind = sorted({name for name in comm.gather(None if token.exists() else socket.gethostname()) if name})
    comm.from_main(token.unlink)
    if blind:
        raise DataError(
            f"run.dir ({folder}) is not the same folder everywhere: {', '.join(blind)} did not find there what rank 0 wrote; "
            "put it on a file system that all nodes share, under the same path"
        )


def _differences(old: object, new: object, free: Collection[str], prefix: str = "") -> list[str]:
    """Fields that differ, one a line, but for those that are ``free`` to."""
    if prefix in free or old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        names = {key: f"{prefix}.{key}" if prefix else str(key) for key in keys}
        return [line for key in keys for line in _differences(old.get(key), new.get(key), free, names[key])]
    return [f"{prefix}: {new!r} now, {old!r} in {RESOLVED}"]
