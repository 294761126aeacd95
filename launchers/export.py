"""Turn a trained arm into checkpoints that others can use.

    python launchers/export.py runs/demo                        # one plain transformers checkpoint for each language group
    python launchers/export.py runs/demo --arm uniform          # one for all languages
    python launchers/export.py runs/demo --average 5 --whole    # mean of the last five checkpoints; lanes kept, one folder

A group's checkpoint needs none of this code, and translates its languages as the run did, by the run's decode settings:

    processor, model = AutoProcessor.from_pretrained(FOLDER), SeamlessM4TForSpeechToText.from_pretrained(FOLDER).eval()
    ids = model.generate(**processor(audio=samples, sampling_rate=16_000, return_tensors="pt"), tgt_lang="eng")
    print(processor.batch_decode(ids, skip_special_tokens=True))

One utterance at a time: in a padded batch, transformers lets the adaptor's convolutions read padded frames, which training here
does not. Each export is read again and compared before it stands. --whole keeps the lanes for launchers/evaluate.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from gdps_ds.config import DecodeConfig
from gdps_ds.config_file import ConfigError
from gdps_ds.data.manifest import DataError
from gdps_ds.distributed.saved_state import ForeignStateError
from gdps_ds.evaluation.decoding import generation_options
from gdps_ds.files import atomic_write, permit
from gdps_ds.launching import fault, location
from gdps_ds.model.export import ExportError, TrainedModel, as_group, save_plain, save_whole
from gdps_ds.model.pretrained import UnfitCheckpointError
from gdps_ds.plan import PlanError
from gdps_ds.reporting.run_metrics import UNIFIED
from gdps_ds.training.checkpoint import CheckpointError
from gdps_ds.training.trained import checkpoints_of, load_trained, run_config

FAULTS = (
    CheckpointError, ForeignStateError, UnfitCheckpointError, DataError, ConfigError, PlanError, ExportError, OSError,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 2 where the run or the options are at fault."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.average < 1:
        parser.error(f"--average {options.average}: must be at least 1")
    out = options.out or options.run_dir / "export" / options.arm
    if out.exists() and any(out.iterdir()):
        return fault(parser.prog, f"{out} is not empty; choose another --out or remove it")
    try:
        # By its name, as a run that goes on writes newer ones.
        config, last = run_config(options.run_dir), checkpoints_of(options.run_dir, options.arm, options.checkpoint)[-1]
        trained = load_trained(options.run_dir, options.arm, last.folder.name, options.average)
        updates = (config.train.unify if options.arm == UNIFIED else config.train.specialise).updates
        print(f"{options.arm} after update {last.progress.update} of {updates}")
        note = {"run": options.run_dir.name, "arm": options.arm, "checkpoint": last.folder.name, "average": options.average}
        for folder, languages in export(trained, out, config.decode, whole=options.whole):
            for path in filter(Path.is_file, folder.iterdir()):
                permit(path)
            with atomic_write(folder / "export.json") as file:
                json.dump(note | {"plan": trained.plan.digest, "languages": languages}, file, indent=2)
            print(f"{', '.join(languages)}: {folder}")
    except FAULTS as error:
        return fault(parser.prog, error)
    return 0


def export(trained: TrainedModel, out: Path, decode: DecodeConfig, *, whole: bool) -> Iterator[tuple[Path, Sequence[str]]]:
    """Write the checkpoints; gives each folder with its source languages. Plain ones translate as ``decode`` says."""
    if whole:
        save_whole(trained, out)
        yield out, trained.languages
    elif trained.plan.is_uniform:
        save_plain(trained.module, trained.tokenizer, out, generation_options(decode))
        yield out, trained.languages
    elif trained.plan.width == "added":
        raise DataError("the plan adds neurons that no plain checkpoint has room for (plan.width: added); give --whole")
    else:
        for index, group in enumerate(trained.plan.groups):
            folder = out / "-".join(group)
            with as_group(trained.module, trained.plan, index) as module:
                save_plain(module, trained.tokenizer, folder, generation_options(decode))
            yield folder, group


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=location, metavar="RUN_DIR")
    parser.add_argument("--arm", default="gdps", help="an arm of run.arms, or unified (default: %(default)s)")
    parser.add_argument("--checkpoint", help="latest, best or a name such as update-000400 (default: what run.use says)")
    parser.add_argument("--average", type=int, default=1, metavar="N", help="mean of the newest N checkpoints up to that one")
    parser.add_argument("--whole", action="store_true", help="one checkpoint with its lanes instead of one a group")
    parser.add_argument("--out", type=location, help="folder to write to (default: RUN_DIR/export/ARM)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
