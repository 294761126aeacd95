"""Turn a downloaded corpus into a checked manifest, or build the demo corpus.

    python launchers/prepare.py --corpus mboshi-french --root corpora/mboshi --split train --out data/mdw
    python launchers/prepare.py --corpus demo --root data/demo             (demo-conflict plants a conflict in it)

The first writes <out>/<split>.jsonl, which experiments read with ``layout: manifest, root: <out>`` and do not
decode again, and <out>/<split>.report.json, which counts every skipped utterance by language and reason, and
those that other splits in <out> hold too. Splits for training have limits of length, and truncated and silent audio is
skipped; others are kept whole, what has no usable audio included, so that a translation of each can be handed in. The name of
a split says what it is for by one of its words (train, training, tr); else --for does. What a split that was kept whole holds
with a note, training skips all the same.
Layouts that serve many languages take a pair of them: --corpus mustc:eng-deu. A test set whose translations are not
published is prepared with --no-references. A manifest of another corpus is only replaced with --replace: give each
corpus an --out of its own.

<out>/<split>.skipped.tsv lists every skipped utterance, and <out>/<split>.notes.tsv those that are kept with a note.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gdps_ds.config import DataConfig
from gdps_ds.data.corpora import LAYOUTS, PAIR_LAYOUTS, read_corpus
from gdps_ds.data.manifest import DataError, audio_roots_of, stream_manifest, write_manifest
from gdps_ds.data.preparation import overlaps, prepared
from gdps_ds.data.preparation_report import new_list, report_with_list
from gdps_ds.files import atomic_path, atomic_write, digest_of
from gdps_ds.launching import fault, location

DEMOS = {"demo": False, "demo-conflict": True}
"""Corpora that are made on the spot, and whether two of their languages mean other things by the same words."""

TRAINING, EVALUATION = "training", "evaluation"
TRAINING_WORDS = frozenset({"train", "training", "tr"})
EVALUATION_WORDS = frozenset({"dev", "development", "valid", "validation", "test", "tst", "eval", "evaluation"})
"""Words in the names of splits that say what they are for."""
OF_MANIFEST = ("manifest", "notes", "corpus", "for")
"""Keys of a report that are of the manifest that is there, also where it is an older one because preparing anew has failed."""

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
    manifest, skipped, notes, report_path = (
        options.out / f"{options.split}{suffix}" for suffix in (".jsonl", ".skipped.tsv", ".notes.tsv", ".report.json")
    )
    purpose = options.purpose or purpose_of(options.split)
    corpus = {"layout": options.corpus, "root": os.path.realpath(options.root)}
    if not options.replace:
        _refuse_another(manifest, report_path, corpus)
    others = {path.stem: path for path in sorted(options.out.glob("*.jsonl")) if path != manifest}
    with atomic_path(manifest) as partial, new_list(notes) as noted:
        with report_with_list(skipped, noted) as report:
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
                training=purpose == TRAINING,
            )
            count = write_manifest(partial, kept)
        shared = overlaps(stream_manifest(partial), {split: stream_manifest(path) for split, path in others.items()})
        contents: dict[str, Any] = {"languages": report.to_dict(), "overlap": shared}
        print(report.summary(shared, skipped))
        try:
            report.require(options.languages or report.languages, without_text=WITHOUT_TEXT)
        except DataError:
            held = _read_report(report_path)
            _write_report(report_path, contents | {key: held[key] for key in OF_MANIFEST if key in held})
            raise
    digests = {"manifest": digest_of(manifest), "notes": digest_of(notes)}
    _write_report(report_path, contents | digests | {"corpus": corpus, "for": purpose or EVALUATION})
    if any(part.notes for part in report.languages.values()):
        print(f"every utterance that is kept with a note is listed in {notes}")
    if purpose is None:
        print(
            f"split '{options.split}' does not say what it is for, so it was kept whole, as for evaluation (--for); a run that "
            "trains with it skips what does not suit training"
        )
    print(f"wrote {count} utterances to {manifest}")
    print(f"use it as {_corpus_of(options.out, audio_roots_of(manifest, options.root))}")


def purpose_of(split: str) -> str | None:
    """What a split is for by the words of its name; None where they do not say, or say both."""
    words = set(re.findall(r"[^\W\d_]+", split.lower()))
    training, evaluation = bool(words & TRAINING_WORDS), bool(words & EVALUATION_WORDS)
    return None if training == evaluation else TRAINING if training else EVALUATION


def _read_report(path: Path) -> dict[str, Any]:
    """Empty where there is none, or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_report(path: Path, contents: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        json.dump(contents, file, indent=2, ensure_ascii=False)


def _refuse_another(manifest: Path, report: Path, corpus: Mapping[str, str]) -> None:
    """Raise a :class:`DataError` where there is a manifest that was not made of ``corpus``, or that was edited since."""
    if not manifest.is_file():
        return
    known = _read_report(report)
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
    parser.add_argument(
        "--for", dest="purpose", choices=[TRAINING, EVALUATION], help="what the split is for (default: as its name says)"
    )
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
