"""Plan from the sketches of a run, by the published rule and by ours, and show why: figures and one HTML page.

    python launchers/analyse.py runs/demo
    python launchers/analyse.py --sketches sketches.safetensors --out report plan.groups=2 plan.round_to=8
    python launchers/analyse.py runs/seed1 runs/seed2 runs/seed3 --out stability

Needs neither a GPU nor the model. Settings are those of section ``plan`` in the (first) run's config.yaml, where there is
one, and of ``plan.key=value`` overrides. Nothing in the run is changed: everything is written to RUN_DIR/analysis, or --out.
Several runs are compared: how their plans agree, in one page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError

from gdps_ds.analysis.sketch import Sketches
from gdps_ds.config import PlanConfig
from gdps_ds.config_file import load_section
from gdps_ds.launching import fault, location
from gdps_ds.plan import PlanError, SharingPlan
from gdps_ds.reporting.plan_comparison import write_comparison
from gdps_ds.reporting.plan_report import Rule, analyse, write_report

RULES: dict[str, tuple[Rule, ...]] = {"ours": ("ours",), "paper": ("paper",), "both": ("ours", "paper")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 2 where the files or the options are at fault."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    overrides = [text for text in options.arguments if "=" in text]
    try:
        folders = [location(text) for text in options.arguments if "=" not in text]
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    if len(folders) > 1 and (options.sketches or not options.out):
        parser.error("several RUN_DIRs are compared: give --out FOLDER, and no --sketches")
    if not (folders or options.sketches):
        parser.error("give a RUN_DIR, several of them, or --sketches FILE")
    run_dir = folders[0] if folders else options.sketches.parent
    try:
        settings = load_section("plan", PlanConfig, run_dir / "config.yaml", overrides)
        if len(folders) > 1:
            report = _compare(folders, settings, RULES[options.rule], options.out)
        else:
            source = options.sketches or run_dir / "sketches.safetensors"
            report = _report(source, run_dir, settings, RULES[options.rule], options.out or run_dir / "analysis")
    except (ValueError, PlanError, OSError) as error:
        return fault(parser.prog, error)
    print(f"wrote {report}")
    return 0


def _report(source: Path, run_dir: Path, settings: PlanConfig, rules: Sequence[Rule], out: Path) -> Path:
    """Plan from one sketch file; the path of the report."""
    analysis = analyse(load_sketches(source), settings, rules)
    applied = run_dir / "plan.json"
    report = write_report(analysis, out, run_dir.resolve().name, SharingPlan.load(applied) if applied.is_file() else None)
    for rule, plan in analysis.plans.items():
        print(f"rule {rule}\n{plan.summary()}\n")
    return report


def _compare(folders: Sequence[Path], settings: PlanConfig, rules: Sequence[Rule], out: Path) -> Path:
    """Plan from the sketches of every run by the same settings; the path of the page."""
    runs = {str(folder): analyse(load_sketches(folder / "sketches.safetensors"), settings, rules) for folder in folders}
    return write_comparison(runs, out)


def load_sketches(path: Path) -> Sketches:
    """Read a sketch file.

    Raises:
        ValueError: there is none, or it is something else; names the file.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}: the run has not mined yet, or give the file by --sketches")
    try:
        return Sketches.load(path)
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no sketch file (sketches.safetensors of a run): {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="analyse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", metavar="RUN_DIR | plan.key=value", help="run directories; overrides")
    parser.add_argument("--sketches", type=location, help="sketch file (default: RUN_DIR/sketches.safetensors)")
    parser.add_argument("--rule", choices=RULES, default="both", help="rule to plan by (default: %(default)s)")
    parser.add_argument("--out", type=location, help="folder to write to (default: RUN_DIR/analysis)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
