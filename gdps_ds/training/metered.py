"""What the training loop is fed: how long it waits for batches, and how much of them is padding."""

from __future__ import annotations

import time
from collections.abc import Iterator

from gdps_ds.data.collate import Batch
from gdps_ds.distributed.comm import Communicator


class MeteredBatches(Iterator[Batch]):
    """Batches as they come, measured since the last :meth:`reduce`."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._reset()

    def _reset(self) -> None:
        self._since, self._waited = time.perf_counter(), 0.0
        self._frames = self._padded = 0

    def __next__(self) -> Batch:
        asked = time.perf_counter()
        batch = next(self._batches)
        self._waited += time.perf_counter() - asked
        self._frames += batch.frames
        self._padded += batch.attention_mask.numel()
        return batch

    def reduce(self, comm: Communicator) -> dict[str, float]:
        """Starts counting anew. Collective.

        Returns:
            ``data_wait``: share of the time that the rank that waited longest spent waiting for data, for the others wait for
            it. ``padding``: share of all ranks' frames.
        """
        waiting = max(comm.gather(self._waited / max(time.perf_counter() - self._since, 1e-9)))
        frames, padded = comm.sum_floats(self._frames, self._padded)
        self._reset()
        return {"data_wait": waiting, "padding": 1.0 - frames / max(padded, 1.0)}
