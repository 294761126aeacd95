"""From the corpora of a configuration to datasets: prepared once by rank 0 under the run directory, then opened by all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import SeamlessM4TTokenizer

from gdps_ds.config import Config, DataConfig
from gdps_ds.data.collate import Collator, SpeechDataset
from gdps_ds.data.corpora import read_corpus
from gdps_ds.data.features import FeatureStore, OnTheFlyFeatures
from gdps_ds.data.manifest import DataError, Utterance, atomic_write, read_manifest, write_manifest
from gdps_ds.data.preparation import prepare
from gdps_ds.distributed.comm import Communicator
from gdps_ds.model.families import load_tokenizer, target_ids, train_tokenizer

ROLES = ("train", "dev", "test")
DECODER_START, PAD = 3, 0
"""SeamlessM4T's ``decoder_start_token_id`` and ``pad_token_id``, the same in every checkpoint of the family."""


@dataclass(frozen=True)
class Inputs:
    """The datasets of a run and the tokenizer that made their labels."""

    tokenizer: SeamlessM4TTokenizer
    train: SpeechDataset
    dev: SpeechDataset
    test: SpeechDataset
    collate: Collator


def load_inputs(config: Config, comm: Communicator) -> Inputs:
    """Prepare (rank 0) and open (all ranks) the three roles of the data. Collective.

    Raises:
        RankZeroError: a language of ``data.languages`` has no usable utterance in a role, or data cannot be read.
        DataError: a target is longer than ``data.max_target_tokens``.
    """
    folder = Path(config.run.dir) / "data"
    progress = config.track.progress
    for role in ROLES:
        comm.from_main(lambda role=role: prepare_role(config.data, role, folder, progress=progress))  # type: ignore[misc]
    utterances = {role: read_manifest(folder / f"{role}.jsonl") for role in ROLES}
    tokenizer = _tokenizer(config, comm, utterances["train"])
    datasets = {role: _dataset(config, comm, tokenizer, utterances[role], folder / f"{role}.features") for role in ROLES}
    return Inputs(tokenizer, **datasets, collate=Collator(pad_id=PAD, start_id=DECODER_START))


def prepare_role(data: DataConfig, role: str, folder: Path, *, progress: bool) -> None:
    """Write ``<role>.jsonl`` and ``<role>.report.json`` unless they are there for the same settings.

    Raises:
        DataError: nothing is left of a language; the report is written all the same.
    """
    key = _key(data, role)
    report_path, manifest_path = folder / f"{role}.report.json", folder / f"{role}.jsonl"
    if manifest_path.is_file() and json.loads(report_path.read_text(encoding="utf-8"))["key"] == key:
        return
    folder.mkdir(parents=True, exist_ok=True)
    kept, report = prepare(
        _read(data, role),
        languages=data.languages,
        min_seconds=data.min_seconds,
        max_seconds=data.max_seconds,
        too_long=data.too_long,
        workers=data.workers,
        progress=progress,
    )
    manifest_path.unlink(missing_ok=True)
    with atomic_write(report_path) as file:
        json.dump({"key": key, "languages": report.to_dict()}, file, indent=2, ensure_ascii=False)
    print(f"{role}:\n{report.summary()}", flush=True)
    report.require(data.languages)
    write_manifest(manifest_path, kept)


def _read(data: DataConfig, role: str) -> Iterator[Utterance]:
    for corpus in data.corpora:
        yield from read_corpus(corpus.layout, corpus.root, getattr(corpus, role))


def _key(data: DataConfig, role: str) -> str:
    """What the prepared manifest depends on."""
    fields = {"languages", "corpora", "min_seconds", "max_seconds", "too_long"}
    return hashlib.sha256((role + data.model_dump_json(include=fields)).encode()).hexdigest()


def _tokenizer(config: Config, comm: Communicator, train: Sequence[Utterance]) -> SeamlessM4TTokenizer:
    """The checkpoint's tokenizer, or one that rank 0 trains on the targets of the training set."""
    if config.model.pretrained is not None:
        return load_tokenizer(config.model.pretrained)
    folder = Path(config.run.dir) / "tokenizer"
    languages = sorted({utterance.target_lang for utterance in train})
    texts = [str(utterance.target_text) for utterance in train]
    if not (folder / "tokenizer_config.json").is_file():
        comm.from_main(lambda: train_tokenizer(texts, languages, folder, config.model.vocab_size) and None)
    return load_tokenizer(folder)


def _dataset(
    config: Config, comm: Communicator, tokenizer: SeamlessM4TTokenizer, utterances: Sequence[Utterance], folder: Path
) -> SpeechDataset:
    if config.data.cache_features:
        progress = config.track.progress
        workers = config.data.workers
        comm.from_main(lambda: FeatureStore.build(utterances, folder, workers=workers, progress=progress) and None)
        features: FeatureStore | OnTheFlyFeatures = FeatureStore(folder)
    else:
        features = OnTheFlyFeatures(utterances)
    targets = _targets(tokenizer, utterances, config.data.max_target_tokens)
    return SpeechDataset(utterances, features, targets, languages=config.data.languages, folds=config.mine.folds)


def _targets(tokenizer: SeamlessM4TTokenizer, utterances: Sequence[Utterance], limit: int) -> list[list[int]]:
    """Label ids of every utterance, tokenised language by language."""
    targets: list[list[int]] = [[] for _ in utterances]
    for language in sorted({utterance.target_lang for utterance in utterances}):
        rows = [row for row, utterance in enumerate(utterances) if utterance.target_lang == language]
        texts = [str(utterances[row].target_text) for row in rows]
        for row, ids in zip(rows, target_ids(tokenizer, texts, language), strict=True):
            targets[row] = ids
    long = [utterance.id for utterance, ids in zip(utterances, targets, strict=True) if len(ids) > limit]
    if long:
        raise DataError(f"data.max_target_tokens is {limit}, but {len(long)} targets are longer, such as {long[0]}'s")
    return targets
