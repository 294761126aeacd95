from __future__ import annotations

from pathlib import Path

import pytest

from gdps_ds.config import Config
from tests.unit.reporting.test_tracking import config


@pytest.fixture
def run_config(tmp_path: Path) -> Config:
    (tmp_path / "zero.json").write_text("{}")
    return config(tmp_path / "run").model_copy(update={"deepspeed": str(tmp_path / "zero.json")})
