"""What is given to collectives in each phase, in bytes, beside the formulas of the README ("What is sent").

The demo's model goes through all phases with 1, 2 and 4 processes. A ratio is bytes counted / bytes of the formula; between
processes, another one than 1 is an error. A single process sends nothing: it calls only some of DeepSpeed's collectives, and
none of ours. ``build/traffic.json`` gets all counts, by the labels of ``traffic_worker.py``.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gdps_ds.data.demo import build_demo_corpus
from tests.benchmarks.demo_run import metrics_of_run
from tests.launch import ROOT

# The demo's matrices are below the 10,000 parameters that zero3.json leaves on every rank; SeamlessM4T's are not.
WHOLE = {"stage": 3, "stage3_param_persistence_threshold": 0}
SETTINGS = {
    "zero0": {"stage": 0},
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": WHOLE,
    "zero3_no_reuse": WHOLE | {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0},
}
JOBS = [(stage, ranks) for ranks in (1, 2, 4) for stage in ("zero0", "zero2", "zero3")]
JOBS += [("zero1", 2), ("zero3_no_reuse", 2)]
UPDATES, LOG_EVERY, MICRO_BATCHES, MINED = 4, 2, 4, 2
LANGUAGES, FOLDS, SKETCH, HIDDEN, SITES, GROUPS = 4, 10, 64, 256, 4, 2
"""Of the demo: L, F, k, h and S of the README, and G, the groups that one of the S blocks is split for."""
TOLERANCE = 0.002
"""Formulas leave out norms, flags, utterance counts, padding and the one bias that private lanes do not have."""


@dataclass(frozen=True)
class Job:
    """The counts of one job, the same on every rank.

    Attributes:
        calls: labels, outermost first -> collective -> (calls, bytes).
        sizes: before and after the split: part of the model -> parameters.
    """

    stage: str
    ranks: int
    calls: dict[str, dict[str, tuple[int, int]]]
    sizes: tuple[dict[str, int], dict[str, int]]

    def total(self, *labels: str) -> tuple[int, int]:
        """(Calls, bytes) directly below these labels."""
        counts = [count for label in labels for count in self.calls.get(label, {}).values()]
        return sum(calls for calls, _ in counts), sum(size for _, size in counts)

    @cached_property
    def formulas(self) -> dict[str, tuple[tuple[str, ...], float]]:
        """Phase -> its labels, and the bytes that the README says are sent there."""
        old, new = self.sizes
        weights, micro_batches, block = 4 * old["model"], MICRO_BATCHES // self.ranks, old["candidates"] / SITES
        update = {
            "zero0": weights,
            "zero1": 2 * weights,
            "zero2": (micro_batches + 1) * weights,
            "zero3": micro_batches * 2 * weights,
            "zero3_no_reuse": micro_batches * (3 * weights + 8 * old["embedding"]),
        }[self.stage]
        partitioned = self.stage.startswith("zero3")
        moved = 12.0 * (old["candidates"] + GROUPS * block) if self.stage != "zero0" else 0.0
        if partitioned:  # beside the state, the block itself: gathered to be split, and broadcast when it is
            moved = 12 * (1 + GROUPS) * block + 4 * (new["model"] - old["model"] + block)
            moved += 4 * block if self.stage == "zero3_no_reuse" else 0.0
        core, neurons = 8 * SITES * LANGUAGES * FOLDS * SKETCH**2, 8 * LANGUAGES * SKETCH * HIDDEN
        line = 24 * LANGUAGES + 16 + 29 * self.ranks
        return {
            "start": (("start",), (3 if partitioned else 1) * weights),
            "update": ((f"train/update {UPDATES - 1}",), update),  # when ZeRO-3 has learnt in which order it gathers
            "update, ours": (("train",), 16 * UPDATES),
            "line": (("train/line",), line * UPDATES / LOG_EVERY),
            "mining": (("plan/mine/sketches",), core + neurons),
            "split": (("split", "split/start"), moved + 4 * new["model"]),
        }

    def ratio(self, phase: str) -> float:
        """Bytes counted / bytes of the formula.

        Raises:
            RuntimeError: it is not 1, though there are ranks to send to.
        """
        labels, formula = self.formulas[phase]
        counted = self.total(*labels)[1]
        if self.ranks > 1 and abs(counted / formula - 1) > TOLERANCE:
            where = f"{self.stage} with {self.ranks} processes, {phase}"
            raise RuntimeError(f"{where}: {counted} bytes counted, but {formula:.0f} by the README ('What is sent')")
        return counted / formula

    @property
    def rest(self) -> int:
        """Bytes that no formula tells of."""
        told = {label for labels, _ in self.formulas.values() for label in labels}
        return self.total(*(label for label in self.calls if label not in told and not label.startswith("train/update")))[1]


def run(folder: Path, corpus: Path, stage: str, ranks: int) -> Job:
    """All phases, a few updates each.

    Raises:
        RuntimeError: the job failed, or its ranks did not call the same collectives.
    """
    settings, out = folder / f"{stage}.json", folder / f"{stage}-{ranks}"
    settings.write_text(json.dumps({"zero_optimization": SETTINGS[stage]}))
    others = {"deepspeed": settings, "run.arms": "[gdps]", "train.micro_batches": MICRO_BATCHES, "decode.beams": 1}
    others |= {"mine.updates": MINED, "mine.neurons": "chosen", "mine.again": "false", "track.report": "false"}
    program = "tests/benchmarks/traffic_worker.py"
    metrics_of_run(out, corpus, updates=UPDATES, log_every=LOG_EVERY, program=program, ranks=ranks, **others)
    first, *rest = [json.loads((out / f"traffic.{rank}.json").read_text()) for rank in range(ranks)]
    if any(each != first for each in rest):
        raise RuntimeError(f"{stage}: the {ranks} processes have not given the same to collectives")
    return Job(stage, ranks, first["calls"], first["sizes"])


def measure() -> dict[str, float]:
    """``update_ratio_N`` with N processes; all others with 4, and ``*_bytes`` at ZeRO-2."""
    with tempfile.TemporaryDirectory() as name:
        corpus = build_demo_corpus(Path(name) / "corpus", train=40, dev=4, test=4, workers=2)
        jobs = [run(Path(name), corpus, stage, ranks) for stage, ranks in JOBS]
    path = ROOT / "build" / "traffic.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({f"{job.stage}, {job.ranks} processes": job.calls for job in jobs}, indent=1))
    ratios = {(job.stage, job.ranks): {phase: job.ratio(phase) for phase in job.formulas} for job in jobs}
    zero2, zero3 = (job for job in jobs if job.ranks == 4 and job.stage in ("zero2", "zero3"))
    mined = MINED * MICRO_BATCHES // 4
    return {f"{stage}.update_ratio_{ranks}": each["update"] for (stage, ranks), each in ratios.items()} | {
        "zero2.update_calls": zero2.total(f"train/update {UPDATES - 1}")[0] + zero2.total("train")[0] / UPDATES,
        "zero2.split_ratio": ratios["zero2", 4]["split"],
        "zero3.split_ratio": ratios["zero3", 4]["split"],
        "zero3.mined_micro_batch_ratio": zero3.total("plan/mine/batch")[1] / mined / (4 * zero3.sizes[0]["model"]),
        "mining_bytes": zero2.total("plan/mine/sketches")[1],
        "mining_ratio": ratios["zero2", 4]["mining"],
        "line_bytes": zero2.total("train/line")[1] * LOG_EVERY / UPDATES,
        "rest_bytes": zero2.rest,
    }
