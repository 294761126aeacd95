"""Whether what a run has prepared is of this configuration, and whether what it was made from is still as it was."""

from __future__ import annotations

import hashlib
from itertools import chain
from pathlib import Path

from gdps_ds.config import Config, DataConfig
from gdps_ds.data.features import FeatureStore
from gdps_ds.data.manifest import MAX_LISTED_FAULTS, DataError
from gdps_ds.data.sources import CONTENT, ENDS, MODEL, Files, add, changes, write_sources
from gdps_ds.data.table import UtteranceTable, key_of
from gdps_ds.training.run_dir import forget_tokens, has_begun

ROLES = ("train", "dev", "test")
PRETRAINED = "pretrained"
"""Beside the roles, what is noted of the files of ``model.pretrained``."""


def key(data: DataConfig, role: str) -> str:
    """What the prepared utterances depend on; limits of length are training's."""
    fields = {"languages", "corpora"} | ({"min_seconds", "max_seconds", "too_long"} if role == "train" else set())
    return hashlib.sha256((role + data.model_dump_json(include=fields)).encode()).hexdigest()


def is_prepared(data: DataConfig, role: str, folder: Path) -> bool:
    """Whether the role was prepared with these settings."""
    return key_of(folder / f"{role}.arrow") == key(data, role)


def sources_of(folder: Path, role: str) -> Path:
    """Where it is written down what a role was made from."""
    return folder / f"{role}.sources.arrow"


def in_use(folder: Path) -> bool:
    """Whether a run has trained or mined with the data in ``folder``, which several may share by links."""
    return any(has_begun(run) for run in _users(folder))


def _users(folder: Path) -> list[Path]:
    """The run directories whose data are ``folder``."""
    data = folder.resolve()
    found = [path.parent for path in (data, *data.parent.glob("*/data")) if path.resolve() == data]
    return list(dict.fromkeys([folder.parent, *found]))


def check_sources(config: Config, folder: Path) -> None:
    """Look whether the files that data were prepared from are still the same; if not, a run that has not begun prepares anew.

    Where a run has begun, and what its data were made from is not known, it is told, and the run goes on with the data that
    are there; where these are not there either, nothing can be compared.

    Raises:
        DataError: a run has trained or mined with them; names the files, or what is missing.
    """
    faults: dict[str, list[str]] = {}
    begun, data = in_use(folder), config.data
    for role in ROLES:
        record, ready = sources_of(folder, role), is_prepared(data, role, folder)
        if record.is_file() and (ready or begun):
            faults[role] = changes(record)
        elif begun and not ready:
            raise DataError(
                f"{folder} has neither {role}.arrow, which a run has trained with, nor {record.name}, which would tell whether "
                "the corpora are still the same; bring them back, or choose another run.dir"
            )
        elif begun:
            _compare_features(config, folder, role)
            print(f"{role}: {record} is missing: whether corpora were edited is not seen; {role}.arrow is used", flush=True)
        elif ready:
            faults[role] = [f"{record} is missing"]
    record = sources_of(folder, PRETRAINED)
    pretrained = changes(record) if begun and record.is_file() else []
    if begun:
        _refuse("data.corpora", list(dict.fromkeys(line for lines in faults.values() for line in lines)), folder)
        _refuse("model.pretrained", pretrained, folder)
        if config.model.pretrained is not None and not record.is_file():
            print(f"{record} is missing: whether files of model.pretrained changed is not seen", flush=True)
        return
    if any(faults.values()):
        for run in _users(folder):  # first, for what a kill leaves must not be taken for what goes with the new data
            forget_tokens(run)
    for role in (role for role, lines in faults.items() if lines):
        print(f"{role}: prepared anew, for {len(faults[role])} change(s), such as: {faults[role][0]}", flush=True)
        (folder / f"{role}.arrow").unlink()


def _refuse(option: str, found: list[str], folder: Path) -> None:
    if found:
        more = [f"and {len(found) - MAX_LISTED_FAULTS} more"] if len(found) > MAX_LISTED_FAULTS else []
        where, other = (folder.resolve(), "one without run.unified") if folder.is_symlink() else (folder, "another run.dir")
        raise DataError(
            f"{option}: {len(found)} file(s) are not as they were when {where} was prepared, and a run has trained with that; "
            f"choose {other}, or put them back: {'; '.join([*found[:MAX_LISTED_FAULTS], *more])}"
        )


def _compare_features(config: Config, folder: Path, role: str) -> None:
    """All that is left to compare: audio by size and time, where features were kept."""
    store, utterances = folder / f"{role}.features", UtteranceTable.open(folder / f"{role}.arrow")
    if config.data.cache_features and store.exists() and not FeatureStore.holds(utterances, store):
        _refuse("data.corpora", [f"audio of {role} was changed"], folder)


def write_pretrained(name: str, folder: Path) -> None:
    """Note the files of ``model.pretrained``, before a run begins with it."""
    files, texts, weights = Files(), ("*.json", "*.model", "*.txt"), ("*.safetensors", "*.bin")
    if not Path(name).is_dir():
        add(files, Path(name), MODEL)
    add(files, Path(name), ",".join([*texts, *weights]))
    for patterns, kind in ((texts, CONTENT), (weights, ENDS)):
        for path in sorted(chain.from_iterable(map(Path(name).glob, patterns))):
            add(files, path, kind)
    write_sources(sources_of(folder, PRETRAINED), files)
