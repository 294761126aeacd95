from __future__ import annotations

from tests.unit.reporting.runs import finished, run

__all__ = ["finished", "run"]
