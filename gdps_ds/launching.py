"""What all launchers do alike: read paths, tell of a fault in options, files or data in one line, and end with exit code 2."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from gdps_ds.files import expanded

FAULT = 2
"""The exit code."""
PATIENCE = 30.0
"""Seconds after which a rank tells of a fault in the place of rank 0, which does not have it."""


def fault(program: str, error: object) -> int:
    """Tell of ``error`` once, however many ranks meet it; the exit code."""
    if os.environ.get("RANK", "0") != "0":
        # Rank 0 says it. The launcher ends all ranks when it sees the first end, and rank 0 may be slower than this one.
        time.sleep(PATIENCE)
    print(f"{program}: {error}", file=sys.stderr, flush=True)
    return FAULT


def location(text: str) -> Path:
    """The type of an option that is a path, see :func:`expanded`.

    Raises:
        argparse.ArgumentTypeError: a variable or a user in it is not known.
    """
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
