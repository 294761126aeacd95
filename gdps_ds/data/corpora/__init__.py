"""Corpora in the layouts they are distributed in -> utterances.

A layout is a function ``(root, split) -> iterator of Utterance`` and one line in :data:`LAYOUTS`; one that is used for many
languages also takes a pair of them, is in :data:`PAIR_LAYOUTS`, and is asked for as ``mustc:eng-deu``. To add one, walk the
split's files in a fixed order and yield *every* utterance that text, audio or index mention, usable or not; what is
unusable is told and counted by :mod:`gdps_ds.data.preparation`. Ids must be unique over languages and splits, for they
decide folds and name hypotheses. Nothing is decoded here. For a table with the columns ``clip`` and ``english``:

    def read_mine(root: Path, split: str) -> Iterator[Utterance]:
        def parse(row: dict[str, str]) -> Utterance:
            clip = name_of(row, "clip", NO_AUDIO)
            return Utterance(f"mine-{split}-{clip}", str(root / "clips" / clip), "gle", "eng", text_of(row, "english"))

        root, index = split_file(root, split, "*.tsv")
        yield from utterances(table(index, "clip"), parse, f"mine-{split}", Pair("gle", "eng"))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from gdps_ds.data.corpora.files import Pair
from gdps_ds.data.corpora.folders import read_griko_italian, read_mboshi
from gdps_ds.data.corpora.hub import read_hub
from gdps_ds.data.corpora.iwslt import read_aeb, read_aeb_stm, read_stamped
from gdps_ds.data.corpora.mustc import read_mustc
from gdps_ds.data.corpora.records import read_bigc, read_manifest_folder, read_seamless
from gdps_ds.data.corpora.tables import read_covost2, read_gmu, read_taltech
from gdps_ds.data.manifest import DataError, Utterance

Layout = Callable[[Path, str], Iterator[Utterance]]
PairLayout = Callable[[Path, str, Pair], Iterator[Utterance]]

MANIFEST = "manifest"
LAYOUTS: dict[str, Layout] = {
    MANIFEST: read_manifest_folder,
    "mboshi-french": read_mboshi,
    "griko-italian": read_griko_italian,
    "iwslt-aeb": read_aeb,
    "iwslt-aeb-stm": read_aeb_stm,
    "iwslt-gle": partial(read_stamped, name="iwslt-gle", pair=Pair("gle", "eng"), suffix="eng"),
    "iwslt-mr-hi": partial(read_stamped, name="iwslt-mr-hi", pair=Pair("mar", "hin"), suffix="hi"),
    "iwslt-bho-hi": partial(read_stamped, name="iwslt-bho-hi", pair=Pair("bho", "hin"), suffix="hi"),
    "iwslt-que-spa": partial(read_mustc, name="iwslt", pair=Pair("que", "spa")),
    "bigc": read_bigc,
    "taltech-est": read_taltech,
    "seamless": read_seamless,
    "hub": read_hub,
}
PAIR_LAYOUTS: dict[str, PairLayout] = {
    "mustc": read_mustc,
    "covost2": read_covost2,
    "gmu": read_gmu,
    "mboshi": read_mboshi,
}


def read_corpus(
    layout: str, root: str | Path, split: str, audio_roots: Sequence[str | Path] | None = None
) -> Iterator[Utterance]:
    """The utterances of one split, lazily.

    Args:
        layout: a name of :data:`LAYOUTS`, or one of :data:`PAIR_LAYOUTS` with its languages, as in ``mustc:eng-deu``.
        audio_roots: the folders beside ``root`` whose audio a manifest may name; None for any.

    Raises:
        DataError: unknown layout, no such folder, no such split (the message lists those there are), or nothing in it.
    """
    read = partial(read_manifest_folder, audio_roots=audio_roots) if layout == MANIFEST else _reader(layout)
    if not Path(root).is_dir():
        raise DataError(f"{root}: no such folder (the root of corpus layout '{layout}')")
    return _filled(read(Path(root), split), f"{root}: split '{split}' of corpus layout '{layout}' holds no utterances")


def _filled(found: Iterator[Utterance], fault: str) -> Iterator[Utterance]:
    empty = True
    for utterance in found:
        empty = False
        yield utterance
    if empty:
        raise DataError(fault)


def _reader(layout: str) -> Layout:
    name, colon, languages = layout.partition(":")
    if name in LAYOUTS:
        if colon:
            raise DataError(f"corpus layout '{name}' takes no languages, found '{layout}'")
        return LAYOUTS[name]
    if name in PAIR_LAYOUTS:
        if not re.fullmatch(r"[a-z]{3}-[a-z]{3}", languages):
            raise DataError(f"corpus layout '{layout}' must name its languages in ISO 639-3, as in '{name}:eng-deu'")
        read, pair = PAIR_LAYOUTS[name], Pair(*languages.split("-"))
        return lambda root, split: read(root, split, pair)
    known = [*LAYOUTS, *(f"{name}:<source>-<target>" for name in PAIR_LAYOUTS)]
    raise DataError(f"unknown corpus layout '{layout}'; known layouts: {', '.join(known)}")
