"""The report of a run: one self-contained HTML page, written anew from what the run directory holds.

    python launchers/report.py runs/demo

A run writes it at its end; this makes it again, or while the run is still going on. RUN_DIR/report.html is the page,
RUN_DIR/report/ holds its figures as PNG and SVG. Scores of ``launchers/evaluate.py`` (RUN_DIR/evaluation), such as COMET, are
taken over where there are any.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gdps_ds.config_file import ConfigError, read_sections
from gdps_ds.launching import fault, location


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 2 where there is no run."""
    parser = _parser()
    folder: Path = parser.parse_args(arguments).run_dir
    if not (folder / "config.yaml").is_file():
        return fault(parser.prog, f"{folder} is no run directory: it has no config.yaml")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        read_sections(folder / "config.yaml")
        # Imported after the options have been checked, because it takes seconds.
        from gdps_ds.reporting.run_report import write_report

        path, _ = write_report(folder)
    except (ConfigError, OSError) as error:
        return fault(parser.prog, error)
    print(f"wrote {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=location, metavar="RUN_DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
