"""Metrics of a run: always as JSON lines, and on Weights & Biases when asked. Only rank 0 writes.

Weights & Biases never ends a run: whatever it raises, and its helper process may be killed at any time, it is dropped with one
line. Only where it cannot be used at all because of a setting, such as no key, a new run is refused.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gdps_ds.analysis.arms import GDPS
from gdps_ds.config import Config
from gdps_ds.config_file import ConfigError
from gdps_ds.files import atomic_write
from gdps_ds.reporting.run_metrics import METRICS_FILE, START, UNIFIED

if TYPE_CHECKING:
    from gdps_ds.reporting.page import Section
    from gdps_ds.reporting.samples import Sample

REPORT = "report"
ID, LOGGED = "wandb-id", "wandb-logged.json"
"""Files in the run directory: what ids of W&B's runs begin with, and the last update that each of them has."""


class Tracker:
    """Writes ``metrics.jsonl`` in the run directory; a resumed run appends."""

    def __init__(self, config: Config, run_dir: Path, *, is_main: bool) -> None:
        self._file: TextIO | None = None
        self._wandb: WandbRuns | None = None
        self._opened = time.time()
        self._started = False
        if is_main:
            self._file = (run_dir / METRICS_FILE).open("a", encoding="utf-8", buffering=1)
            if config.track.wandb:
                self._start_wandb(config, run_dir)

    def log(self, phase: str, update: int, **values: Any) -> None:
        """One line: the phase, the update, the time (Unix seconds) and the values.

        The first line of an attempt follows one of phase :data:`START`, with the time at which the attempt began.
        """
        if self._file is not None:
            if not self._started:
                self._write(START, 0, self._opened, {})
                self._started = True
            self._write(phase, update, time.time(), values)
        self._on_wandb(lambda runs: runs.log(phase, update, values))

    def show(self, parts: Mapping[str, Iterable[Section]], figures: Path) -> None:
        """Figures and tables of a report's parts on Weights & Biases; ``figures`` is the folder that holds the PNGs."""
        self._on_wandb(lambda runs: runs.show(parts, figures))

    def show_samples(self, samples: Sequence[Sample]) -> None:
        """Translations beside references and speech on Weights & Biases."""
        if samples:
            self._on_wandb(lambda runs: runs.show_samples(samples))

    def keep(self, run_dir: Path) -> None:
        """Plan and checkpoints as artifacts of Weights & Biases, as far as ``track.artifacts`` asks."""
        self._on_wandb(lambda runs: runs.keep(run_dir))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._on_wandb(lambda runs: runs.close())

    def _start_wandb(self, config: Config, run_dir: Path) -> None:
        """Runs of W&B.

        Raises:
            ConfigError: a setting keeps a new run from using it, which shows before hours of training.
        """
        is_new = not (run_dir / ID).exists()
        try:
            self._wandb = WandbRuns(config, run_dir)
        except Exception as error:
            import wandb

            if is_new and isinstance(error, wandb.errors.UsageError | wandb.errors.AuthenticationError):
                advice = "give WANDB_API_KEY, set WANDB_MODE=offline, or track.wandb=false"
                raise ConfigError("track.wandb", [f"W&B cannot be used ({error}); {advice}"]) from error
            self._drop_wandb(error)

    def _on_wandb(self, call: Callable[[WandbRuns], None]) -> None:
        if self._wandb is not None:
            try:
                call(self._wandb)
            except Exception as error:
                self._drop_wandb(error)

    def _drop_wandb(self, error: Exception) -> None:
        self._wandb = None
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        print(f"W&B is dropped ({reason}); the run goes on, and metrics.jsonl has it all", file=sys.stderr, flush=True)
        if _is_of_helper(error):
            import wandb

            with contextlib.suppress(Exception):
                wandb.teardown()  # or it would wait for its helper, and complain, when this process ends

    def _write(self, phase: str, update: int, at: float, values: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps({"phase": phase, "update": update, "time": round(at, 3)} | dict(values)) + "\n")


class WandbRuns:
    """One run of Weights & Biases for the unified phase, for each arm and for the report, all in one group.

    They name their metrics alike (``loss/aeb``), so that W&B draws the arms into the same panels; their step is the update of
    the whole run: an arm goes on where the unified phase ends. Ids are kept in the run directory: a resumed run goes on in
    the same charts, and what it repeats there is left out. What they have is kept there too, as nobody tells it offline.
    """

    def __init__(self, config: Config, run_dir: Path) -> None:
        self._config = config
        self._dir = run_dir
        kept = run_dir / LOGGED
        self._logged: dict[str, int] = json.loads(kept.read_text()) if kept.exists() else {}
        self._id = _id_of(run_dir) or uuid.uuid4().hex[:8]
        self._runs: dict[str, Any] = {REPORT: self._start(REPORT)}
        if not _id_of(run_dir):
            with atomic_write(run_dir / ID) as file:
                file.write(self._id)

    def log(self, phase: str, update: int, values: Mapping[str, Any]) -> None:
        """Curves of a training phase, scores at the end of an arm; what a plan and a split did goes into gdps' summary."""
        train, arm = self._config.train, phase.removeprefix("scores-")
        if arm != phase:
            run = self._run(arm)
            # Where an earlier attempt ended after the last update, that step is closed.
            end = max(run.step, train.unify.updates + train.specialise.updates)
            run.log(dict(flat({"scores": values})), step=end)
        elif phase in (UNIFIED, *self._config.run.arms):
            # An update is trained and evaluated, the latter after a resume where it was stopped between them.
            kind = f"{phase} dev" if "dev" in values else phase
            if update > self._logged.get(kind, -1):
                run, step = self._run(phase), update if phase == UNIFIED else train.unify.updates + update
                run.log(dict(flat(values)), step=max(step, run.step))
                self._logged[kind] = update
                with atomic_write(self._dir / LOGGED) as file:
                    json.dump(self._logged, file)
        else:
            self._run(GDPS).summary.update(dict(flat({phase: values})))

    def show(self, parts: Mapping[str, Iterable[Section]], figures: Path) -> None:
        import wandb

        media: dict[str, Any] = {}
        for part, sections in parts.items():
            for section in sections:
                for picture in section.pictures:
                    image = wandb.Image(str(figures / f"{picture.name}.png"), caption=picture.caption)
                    media[f"{part}/{picture.name}"] = image
                for table in section.tables:
                    rows = wandb.Table(list(table.head), [list(row) for row in table.rows])
                    media[f"{part}/{table.head[0] or part.lower()}"] = rows
        self._run(REPORT).log(media)

    def show_samples(self, samples: Sequence[Sample]) -> None:
        import soundfile
        import wandb

        systems = list(samples[0].hypotheses)
        table = wandb.Table(["id", "language", "speech", "spoken", "reference", *systems])
        for sample in samples:
            speech = None
            if sample.audio is not None:
                data, rate = soundfile.read(io.BytesIO(sample.audio))
                speech = wandb.Audio(data, sample_rate=rate)
            texts = (sample.hypotheses[system] for system in systems)
            table.add_data(sample.id, sample.language, speech, sample.source, sample.reference, *texts)
        self._run(REPORT).log({"Translations": table})

    def keep(self, run_dir: Path) -> None:
        import wandb

        wanted = self._config.track.artifacts
        if "plan" in wanted and (run_dir / "plan.json").is_file():
            artifact = wandb.Artifact(f"plan-{self._id}", type="plan")
            artifact.add_file(str(run_dir / "plan.json"))
            self._run(GDPS).log_artifact(artifact)
        for phase in (UNIFIED, *self._config.run.arms) if "checkpoints" in wanted else ():
            if (run_dir / "checkpoints" / phase).is_dir():
                artifact = wandb.Artifact(f"checkpoints-{phase}-{self._id}", type="model")
                # Immutable: uploaded from where they are, without a copy on the disk.
                artifact.add_dir(str(run_dir / "checkpoints" / phase), policy="immutable")
                self._run(phase).log_artifact(artifact)

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()

    def _run(self, part: str) -> Any:
        """The run of the unified phase, of an arm or of the report; it is started when it is first needed."""
        if part not in self._runs:
            self._runs[part] = self._start(part)
        return self._runs[part]

    def _start(self, part: str) -> Any:
        import wandb

        track = self._config.track
        name = track.name or self._dir.resolve().name
        return wandb.init(
            project=track.project,
            group=track.group or name,
            job_type=part,
            name=f"{name} {part}",
            tags=[part, *track.tags],
            id=f"{self._id}-{part}",
            resume="allow",
            reinit="create_new",
            dir=str(self._dir),
            config=self._config.model_dump(mode="json", by_alias=True),
            # The report's run is there from the start to the end: output and machine are told once.
            settings=None if part == REPORT else wandb.Settings(console="off", x_disable_stats=True),
        )


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested dictionaries as slash-separated names, which W&B shows as groups of panels."""
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        pairs += flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else [(prefix + name, value)]
    return pairs


def _is_of_helper(error: Exception) -> bool:
    """Whether an error says that W&B's helper process is gone: the connection is, or an answer to a request will not come."""
    return isinstance(error, ConnectionError) or type(error).__module__.startswith("wandb.sdk.mailbox")


def _id_of(run_dir: Path) -> str | None:
    path = run_dir / ID
    return path.read_text() if path.exists() else None
