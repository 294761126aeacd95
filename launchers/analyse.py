"""Plan from the sketches of a run, by the published rule and by ours, and show why: figures and one HTML page.

    python launchers/analyse.py runs/demo
    python launchers/analyse.py --sketches sketches.safetensors --out report plan.groups=2 plan.round_to=8

Needs neither a GPU nor the model. Settings are those of section ``plan`` in the run's config.yaml, where there is one, and
of ``plan.key=value`` overrides. Nothing in the run is changed: everything is written to RUN_DIR/analysis, or --out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError
from safetensors import SafetensorError

from gdps_ds.analysis.sketch import Sketches
from gdps_ds.config import PlanConfig
from gdps_ds.plan import PlanError, SharingPlan
from gdps_ds.reporting.plan_report import Rule, analyse, hidden_widths, write_report

RULES: dict[str, tuple[Rule, ...]] = {"ours": ("ours",), "paper": ("paper",), "both": ("ours", "paper")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 2 where the files or the options are at fault."""
    parser = _parser()
    options = parser.parse_args(arguments)
    overrides = [text for text in options.arguments if "=" in text]
    folders = [Path(text) for text in options.arguments if "=" not in text]
    if len(folders) > 1 or not (folders or options.sketches):
        parser.error("give one RUN_DIR, or --sketches FILE")
    source = options.sketches or folders[0] / "sketches.safetensors"
    run_dir = folders[0] if folders else source.parent
    try:
        sketches = load_sketches(source)
        settings = plan_settings(run_dir / "config.yaml", overrides)
        analysis = analyse(sketches, settings, RULES[options.rule], hidden_widths(sketches, options.hidden))
        applied = run_dir / "plan.json"
        plan = SharingPlan.load(applied) if applied.is_file() else None
        report = write_report(analysis, options.out or run_dir / "analysis", run_dir.resolve().name, plan)
    except (ValueError, PlanError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    for rule, plan in analysis.plans.items():
        print(f"rule {rule}\n{plan.summary()}\n")
    print(f"wrote {report}")
    return 0


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


def plan_settings(path: Path, overrides: Sequence[str]) -> PlanConfig:
    """Section ``plan`` of a run's configuration, or the defaults, with overrides of its keys.

    Raises:
        ValueError: an override is not of the form plan.key=value, or a value does not fit.
    """
    tree = dict((yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("plan") or {}) if path.is_file() else {}
    for override in overrides:
        key, _, text = override.partition("=")
        if not key.startswith("plan."):
            raise ValueError(f"override '{override}' is not of the form plan.key=value")
        tree[key.removeprefix("plan.")] = yaml.safe_load(text)
    try:
        return PlanConfig.model_validate(tree)
    except ValidationError as error:
        faults = [
            f"plan.{'.'.join(map(str, fault['loc']))}: {fault['msg']} (found {fault['input']!r})" for fault in error.errors()
        ]
        raise ValueError("\n".join(faults)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="analyse", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", metavar="RUN_DIR | plan.key=value", help="run directory; overrides")
    parser.add_argument("--sketches", type=Path, help="sketch file (default: RUN_DIR/sketches.safetensors)")
    parser.add_argument("--rule", choices=RULES, default="both", help="rule to plan by (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder to write to (default: RUN_DIR/analysis)")
    parser.add_argument("--hidden", type=int, help="hidden neurons of a block, where the sketches do not tell")
    return parser


if __name__ == "__main__":
    sys.exit(main())
