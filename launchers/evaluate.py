"""Score systems on the same utterances and test their differences; translate first what is a checkpoint.

    python launchers/evaluate.py runs/demo                                    # all arms of a run
    deepspeed launchers/evaluate.py runs/demo zero-shot=facebook/hf-seamless-m4t-medium --comet decode.beams=5
    python launchers/evaluate.py base=a.txt ours=b.jsonl --references ref.txt --language bem --out scores

A SYSTEM is a run directory (each arm is a system; its checkpoint translates where the run has not), a file of translations
(.jsonl as runs write them, else a line each), or a SeamlessM4T checkpoint: a folder of launchers/export.py, or anything plain
that transformers reads, also from the hub. The test set is --manifest or --references, else
that of the first run directory, else what the files of translations hold. Settings are section ``decode`` of the first run's
config.yaml, where there is one, and ``decode.key=value`` overrides; translations that are there already are not made again,
and where they were made with other settings, the scores say so. --out gets scores.txt, scores.json, scores.tex and hypotheses/
of checkpoints.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdps_ds.config import DecodeConfig
from gdps_ds.config_file import ConfigError, load_decoding
from gdps_ds.data.manifest import DataError, Measured, Utterance
from gdps_ds.data.text import has_text
from gdps_ds.files import expanded
from gdps_ds.launching import fault, location
from gdps_ds.plan import PlanError, SharingPlan

if TYPE_CHECKING:
    from gdps_ds.distributed.comm import Communicator
    from gdps_ds.evaluation.systems import System


RESOLVED = "config.yaml"
"""A run directory has it."""


@dataclass(frozen=True)
class Spec:
    """A system as it was asked for: an arm of the run directory ``path``, or else a file or a checkpoint."""

    name: str
    path: str
    arm: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 2 where the data or the options are at fault."""
    # One message a fault, not one a rank and library: set before the libraries that read it are imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    overrides = [text for text in options.arguments if text.startswith("decode.") and "=" in text]
    texts = [text for text in options.arguments if text not in overrides]
    if not texts:
        parser.error("give at least one SYSTEM")
    if len(options.references) > 1:
        named = ", ".join(map(str, options.references))
        parser.error(
            f"--references takes one file, for an utterance has one reference; found {named} (SYSTEMs go before options)"
        )
    try:
        specs = [spec for text in texts for spec in read_specs(text, options.arm)]
        runs = [Path(spec.path) for spec in specs if spec.arm is not None]
        settings = load_decoding(runs[0] / RESOLVED if runs else None, overrides)
        out = options.out or (runs[0] / "evaluation" if runs else None)
        if out is None:
            raise ValueError(f"--out is needed where no SYSTEM is a run directory (with a {RESOLVED}): {', '.join(texts)}")
    except ValueError as error:
        return fault("evaluate", error)
    return _run(options, settings, specs, runs, out)


def _run(options: argparse.Namespace, settings: DecodeConfig, specs: Sequence[Spec], runs: Sequence[Path], out: Path) -> int:
    # Imported after the options have been checked, because they take seconds.
    import deepspeed.utils

    from gdps_ds.distributed.comm import Communicator, MeetingError, RankZeroError
    from gdps_ds.distributed.saved_state import ForeignStateError
    from gdps_ds.evaluation.comet import comet_signature, load_comet
    from gdps_ds.evaluation.comparison import compare
    from gdps_ds.evaluation.metrics import check_tokenizers
    from gdps_ds.evaluation.replica import measured
    from gdps_ds.evaluation.systems import aligned
    from gdps_ds.reporting.score_tables import write_tables
    from gdps_ds.training.checkpoint import CheckpointError
    from gdps_ds.training.run_lock import hold

    deepspeed.utils.logger.setLevel("WARNING")
    try:
        comm = Communicator.start(options.local_rank, engine=False)
    except MeetingError as error:
        return fault("evaluate", error)
    try:
        comm.from_main(lambda: hold(out, ".evaluate.lock", "writes scores into --out", "--out"))
        test = comm.from_main(lambda: read_test_set(options, runs))
        comm.from_main(lambda: check_tokenizers(sorted({each.target_lang for each in test}), settings))
        sources = comm.from_main(lambda: read_sources(test, settings, options.transcripts) if options.comet else {})
        groups = comm.from_main(lambda: read_groups(options.plan, runs))
        # Before hours of decoding: a COMET model that is missing should be missed now.
        comet: list[Any] = []
        comm.from_main(lambda: comet.append(load_comet(settings.comet_model)) if options.comet else None)
        if any(each.audio for each in test) and not all(translations_of(spec).is_file() for spec in specs):
            test = comm.from_main(lambda: measured(test))
        systems = [load_system(spec, test, settings, comm, out) for spec in specs]
        if comm.is_main:
            systems = aligned(systems)
            segments = comet_segments(comet[0], systems, sources, settings, comm.device) if comet else None
            signature = comet_signature(settings.comet_model, settings.comet_source, settings.normaliser)
            evaluation = compare(systems, settings, groups, segments, signature)
            print(f"{write_tables(evaluation, out)}\n\nwrote {out}/scores.txt, scores.json and scores.tex", flush=True)
    except RankZeroError as error:
        return fault("evaluate", error.__cause__ if isinstance(error.__cause__, DataError) else error)
    except (DataError, CheckpointError, ForeignStateError, ConfigError, PlanError, OSError) as error:
        return fault("evaluate", error)
    finally:
        Communicator.stop()
    return 0


def load_system(spec: Spec, test: Sequence[Utterance], settings: DecodeConfig, comm: Communicator, out: Path) -> System:
    """Read or make the translations of one system. Collective.

    Raises:
        RankZeroError: a file cannot be read, or does not fit the test set.
        DataError: the test set cannot be translated.
    """
    from gdps_ds.evaluation.systems import System, decoding_of, read_system, translations_of_lines, with_references

    path = translations_of(spec)
    if not path.is_file():
        return System(spec.name, tuple(translate_checkpoint(spec, test, settings, comm, out)), decoding_of(settings))

    def read() -> System:
        if path.suffix == ".jsonl":
            found = read_system(spec.name, path)
            if not test:
                return found
            return replace(found, translations=tuple(with_references(found.translations, test, spec.name)))
        if not test:
            raise DataError(f"{path} holds lines without ids or references; give --references or --manifest")
        return System(spec.name, tuple(translations_of_lines(path, test)))

    return comm.from_main(read)


def translations_of(spec: Spec) -> Path:
    """The file of a system's translations; where there is none, it is a checkpoint that makes them."""
    return Path(spec.path) if spec.arm is None else Path(spec.path) / "hypotheses" / f"{spec.arm}.jsonl"


def translate_checkpoint(
    spec: Spec, test: Sequence[Utterance], settings: DecodeConfig, comm: Communicator, out: Path
) -> list[Any]:
    """Translate the test set with a checkpoint, and keep the translations in ``out/hypotheses``. Collective."""
    from gdps_ds.evaluation.replica import load_checkpoint, translate_with
    from gdps_ds.evaluation.systems import write_translations
    from gdps_ds.reporting.progress import Progress
    from gdps_ds.training.trained import checkpoints_of, load_trained

    if spec.arm is not None:
        checkpoints_of(Path(spec.path), spec.arm)  # says which arms there are
    if not test or not test[0].audio:
        raise DataError(f"{spec.path} is no file, so it must be translated with as a checkpoint, which needs audio: --manifest")
    trained = load_checkpoint(spec.path, comm) if spec.arm is None else load_trained(Path(spec.path), spec.arm)
    show = comm.is_main and sys.stderr.isatty()
    with Progress(f"translate {spec.name}", len(test), enabled=show, ranks=comm.world_size) as bar:

        def before_batch(batch: Any) -> None:
            bar.saw(batch)
            bar.step(count=len(batch) * comm.world_size)

        rows = translate_with(trained, test, comm, settings, before_batch)
    comm.from_main(lambda: write_translations(out / "hypotheses" / f"{spec.name}.jsonl", rows, settings))
    return rows


def comet_segments(
    model: Any, systems: Sequence[System], sources: Mapping[str, str], settings: DecodeConfig, device: Any
) -> dict[str, Any]:
    """COMET's scores of aligned systems' translations, NaN without a reference; a source that ``sources`` lacks is empty.

    Raises:
        DataError: no utterance has a reference.
    """
    import numpy as np

    from gdps_ds.evaluation.comet import comet_scores
    from gdps_ds.evaluation.comparison import scored_pairs_of

    places = sorted(index for pair in scored_pairs_of(systems).values() for index in pair.indices)
    found = {}
    for system in systems:
        rows = [system.translations[index] for index in places]
        found[system.name] = np.full(len(system.translations), np.nan)
        found[system.name][places] = comet_scores(
            model,
            [sources.get(row.id, "") for row in rows],
            [row.hypothesis for row in rows],
            [str(row.reference) for row in rows],
            normaliser=settings.normaliser,
            batch=settings.comet_batch,
            device=device,
        )
    return found


def is_run(path: Path) -> bool:
    return (path / RESOLVED).is_file()


def read_specs(text: str, arms: Sequence[str]) -> list[Spec]:
    """``[NAME=]PATH`` as systems: one for each arm of a run directory.

    Raises:
        ValueError: a run without arms, or a path in a home folder that there is not.
    """
    found = re.fullmatch(r"([\w.+-]+)=(.+)", text)
    name, path = (found[1], expanded(found[2])) if found else ("", expanded(text))
    if not is_run(Path(path)):
        return [Spec(name or (Path(path).stem if Path(path).is_file() else Path(path).name), path)]
    arms = arms or sorted(file.stem for file in (Path(path) / "hypotheses").glob("*.jsonl"))
    if not arms:
        raise ValueError(f"{path}: the run has not translated its test set yet; name an arm that is trained (--arm)")
    return [Spec(f"{name}-{arm}" if name else arm, path, arm) for arm in arms]


def read_test_set(options: argparse.Namespace, runs: Sequence[Path]) -> list[Utterance]:
    """What all systems must have translated; empty where the files of translations say it themselves."""
    from gdps_ds.data.corpora.records import manifest_rows
    from gdps_ds.data.table import UtteranceTable
    from gdps_ds.evaluation.systems import utterances_of_references

    prepared = [run / "data" / "test.arrow" for run in runs[:1]]
    found: Iterable[Utterance] = ()
    if options.manifest is not None:
        found = manifest_rows(options.manifest)
    elif options.references:
        found = utterances_of_references(options.references[0], options.language)
    elif prepared and prepared[0].is_file():
        found = (Measured(**asdict(each)) for each in UtteranceTable.open(prepared[0]))
    return list(found)


def read_sources(test: Sequence[Utterance], settings: DecodeConfig, transcripts: Path | None) -> dict[str, str]:
    """What COMET reads as the source of each utterance, by id; an empty source is left out.

    Raises:
        DataError: a source is missing.
    """
    from gdps_ds.evaluation.systems import translations_of_lines

    if settings.comet_source == "empty":
        return {}
    if not test:
        raise DataError(
            f"decode.comet_source is {settings.comet_source}, which needs a test set: --manifest; or set it to empty"
        )
    if settings.comet_source == "transcript":
        if transcripts is None:
            raise DataError("decode.comet_source is transcript: give a file of lines, one an utterance, by --transcripts")
        return {row.id: row.hypothesis for row in translations_of_lines(transcripts, test)}
    missing = [each.id for each in test if not has_text(each.source_text)]
    if missing:
        raise DataError(
            f"decode.comet_source is text, but {len(missing)} utterances have no source_text, such as {missing[0]}; set it to "
            "empty, or to transcript with --transcripts"
        )
    return {each.id: str(each.source_text) for each in test}


def read_groups(path: Path | None, runs: Sequence[Path]) -> tuple[tuple[str, ...], ...]:
    """Language groups of the plan that is given, else of the first run's, else none."""
    applied = [run / "plan.json" for run in runs if (run / "plan.json").is_file()]
    if path is None and not applied:
        return ()
    try:
        return SharingPlan.load(path or applied[0]).groups
    except (PlanError, OSError) as error:
        raise DataError(f"--plan: {error}") from None


class Once(argparse.Action):
    """An option that has one value: a second one is an error, where argparse would forget the first."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice: {getattr(namespace, self.dest)}, {values}")
        setattr(namespace, self.dest, values)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", metavar="[NAME=]SYSTEM | decode.key=value", help="systems; overrides")
    parser.add_argument("--arm", action="append", default=[], help="arm of the run directories; may be repeated (default: all)")
    test = parser.add_mutually_exclusive_group()
    test.add_argument(
        "--manifest", type=location, action=Once, help="test set: a manifest (default: that of the first run directory)"
    )
    references = "test set without audio: a file with a reference a line"
    test.add_argument("--references", type=location, nargs="+", action="extend", default=[], metavar="FILE", help=references)
    parser.add_argument(
        "--language",
        default="und",
        metavar="SOURCE[-TARGET]",
        help="source language of --references, or both (que-spa): the target decides BLEU's tokenizer (default: %(default)s)",
    )
    parser.add_argument(
        "--plan", type=location, action=Once, help="plan.json whose language groups get a score (default: the first run's)"
    )
    parser.add_argument("--comet", action="store_true", help="score COMET too (decode.comet_model, comet_source, comet_batch)")
    parser.add_argument(
        "--transcripts", type=location, action=Once, help="source lines for COMET, in the order of the test set"
    )
    parser.add_argument("--out", type=location, action=Once, help="folder to write to (default: RUN_DIR/evaluation)")
    parser.add_argument("--local_rank", type=int, default=int(os.environ.get("LOCAL_RANK", "0")), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
