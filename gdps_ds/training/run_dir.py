"""The run directory: holds everything a run makes, and the configuration that makes it again."""

from __future__ import annotations

import shutil
import socket
import time
import uuid
from pathlib import Path

import yaml

from gdps_ds.config import Config
from gdps_ds.config_file import ConfigError, dump_config, read_sections
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

    Until the first checkpoint there is nothing of a run but its data, so that an option that was at fault can be changed.

    Raises:
        ConfigError: ``run.resume`` is never and there is a run already, the run there has another configuration, or nothing
            can be written there.
    """
    folder = Path(config.run.dir)
    path = folder / RESOLVED
    if path.is_file():
        if config.run.resume == "never":
            raise ConfigError(str(folder), ["run.resume is never, but run.dir holds a run; choose another or remove it"])
        differences = _differences(read_sections(path), yaml.safe_load(dump_config(config)))
        if differences and any(folder.glob("checkpoints/*/latest")):
            raise ConfigError(str(folder), [*differences, "run.dir holds a run of another configuration; choose another"])
        if differences:
            _forget_labels(folder)
    # Read before it is written: a run may be started again with the file that it keeps.
    deepspeed = Path(config.deepspeed).read_text(encoding="utf-8")
    try:
        for name, content in {"deepspeed.json": deepspeed, RESOLVED: dump_config(config)}.items():
            with atomic_write(folder / name) as file:
                file.write(content)
    except OSError as error:
        raise ConfigError(str(folder), [f"run.dir cannot be written to: {error}"]) from None


def _forget_labels(folder: Path) -> None:
    """Remove what does not know its configuration, as utterances and features do; it is made again in no time."""
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    for labels in (folder / "data").glob("*.labels.arrow"):
        labels.unlink()


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
