from __future__ import annotations

from tests.end_to_end.conftest import corpus, experiment, finished

__all__ = ["corpus", "experiment", "finished"]
