"""Targets that are not trained on, too long or without a text: left out of the training set, and counted by language."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdps_ds.config import DataConfig
from gdps_ds.data.manifest import DataError
from gdps_ds.data.preparation_report import new_list, row_of
from gdps_ds.data.table import LabelTable, UtteranceTable
from gdps_ds.distributed.comm import Communicator
from gdps_ds.files import atomic_write

LONG_TARGET = "target longer than data.max_target_tokens"
EMPTY_TARGET = "with a target that the tokenizer makes nothing of"
FRAME_OF_LABELS = 2
"""A language token and ``</s>``: what labels hold beside a text."""


def is_empty(lengths: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of some labels, (N,) ids long, hold no text."""
    return lengths <= FRAME_OF_LABELS


def trainable_rows(
    data: DataConfig, comm: Communicator, utterances: UtteranceTable, targets: LabelTable, stem: Path
) -> NDArray[np.int64] | None:
    """The utterances (M,) of a role that training may draw; None for all. Collective.

    Rank 0 counts long targets in the role's report, and lists them, and those without a text, in ``<role>.targets.tsv`` beside
    it. Long ones of the dev set are only listed: its loss is over them too.

    Args:
        stem: the role's files without their suffixes.

    Raises:
        DataError: no target of a language is left in the training set.
    """
    lengths = targets.lengths()
    reasons = {LONG_TARGET: lengths > data.max_target_tokens, EMPTY_TARGET: is_empty(lengths)}
    rows = {reason: np.flatnonzero(found) for reason, found in reasons.items()}
    comm.from_main(partial(_record, data.max_target_tokens, utterances, rows, stem))
    left_out = np.logical_or.reduce(list(reasons.values()))
    if stem.name != "train" or not left_out.any():
        return None
    languages = utterances.language_ids(data.languages)
    for index, language in enumerate(data.languages):
        own = languages == index
        if left_out[own].all():
            counts = ", ".join(f"{(found & own).sum()} {reason}" for reason, found in reasons.items() if (found & own).any())
            example = utterances[int(np.flatnonzero(own)[0])].id
            raise DataError(
                f"data.max_target_tokens is {data.max_target_tokens}: no target of {language} is left to train on ({counts}, "
                f"such as {example}'s)"
            )
    return np.flatnonzero(~left_out)


def _record(limit: int, utterances: UtteranceTable, rows: Mapping[str, NDArray[np.int64]], stem: Path) -> None:
    """Write the list of the ``rows`` of each reason and the count of long targets, or remove those of another limit."""
    listing, path = stem.with_name(f"{stem.name}.targets.tsv"), stem.with_name(f"{stem.name}.report.json")
    report = json.loads(path.read_text(encoding="utf-8"))
    if any(found.size for found in rows.values()):
        with new_list(listing) as file:
            for reason, found in rows.items():
                file.writelines(row_of(utterances[int(row)], reason) for row in found)
    else:
        listing.unlink(missing_ok=True)
    counts = Counter(utterances[int(row)].source_lang for row in rows[LONG_TARGET])
    if counts:
        fate = "left out of training" if stem.name == "train" else "kept: the dev loss is over all targets"
        by_language = ", ".join(f"{language} {count}" for language, count in sorted(counts.items()))
        count = f"{counts.total()} targets have more than {limit} tokens (data.max_target_tokens)"
        print(f"{stem.name}: {count}, {fate}: {by_language}")
        print(f"all of them are listed in {listing}", flush=True)
    if report.get("long_targets", {}) != dict(counts):
        with atomic_write(path) as file:
            json.dump(report | {"long_targets": dict(sorted(counts.items()))}, file, indent=2, ensure_ascii=False)
