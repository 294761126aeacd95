"""launchers/compare.py: killed in its second arm, it goes on; what is finished stays as it is."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launchers.compare import main
from tests.end_to_end.runs import metrics, read_until
from tests.launch import PATIENCE, ROOT, background, free_port

pytestmark = pytest.mark.launcher

ARMS = ("uniform", "wide", "pcgrad")


def arguments(experiment: Path, out: Path) -> list[str]:
    return [
        *("--config", str(experiment), "--seeds", "1", "--launcher-args", f"--num_gpus 2 --master_port {free_port()}"),
        *(f"run.dir={out}", f"run.arms=[{','.join(ARMS)}]", "deepspeed=ds_configs/zero0.json"),
        *("decode.resamples=20", "decode.trials=20"),
    ]


def start(experiment: Path, out: Path) -> subprocess.Popen[str]:
    return background(sys.executable, ROOT / "launchers" / "compare.py", *arguments(experiment, out))


def test_a_killed_comparison_goes_on(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seed = tmp_path / "out", tmp_path / "out" / "seed-1"
    killed = start(experiment, out)
    read_until(killed, "wide:")
    read_until(killed, "| 3/4")
    run = int(Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text())
    for group in (killed.pid, run):
        os.killpg(group, signal.SIGKILL)
    killed.communicate(timeout=PATIENCE)
    scored = (seed / "scores" / "uniform.json").stat().st_mtime_ns
    again = start(experiment, out)
    output = again.communicate(timeout=PATIENCE)[0]
    assert again.returncode == 0, output[-3000:]
    # After update 2 of 4, or a later one where the machine was faster than the kill.
    assert re.search(r"wide: going on after update [234] of 4", output)
    assert (seed / "scores" / "uniform.json").stat().st_mtime_ns == scored

    first = {arm: next(line["loss"]["all"] for line in metrics(seed, arm) if line["update"] == 1) for arm in ARMS}
    assert first == pytest.approx(dict.fromkeys(ARMS, first["uniform"]), abs=1e-5), "the same model, data and dropout"
    tree = json.loads((out / "comparison.json").read_text())
    assert set(tree["scores"]) == set(ARMS)
    added = {arm: tree["arms"][arm]["1"]["parameters"] - tree["arms"]["uniform"]["1"]["parameters"] for arm in ARMS}
    assert added == {"uniform": 0, "wide": 24 * 33, "pcgrad": 0}, "half of 48 neurons would be private to two groups"
    assert (out / "comparison.html").is_file() and (out / "arms.png").is_file()

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing is started any more
    assert main(arguments(experiment, out)) == 0
    assert "Difference from uniform" in capsys.readouterr().out
    assert main([*arguments(experiment, out), "train.clip_norm=9"]) == 2
    assert "train.clip_norm: 9.0 now, 1.0 in config.yaml" in capsys.readouterr().err
