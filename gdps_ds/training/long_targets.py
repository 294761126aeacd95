"""Targets too long to be trained on: left out of the training set, counted by language, and kept in the dev set."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gdps_ds.config import DataConfig
from gdps_ds.data.manifest import DataError
from gdps_ds.data.preparation import LISTED, listed
from gdps_ds.data.table import LabelTable, UtteranceTable
from gdps_ds.distributed.comm import Communicator
from gdps_ds.files import atomic_write

LONG_TARGET = "target longer than data.max_target_tokens"


def short_targets(
    data: DataConfig, comm: Communicator, utterances: UtteranceTable, targets: LabelTable, stem: Path
) -> NDArray[np.int64] | None:
    """The utterances (M,) of a role that training may draw; None for all. Collective.

    Rank 0 counts the others in the role's report, and lists them in ``<role>.long-targets.tsv`` beside it. The dev set is only
    counted: its loss is over all of its targets.

    Args:
        stem: the role's files without their suffixes.

    Raises:
        DataError: a language of the training set has no other targets.
    """
    lengths = targets.lengths()
    long = np.flatnonzero(lengths > data.max_target_tokens)
    comm.from_main(partial(_record, data.max_target_tokens, utterances, long, stem))
    if stem.name != "train" or not long.size:
        return None
    rows = np.flatnonzero(lengths <= data.max_target_tokens)
    left = np.bincount(utterances.language_ids(data.languages)[rows], minlength=len(data.languages))
    if not left.all():
        names = ", ".join(language for language, count in zip(data.languages, left, strict=True) if count == 0)
        raise DataError(
            f"data.max_target_tokens is {data.max_target_tokens}, and every target of {names} in the training set is longer, "
            f"such as {utterances[int(long[0])].id}'s; raise it"
        )
    return rows


def _record(limit: int, utterances: UtteranceTable, long: NDArray[np.int64], stem: Path) -> None:
    """Write the list and the count of ``long`` targets, or remove those of another limit."""
    listing, path = stem.with_name(f"{stem.name}.long-targets.tsv"), stem.with_name(f"{stem.name}.report.json")
    report = json.loads(path.read_text(encoding="utf-8"))
    counts: Counter[str] = Counter()
    if long.size:
        with atomic_write(listing) as file:
            file.write(listed(*LISTED))
            for utterance in (utterances[int(row)] for row in long):
                counts[utterance.source_lang] += 1
                file.write(listed(utterance.id, utterance.source_lang, LONG_TARGET, utterance.audio))
        fate = "left out of training" if stem.name == "train" else "kept: the dev loss is over all targets"
        by_language = ", ".join(f"{language} {count}" for language, count in sorted(counts.items()))
        print(f"{stem.name}: {long.size} targets have more than {limit} tokens (data.max_target_tokens), {fate}: {by_language}")
        print(f"all of them are listed in {listing}", flush=True)
    else:
        listing.unlink(missing_ok=True)
    if report.get("long_targets", {}) != dict(counts):
        with atomic_write(path) as file:
            json.dump(report | {"long_targets": dict(sorted(counts.items()))}, file, indent=2, ensure_ascii=False)
