"""Data sets of the Hugging Face hub, or local copies of them, as a small file describes them.

``hub.yaml`` in the corpus's root says where the data set is and what its columns mean, as here for FLEURS, which keeps a
language a configuration and joins translations by sentence:

    path: google/fleurs               # a name on the hub, or a folder (relative ones start at this file)
    name: ga_ie                       # configuration
    revision: refs/convert/parquet
    streaming: true
    source_lang: gle
    target_lang: eng
    id: id
    source_text: transcription
    references: {name: en_us, key: id, text: transcription}

Tables (Parquet, JSON lines, CSV, ``save_to_disk``) need nothing but ``datasets``; for a repository that is a folder of audio
files it wants ``torchcodec`` as well. Encoded audio is copied to ``audio/`` beside the file, named by its content, so that
reading again writes nothing, and is decoded as that of every other corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import yaml
from pydantic import Field, ValidationError, model_validator

from gdps_ds.data.corpora.files import NO_AUDIO, Pair, RowFault, one_line, text_of, utterances
from gdps_ds.data.manifest import DataError, Utterance
from gdps_ds.data.sources import REVISION, note, note_tree
from gdps_ds.fields import Language, Location, Section
from gdps_ds.files import atomic_path

DESCRIPTION, COPIES = "hub.yaml", "audio"


class References(Section):
    """Translations that another configuration of the data set holds, found by a key that both have."""

    name: str = Field(description="the configuration")
    key: str = Field(description="column of both configurations")
    text: str = Field(description="column of the translation")


class HubCorpus(Section):
    """The contents of ``hub.yaml``."""

    path: Location = Field(description="name on the hub, or folder of a repository or of Dataset.save_to_disk")
    name: str | None = Field(None, description="configuration")
    revision: str | None = None
    streaming: bool = Field(False, description="read rows as they arrive instead of downloading the data set first")
    source_lang: Language
    target_lang: Language
    audio: str = Field("audio", description="column of the audio")
    id: str | None = Field(None, description="column that becomes part of the ids")
    source_text: str | None = Field(None, description="column of the transcript")
    target_text: str | None = Field(None, description="column of the translation")
    references: References | None = Field(None, description="translations in another configuration")

    @model_validator(mode="after")
    def _check(self) -> HubCorpus:
        if self.target_text is not None and self.references is not None:
            raise ValueError("target_text and references exclude each other")
        return self


def read_hub(root: Path, split: str) -> Iterator[Utterance]:
    """The rows of one split of the data set that ``root/hub.yaml`` describes."""
    corpus = load_description(root / DESCRIPTION)
    columns = [corpus.audio, corpus.id, corpus.source_text, corpus.target_text]
    columns += [corpus.references.key] if corpus.references else []
    rows = _load(root, corpus, split, corpus.name, list(dict.fromkeys(column for column in columns if column)))
    translations = _translations(root, corpus, split)
    pair = Pair(corpus.source_lang, corpus.target_lang)
    prefix = f"{root.name}-{pair.source}-{pair.target}-{split}"

    def parse(row: tuple[int, Mapping[str, Any]]) -> Utterance:
        number, record = row
        target = text_of(record, corpus.target_text) if corpus.target_text else None
        if corpus.references:
            target = translations.get(str(record[corpus.references.key]))
        return Utterance(
            # Ids of sentences repeat, as do those of speakers: only with the row's number is one sure to be unique.
            id=f"{prefix}-{number:08d}" + (f"-{record[corpus.id]}" if corpus.id else ""),
            audio=_local_audio(record[corpus.audio], root / corpus.path, root / COPIES),
            source_lang=pair.source,
            target_lang=pair.target,
            target_text=target,
            source_text=text_of(record, corpus.source_text) if corpus.source_text else None,
        )

    yield from utterances(((number, (number, row)) for number, row in enumerate(rows, start=1)), parse, prefix, pair)


def load_description(path: Path) -> HubCorpus:
    """Read ``hub.yaml``.

    Raises:
        DataError: lists every unknown key, missing key and wrong type.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; corpus layout 'hub' needs it (see gdps_ds.data.corpora.hub)")
    try:
        note(path)
        return HubCorpus.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'file'}: {fault['msg']}" for fault in error.errors()]
        raise DataError(f"{path}: " + "; ".join(faults)) from None


def _load(root: Path, corpus: HubCorpus, split: str, name: str | None, columns: list[str]) -> Any:
    """The rows of a configuration with the named columns only, audio left encoded."""
    try:
        import datasets  # takes seconds, which only this layout should pay
    except ImportError as error:
        raise DataError(f"corpus layout 'hub' needs the library datasets, which cannot be imported: {error}") from None
    local, copies = root / corpus.path, root / COPIES
    if copies.parent == local:
        copies.mkdir(exist_ok=True)  # that it comes is no change of the data set
    if local.is_dir():
        note_tree(local, besides=copies)
    else:
        note(Path(corpus.path), f"{REVISION}{corpus.revision or 'main'}")
    try:
        if (local / "dataset_dict.json").is_file():
            rows = datasets.load_from_disk(str(local))[split]
        else:
            path = str(local) if local.is_dir() else corpus.path
            rows = datasets.load_dataset(path, name, split=split, revision=corpus.revision, streaming=corpus.streaming)
    except (ValueError, KeyError, OSError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{root / DESCRIPTION}: cannot load split '{split}' of {corpus.path} ({name}): {error.__cause__ or error}"
        ) from None
    present = rows.column_names or list(next(iter(rows), {}))
    if missing := [column for column in columns if column not in present]:
        raise DataError(f"{root / DESCRIPTION}: no column {', '.join(missing)}; columns there: {', '.join(present)}")
    rows = rows.select_columns(columns)
    return rows.cast_column(corpus.audio, datasets.Audio(decode=False)) if corpus.audio in columns else rows


def _translations(root: Path, corpus: HubCorpus, split: str) -> dict[str, str | None]:
    if corpus.references is None:
        return {}
    key, text = corpus.references.key, corpus.references.text
    rows = _load(root, corpus, split, corpus.references.name, [key, text])
    return {str(row[key]): None if row[text] is None else one_line(str(row[text])) for row in rows}


def _local_audio(audio: Mapping[str, Any] | None, source: Path, copies: Path) -> str:
    """The path of a row's audio: below ``source`` where it lies there, else a copy named by a digest of its bytes."""
    content, path = (audio or {}).get("bytes"), (audio or {}).get("path") or ""
    if content is None and "://" in path:
        with fsspec.open(path, "rb") as file:
            content = file.read()
    if content is None:
        if not path:
            raise RowFault(NO_AUDIO)
        return str(source / path)
    copy = copies / f"{hashlib.blake2b(content, digest_size=16).hexdigest()}{Path(path).suffix}"
    if not copy.is_file():
        with atomic_path(copy) as partial:
            partial.write_bytes(content)
    return str(copy)
