"""From the corpora of a configuration to datasets: prepared once by rank 0 under the run directory, then opened by all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import SeamlessM4TTokenizer

from gdps_ds.config import Config, CorpusConfig, DataConfig, ModelConfig
from gdps_ds.data.collate import Collator, SpeechDataset
from gdps_ds.data.corpora import read_corpus
from gdps_ds.data.features import FeatureStore, OnTheFlyFeatures
from gdps_ds.data.manifest import DataError, Unusable, Utterance
from gdps_ds.data.parallel import map_in_order, parts_of
from gdps_ds.data.preparation import overlaps, prepared
from gdps_ds.data.preparation_report import new_list, report_with_list
from gdps_ds.data.sources import Files, noting, write_sources
from gdps_ds.data.table import LabelTable, UtteranceTable, key_of, write_labels, write_utterances
from gdps_ds.distributed.comm import Communicator, RankZeroError
from gdps_ds.evaluation.decoding import oversized
from gdps_ds.evaluation.metrics import check_tokenizers
from gdps_ds.evaluation.normalisers import loss_of
from gdps_ds.files import atomic_folder, atomic_path, atomic_write
from gdps_ds.model.families import check_model, load_config
from gdps_ds.model.pretrained import UnfitCheckpointError
from gdps_ds.model.tokens import load_tokenizer, target_ids, tokenizer_digest, train_tokenizer
from gdps_ds.training.prepared import ROLES, check_sources, in_use, is_prepared, key, sources_of, write_pretrained
from gdps_ds.training.targets import require_codes, require_known, require_pairs, write_label_report
from gdps_ds.training.trainable import EMPTY_TARGET, is_empty, trainable_rows

DECODER_START, PAD = 3, 0
"""SeamlessM4T's ``decoder_start_token_id`` and ``pad_token_id``, the same in every checkpoint of the family."""
TOKENISED_TOGETHER = 1024
WITHOUT_TEXT = "only test sets may lack translations: data.corpora.*.test, and launchers/prepare.py --no-references"
NOTES = "notes.txt"
"""In the run directory, as data may be another run's: lines on what evaluations leave out."""


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
        RankZeroError: there is no such checkpoint, a language of ``data.languages`` has no usable utterance in a role, or data
            cannot be read.
        DataError: no target of a language is short enough for training.
        RuntimeError: on a rank that rank 0 kept waiting for longer than collectives wait; says what to do.
    """
    data, progress, folder = config.data, config.track.progress, Path(config.run.dir) / "data"
    with _patience(comm):
        comm.from_main(lambda: check_sources(config, folder))
        comm.from_main(lambda: check_inputs(config, folder))
    for number, role in enumerate(ROLES):
        with _patience(comm):
            comm.from_main(partial(prepare_role, data, role, folder, earlier=ROLES[:number], progress=progress))
    utterances = {role: UtteranceTable.open(folder / f"{role}.arrow") for role in ROLES}
    tokenizer = _tokenizer(config, comm, utterances["train"])
    comm.from_main(lambda: _check_tokenizer(config.model, tokenizer, utterances))
    datasets = {}
    for role in ROLES:
        with _patience(comm):
            features = _features(config, comm, utterances[role], folder / f"{role}.features")
            # Test sets are decoded without looking at references, which need not be there.
            targets = None if role == "test" else _targets(config, comm, tokenizer, utterances[role], folder / f"{role}.arrow")
        rows = None if targets is None else trainable_rows(data, comm, utterances[role], targets, folder / role)
        datasets[role] = SpeechDataset(
            utterances[role], features, targets, languages=data.languages, folds=config.mine.folds, rows=rows
        )
    comm.from_main(lambda: _take_note(config, datasets, Path(config.run.dir) / NOTES))
    return Inputs(tokenizer, **datasets, collate=Collator(pad_id=PAD, start_id=DECODER_START))


def left_out_of_loss(dev: SpeechDataset, data: DataConfig) -> dict[str, NDArray[np.bool_]]:
    """Reason -> (N,) which utterances of a dev set have no loss: it is of whole utterances, none longer than a micro-batch."""
    assert isinstance(dev.targets, LabelTable)
    return {
        "no audio of a frame": dev.lengths == 0,
        "longer than data.max_frames": dev.lengths > data.max_frames,
        EMPTY_TARGET: is_empty(dev.targets.lengths()),
    }


def with_loss(dev: SpeechDataset, data: DataConfig) -> NDArray[np.int64]:
    """The utterances that the dev loss is of, see :func:`left_out_of_loss`."""
    return np.flatnonzero(~np.logical_or.reduce(list(left_out_of_loss(dev, data).values())))


def _take_note(config: Config, datasets: Mapping[str, SpeechDataset], path: Path) -> None:
    """Write and print what evaluations leave out or do otherwise, before anything is trained.

    Raises:
        DataError: a language has no dev utterance with a loss, or a tokenizer of the scores is not installed.
    """
    data, decode, dev, test = config.data, config.decoding, datasets["dev"], datasets["test"]
    check_tokenizers(sorted({*dev.utterances.target_languages(), *test.utterances.target_languages()}), decode)
    reasons, lines = left_out_of_loss(dev, data), _empty_targets(datasets["train"], data.languages)
    usable = np.bincount(dev.language_ids[with_loss(dev, data)], minlength=len(data.languages))
    for index, language in enumerate(data.languages):
        counts = {reason: int((found & (dev.language_ids == index)).sum()) for reason, found in reasons.items()}
        listed = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
        if not usable[index]:
            raise DataError(
                f"data.max_frames is {data.max_frames}: no utterance of {language} is left for the dev loss ({listed})"
            )
        lines += [f"{language}: the dev loss leaves out {listed}"] if listed else []
    by_bleu = [oversized(dev, decode)] if config.train.select.by == "bleu" else []
    lines += dict.fromkeys(line for line in (*by_bleu, oversized(test, decode)) if line)
    lines += [line for line in _lost(test.utterances, decode.normaliser) if line]
    with atomic_write(path) as file:
        file.writelines(f"{line}\n" for line in lines)
    for line in lines:
        print(line, flush=True)


def _empty_targets(train: SpeechDataset, languages: Sequence[str]) -> list[str]:
    assert isinstance(train.targets, LabelTable)
    left_out = np.bincount(train.language_ids[is_empty(train.targets.lengths())], minlength=len(languages)).tolist()
    return [f"{name}: {count} {EMPTY_TARGET}, not trained on" for name, count in zip(languages, left_out, strict=True) if count]


def _lost(utterances: UtteranceTable, normaliser: str) -> Iterator[str]:
    """What the scores' normaliser takes from the references, by target language."""
    texts: dict[str, list[str]] = {}
    for each in utterances:
        texts.setdefault(each.target_lang, []).append(each.target_text or "")
    yield from (loss_of(found, normaliser, language) for language, found in sorted(texts.items()))


def check_inputs(config: Config, folder: Path) -> None:
    """Look at the checkpoint and the beginning of every split, so that what is missing shows before hours of decoding.

    Raises:
        DataError: there is none, it is something else or not whole, or its tokenizer lacks a target language; names it.
        ValueError: ``model.config`` sets a field that the model does not have, or ``model.freeze`` does not fit it.
    """
    name, tokenizer = config.model.pretrained, None
    if name is not None:
        try:
            load_config(ModelConfig(pretrained=name), None)  # its message is the clearest where there is nothing of this name
            tokenizer = load_tokenizer(name)
        except Exception as error:  # of many types, as what is there may be anything
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"model.pretrained: no SeamlessM4T checkpoint '{name}' on disk or on the hub ({reason})") from error
    _check_model(config.model, tokenizer)
    for role in ROLES:
        if not is_prepared(config.data, role, folder):
            for corpus in config.data.corpora:
                first = next(_read_corpus(corpus, role))
                if tokenizer is not None and not isinstance(first, Unusable) and first.source_lang in config.data.languages:
                    require_codes(tokenizer, {role: UtteranceTable.of([first])})


def _check_model(settings: ModelConfig, tokenizer: SeamlessM4TTokenizer | None) -> None:
    try:
        check_model(settings, tokenizer)
    except UnfitCheckpointError as error:
        raise DataError(f"model.{'config' if settings.pretrained is None else 'pretrained'}: {error}") from None


def _check_tokenizer(settings: ModelConfig, tokenizer: SeamlessM4TTokenizer, utterances: Mapping[str, UtteranceTable]) -> None:
    """What can be said of it only when the data are prepared."""
    if settings.pretrained is None:
        _check_model(settings, tokenizer)
    require_codes(tokenizer, utterances)
    require_pairs(utterances, pretrained=settings.pretrained is not None)


@contextmanager
def _patience(comm: Communicator) -> Iterator[None]:
    """Says what to do where a rank gave up waiting for rank 0."""
    try:
        yield
    except RankZeroError:
        raise
    except RuntimeError as error:
        if comm.is_main:
            raise
        raise RuntimeError(
            f"rank {comm.rank} could not wait for rank 0 to prepare the data: decode it beforehand with launchers/prepare.py, "
            f"raise data.workers, or set data.cache_features: false ({error})"
        ) from error


def prepare_role(data: DataConfig, role: str, folder: Path, *, earlier: Sequence[str] = (), progress: bool = False) -> None:
    """Write ``<role>.arrow``, its report and lists unless they are there for the same settings.

    ``<role>.report.json`` counts what was skipped and noted, ``<role>.skipped.tsv`` and ``<role>.notes.tsv`` list it.

    Args:
        earlier: roles that have been prepared; the report counts utterances that they hold too.

    Raises:
        DataError: nothing is left of a language; the report and the list of what was skipped are written all the same.
    """
    path, files = folder / f"{role}.arrow", Files()
    if is_prepared(data, role, folder):
        return
    print(f"{role}: preparing, while other ranks wait; launchers/prepare.py can decode a large corpus beforehand", flush=True)
    skipped = folder / f"{role}.skipped.tsv"
    with atomic_path(path) as partial_path, new_list(folder / f"{role}.notes.tsv") as noted:
        with report_with_list(skipped, noted) as report:
            kept = prepared(
                noting(_read(data, role), files),
                report,
                languages=data.languages,
                min_seconds=data.min_seconds,
                max_seconds=data.max_seconds,
                too_long=data.too_long,
                workers=data.workers,
                progress=progress,
                require_text=role != "test",
                training=role == "train",
            )
            write_utterances(partial_path, kept, key(data, role))
        others = {other: UtteranceTable.open(folder / f"{other}.arrow") for other in earlier}
        shared = overlaps(UtteranceTable.open(partial_path), others)
        with atomic_write(folder / f"{role}.report.json") as file:
            json.dump({"languages": report.to_dict(), "overlap": shared}, file, indent=2, ensure_ascii=False)
        print(f"{role}:\n{report.summary(shared, skipped)}", flush=True)
        report.require(data.languages, without_text=WITHOUT_TEXT)
        write_sources(sources_of(folder, role), files)


def _read(data: DataConfig, role: str) -> Iterator[Utterance]:
    for corpus in data.corpora:
        yield from _read_corpus(corpus, role)


def _read_corpus(corpus: CorpusConfig, role: str) -> Iterator[Utterance]:
    return read_corpus(corpus.layout, corpus.root, getattr(corpus, role), corpus.audio_roots)


def _tokenizer(config: Config, comm: Communicator, train: UtteranceTable) -> SeamlessM4TTokenizer:
    """The checkpoint's tokenizer, or one that rank 0 trains on the targets of the training set."""
    if (name := config.model.pretrained) is not None:
        data = Path(config.run.dir) / "data"
        comm.from_main(lambda: None if in_use(data) else write_pretrained(name, data))
        return load_tokenizer(name)
    folder, pieces = Path(config.run.dir) / "tokenizer", config.model.vocab_size

    def make() -> None:
        if not folder.is_dir():
            with atomic_folder(folder) as partial_folder:
                train_tokenizer(map(str, train.target_texts()), train.target_languages(), partial_folder, pieces)

    comm.from_main(make)
    return load_tokenizer(folder)


def _features(config: Config, comm: Communicator, utterances: UtteranceTable, folder: Path) -> FeatureStore | OnTheFlyFeatures:
    if not config.data.cache_features:
        return OnTheFlyFeatures(utterances)
    workers, progress = config.data.workers, config.track.progress
    comm.from_main(lambda: FeatureStore.build(utterances, folder, workers=workers, progress=progress) and None)
    return FeatureStore(folder)


def _targets(
    config: Config, comm: Communicator, tokenizer: SeamlessM4TTokenizer, utterances: UtteranceTable, source: Path
) -> LabelTable:
    """Label ids of every utterance of the file ``source``, made by rank 0 in ``<role>.labels.arrow`` beside it.

    ``<role>.labels.json`` counts what the tokenizer has no pieces for, see :func:`write_label_report`.
    """
    path, report, data = source.with_suffix(".labels.arrow"), source.with_suffix(".labels.json"), config.data
    labels_key = f"{key_of(source)} {tokenizer_digest(tokenizer)}"

    def tokenise() -> None:
        if key_of(path) != labels_key or not report.is_file():
            report.unlink(missing_ok=True)
            before = LabelTable(path) if path.is_file() and in_use(source.parent) else None
            parts = map_in_order(
                partial(label_ids, tokenizer),
                parts_of(utterances, TOKENISED_TOGETHER),
                workers=data.workers,
                progress=config.track.progress,
                label="tokenising",
                part=1,
            )
            with atomic_path(path) as partial_path:
                write_labels(partial_path, chain.from_iterable(parts), labels_key)
                if before is not None and not LabelTable(partial_path).equals(before):
                    raise DataError(
                        f"the tokenizer of {config.model.pretrained or config.run.dir} gives other labels of {source} than the "
                        "run has trained with; bring it back as it was, or choose another run.dir"
                    )
            write_label_report(report, tokenizer, utterances, LabelTable(path))
        require_known(report, source.stem)

    comm.from_main(tokenise)
    return LabelTable(path)


def label_ids(tokenizer: SeamlessM4TTokenizer, utterances: Sequence[Utterance]) -> list[list[int]]:
    """Label ids of each utterance's translation, tokenised language by language."""
    labels: list[list[int]] = [[] for _ in utterances]
    for language in sorted({utterance.target_lang for utterance in utterances}):
        rows = [row for row, utterance in enumerate(utterances) if utterance.target_lang == language]
        texts = [str(utterances[row].target_text) for row in rows]
        for row, ids in zip(rows, target_ids(tokenizer, texts, language), strict=True):
            labels[row] = ids
    return labels
