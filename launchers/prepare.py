"""Turn a downloaded corpus into a checked manifest, or build the demo corpus.

    python launchers/prepare.py --corpus mboshi-french --root corpora/mboshi --split train --out data/mdw
    python launchers/prepare.py --corpus demo --root data/demo             (demo-conflict plants a conflict in it)

The first writes <out>/<split>.jsonl, which experiments read with ``layout: manifest, root: <out>`` and do not
decode again, and <out>/<split>.report.json, which counts every skipped utterance by language and reason, and
those that other splits in <out> hold too. Splits with "train" in their names are for training, with limits of length;
others are kept whole, what has no usable audio included, so that a translation of each can be handed in.
Layouts that serve many languages take a pair of them: --corpus mustc:eng-deu. A test set whose translations are not
published is prepared with --no-references. A manifest of another corpus is only replaced with --replace: give each
corpus an --out of its own.

<out>/<split>.skipped.tsv lists every skipped utterance. Truncated and silent audio is skipped in splits with "train" in
their names, and kept and counted in others, which are there to be translated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from gdps_ds.config import DataConfig
from gdps_ds.data.corpora import LAYOUTS, PAIR_LAYOUTS, read_corpus
from gdps_ds.data.manifest import DataError, audio_roots_of, stream_manifest, write_manifest
from gdps_ds.data.preparation import overlaps, prepared
from gdps_ds.data.preparation_report import report_with_list
from gdps_ds.files import atomic_path, atomic_write, digest_of
from gdps_ds.launching import fault, location

DEMOS = {"demo": False, "demo-conflict": True}
"""Corpora that are made on the spot, and whether two of their languages mean other things by the same words."""

WITHOUT_TEXT = "a test set without translations is prepared with --no-references"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 2 where the data or the options are at fault."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.corpus not in DEMOS and (options.split is None or options.out is None):
        parser.error(f"--corpus {options.corpus} needs --split and --out")
    if options.workers < 0:
        parser.error(f"--workers {options.workers}: must be at least 0")
    try:
        if options.corpus in DEMOS:
            _build_demo(options)
        else:
            _prepare_split(options)
    except (DataError, OSError) as error:
        return fault(parser.prog, error)
    return 0


def _prepare_split(options: argparse.Namespace) -> None:
    manifest, skipped, report_path = (
        options.out / f"{options.split}{suffix}" for suffix in (".jsonl", ".skipped.tsv", ".report.json")
    )
    corpus = {"layout": options.corpus, "root": os.path.realpath(options.root)}
    if not options.replace:
        _refuse_another(manifest, report_path, corpus)
    others = {path.stem: path for path in sorted(options.out.glob("*.jsonl")) if path != manifest}
    with atomic_path(manifest) as partial:
        with report_with_list(skipped) as report:
            kept = prepared(
                read_corpus(options.corpus, options.root, options.split),
                report,
                languages=options.languages,
                min_seconds=options.min_seconds,
                max_seconds=options.max_seconds,
                workers=options.workers,
                progress=sys.stderr.isatty(),
                require_text=not options.no_references,
                too_long=options.too_long,
                training="train" in options.split.lower(),
            )
            count = write_manifest(partial, kept)
        shared = overlaps(stream_manifest(partial), {split: stream_manifest(path) for split, path in others.items()})
        contents = {"languages": report.to_dict(), "overlap": shared, "manifest": digest_of(partial), "corpus": corpus}
        with atomic_write(report_path) as file:
            json.dump(contents, file, indent=2, ensure_ascii=False)
        print(report.summary(shared, skipped))
        report.require(options.languages or report.languages, without_text=WITHOUT_TEXT)
    print(f"wrote {count} utterances to {manifest}")
    print(f"use it as {_corpus_of(options.out, audio_roots_of(manifest, options.root))}")


def _refuse_another(manifest: Path, report: Path, corpus: Mapping[str, str]) -> None:
    """Raise a :class:`DataError` where there is a manifest that was not made of ``corpus``, or that was edited since."""
    if not manifest.is_file():
        return
    try:
        known = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    held = known.get("corpus")
    if held == corpus and known.get("manifest") == digest_of(manifest):
        return
    what = f"corpus '{held['layout']}' of {held['root']}" if held else "utterances that are not known to be of this corpus"
    edited = ", and was edited since" if held == corpus else ""
    raise DataError(f"{manifest} holds {what}{edited}; choose another --out, or replace it with --replace")


def _corpus_of(out: Path, audio_roots: Sequence[str]) -> str:
    """An entry of ``data.corpora`` as YAML."""
    entry = {"layout": "manifest", "root": str(out)} | ({"audio_roots": list(audio_roots)} if audio_roots else {})
    return str(yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True)).strip()


def _build_demo(options: argparse.Namespace) -> None:
    from gdps_ds.data.demo import build_demo_corpus  # needs the speech synthesiser, which nothing else does

    conflict, workers = DEMOS[options.corpus], max(options.workers, 1)
    build_demo_corpus(options.root, conflict=conflict, workers=workers, progress=sys.stderr.isatty())
    print(f"the demo corpus is in {options.root}; use it as {_corpus_of(options.root, ())}")


def _parser() -> argparse.ArgumentParser:
    defaults = DataConfig.model_fields
    parser = argparse.ArgumentParser(prog="prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    layouts = ", ".join([*DEMOS, *LAYOUTS, *(f"{name}:SOURCE-TARGET" for name in PAIR_LAYOUTS)])
    parser.add_argument("--corpus", required=True, metavar="LAYOUT", help=f"layout of the corpus: {layouts}")
    parser.add_argument("--root", required=True, type=location, help="folder of the corpus as it was downloaded")
    parser.add_argument("--split", help="split to prepare, such as train")
    parser.add_argument("--out", type=location, help="folder for the manifest and the report")
    parser.add_argument("--languages", nargs="+", metavar="LANG", help="source languages to keep (default: all)")
    parser.add_argument(
        "--min-seconds", type=float, default=defaults["min_seconds"].default, help="training splits: default: %(default)s"
    )
    parser.add_argument(
        "--max-seconds", type=float, default=defaults["max_seconds"].default, help="training splits: default: %(default)s"
    )
    parser.add_argument("--too-long", choices=["skip", "cut"], default="skip", help="what happens to those (default: skip)")
    parser.add_argument("--workers", type=int, default=0, help="decoding processes; 0 decodes in this one")
    parser.add_argument("--no-references", action="store_true", help="keep utterances without a translation (test sets)")
    parser.add_argument("--replace", action="store_true", help="replace the manifest of another corpus, or one that was edited")
    return parser


if __name__ == "__main__":
    sys.exit(main())
