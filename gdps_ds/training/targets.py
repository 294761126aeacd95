"""Whether a tokenizer can write the translations that a model is to learn, so that it shows before the model is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import SeamlessM4TTokenizer

from gdps_ds.data.manifest import DataError
from gdps_ds.data.table import LabelTable, UtteranceTable
from gdps_ds.files import atomic_write
from gdps_ds.model.tokens import language_code, unknown_share

LARGELY = 0.5
"""A translation is largely unknown where the tokenizer has no piece for this share of its characters, or more."""
NEARLY_ALL = 0.9
"""Of a language pair's translations: where so many are largely unknown, its scripts are not the tokenizer's."""
EXAMPLES = 3


def require_codes(tokenizer: SeamlessM4TTokenizer, roles: Mapping[str, UtteranceTable]) -> None:
    """Raise a :class:`DataError` that names the first target language of any role without a code in the tokenizer."""
    for role, utterances in roles.items():
        for language in utterances.target_languages():
            try:
                language_code(tokenizer, language)
            except ValueError as error:
                example = next(each.id for each in utterances if each.target_lang == language)
                raise DataError(f"data.corpora: {error}, but {role} has translations into it, such as {example}'s") from None


def require_pairs(roles: Mapping[str, UtteranceTable], *, pretrained: bool) -> None:
    """Tell of language pairs that are evaluated, but not trained.

    Raises:
        DataError: the model is new, so that it cannot know them from elsewhere.
    """
    trained = roles["train"].pairs()
    for role in ("dev", "test"):
        for pair, count in roles[role].pairs().items():
            if pair not in trained:
                known = ", ".join(trained)
                told = f"{count} utterances of {role} are {pair}, of which the training set has none (it has {known})"
                if not pretrained:
                    raise DataError(f"data.corpora: {told}; mend the language codes, or leave them out")
                print(f"{told}; they are evaluated all the same", flush=True)


def write_label_report(path: Path, tokenizer: SeamlessM4TTokenizer, utterances: UtteranceTable, labels: LabelTable) -> None:
    """Count translations that the tokenizer can write in part only, by language pair.

    The file has for each pair, such as "bem-eng": ``targets``, how many there are; ``unknown``, how many of them have
    characters without a piece; ``largely_unknown``, the ids of those that hardly have any other (:data:`LARGELY`).
    """
    report: dict[str, Any] = {
        pair: {"targets": count, "unknown": 0, "largely_unknown": []} for pair, count in utterances.pairs().items()
    }
    for row in labels.rows_with(tokenizer.unk_token_id):
        utterance = utterances[int(row)]
        found = report[f"{utterance.source_lang}-{utterance.target_lang}"]
        found["unknown"] += 1
        if unknown_share(tokenizer, str(utterance.target_text)) >= LARGELY:
            found["largely_unknown"].append(utterance.id)
    with atomic_write(path) as file:
        json.dump(report, file, indent=2, ensure_ascii=False)


def require_known(path: Path, role: str) -> None:
    """Tell of translations that the report in ``path`` has as largely unknown.

    Raises:
        DataError: nearly all of a language pair's are.
    """
    for pair, found in json.loads(path.read_text(encoding="utf-8")).items():
        ids, count = found["largely_unknown"], found["targets"]
        if not ids:
            continue
        told = (
            f"{len(ids)} of {count} translations of {pair} in {role} are of characters that the tokenizer has no pieces for, "
            f"such as those of {', '.join(ids[:EXAMPLES])} (all: {path})"
        )
        if len(ids) >= NEARLY_ALL * count:
            raise DataError(f"data.corpora: {told}; take a model.pretrained that has this script, or leave them out")
        print(told, flush=True)
