"""Progress bars on rank 0: phase, step, loss, throughput and time to go."""

from __future__ import annotations

from types import TracebackType

from tqdm import tqdm

from gdps_ds.data.collate import Batch


class Progress:
    """A bar over the steps of a phase that also counts utterances and seconds of audio over all ranks.

    Use as a context manager. ``enabled`` is for rank 0 with ``track.progress``.
    """

    def __init__(self, phase: str, total: int, start: int = 0, *, enabled: bool, ranks: int = 1) -> None:
        self._left = total - start
        self._bar = tqdm(total=total, initial=start, desc=phase, unit="step", disable=not enabled)
        self._ranks = ranks
        self._utterances = 0
        self._seconds = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._bar.close()

    def saw(self, batch: Batch) -> None:
        """Count a micro-batch of this rank; the other ranks have about as much."""
        self._utterances += len(batch) * self._ranks
        self._seconds += batch.seconds * self._ranks

    def step(self, loss: float | None = None, count: int = 1) -> None:
        """``count`` steps further, never beyond the total: the other ranks' last batches may be smaller than this one's."""
        elapsed = self._bar.format_dict["elapsed"] or 1e-9
        rates = {"utt/s": f"{self._utterances / elapsed:.0f}", "audio": f"{self._seconds / elapsed:.0f}x"}
        self._bar.set_postfix(({} if loss is None else {"loss": f"{loss:.3f}"}) | rates, refresh=False)
        count = min(count, self._left)
        self._left -= count
        self._bar.update(count)
