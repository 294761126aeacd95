"""The run directory: holds everything a run makes, and the configuration that makes it again."""

from __future__ import annotations

import shutil
import socket
import time
import uuid
from pathlib import Path

import yaml

from gdps_ds.config import Config
from gdps_ds.config_file import ConfigError, dump_config
from gdps_ds.data.manifest import DataError, atomic_write
from gdps_ds.distributed.comm import Communicator

RESOLVED = "config.yaml"

MAY_CHANGE = (
    "deepspeed",
    "track",
    "run.resume",
    "run.arms",
    "run.keep_checkpoints",
    "decode",
    "guard",
    "data.workers",
    "train.checkpoint_every",
)
"""What a resumed run may set otherwise than the run that it goes on with."""


def open_run_dir(config: Config) -> None:
    """Create the run directory with its resolved configuration, or check that the run there is this one.

    Raises:
        ConfigError: ``run.resume`` is never and there is a run already, or the run there has another configuration.
    """
    folder = Path(config.run.dir)
    path = folder / RESOLVED
    if path.is_file():
        if config.run.resume == "never":
            raise ConfigError(str(folder), ["run.resume is never, but run.dir holds a run; choose another or remove it"])
        differences = _differences(yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(dump_config(config)))
        if differences:
            raise ConfigError(str(folder), [*differences, "run.dir holds a run of another configuration; choose another"])
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(config.deepspeed, folder / "deepspeed.json")
    with atomic_write(path) as file:
        file.write(dump_config(config))


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


def _differences(old: object, new: object, prefix: str = "") -> list[str]:
    if prefix in MAY_CHANGE or old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [
            line for key in keys for line in _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        ]
    return [f"{prefix}: {new!r} now, {old!r} in {RESOLVED}"]
