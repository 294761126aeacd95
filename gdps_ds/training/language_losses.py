"""Losses by language between two lines of the metrics, and what becomes of an update that is not finite."""

from __future__ import annotations

import math

import torch

from gdps_ds.config import GuardConfig
from gdps_ds.data.collate import Batch
from gdps_ds.distributed.comm import Communicator
from gdps_ds.training.loss import target_tokens

MAX_LISTED = 5


class LanguageLosses:
    """Loss sums by language since the last :meth:`reduce`."""

    def __init__(self, languages: tuple[str, ...], comm: Communicator) -> None:
        self._languages = languages
        self._comm = comm
        self._reset()

    def _reset(self) -> None:
        # Columns: loss sum, target tokens, utterances. On the host: gloo, NCCL and logging need no device copy of it.
        self._sums = torch.zeros(len(self._languages), 3, dtype=torch.float64)
        self._update = torch.zeros_like(self._sums)
        self._broken: list[str] = []

    @property
    def mean(self) -> float:
        """Loss per target token on this rank, of the updates that are kept."""
        return float(self._sums[:, 0].sum() / self._sums[:, 1].sum().clamp(min=1))

    def add(self, batch: Batch, losses: torch.Tensor) -> torch.Tensor:
        """Count the (B,) losses of a micro-batch; gives back their sum, for the backward pass."""
        tokens = target_tokens(batch)
        values = torch.stack([losses.detach().double().cpu(), tokens.double(), torch.ones_like(tokens).double()], dim=1)
        self._update.index_add_(0, batch.languages, values)
        self._broken += [batch.utterances[row] for row in (~values[:, 0].isfinite()).nonzero().flatten().tolist()]
        return losses.sum()

    def keep(self) -> None:
        """Count what was added since the last :meth:`keep` or :meth:`drop`."""
        self._sums += self._update
        self._update.zero_()
        self._broken = []

    def drop(self) -> list[str]:
        """Forget what was added since; the ids of those utterances, on any rank, whose loss is not finite. Collective."""
        broken = [name for names in self._comm.gather(self._broken) for name in names]
        self._update.zero_()
        self._broken = []
        return broken

    def reduce(self, where: str) -> dict[str, dict[str, float]]:
        """Loss per token, by language and over all, tokens and utterances over all ranks; starts counting anew.

        There is no loss where every update was dropped.

        Raises:
            FloatingPointError: on every rank, naming the languages, if a loss is not finite.
        """
        self.keep()
        sums = self._comm.sum(self._sums).cpu()
        self._reset()
        loss = {
            language: float(total / tokens)
            for language, (total, tokens, _) in zip(self._languages, sums, strict=True)
            if tokens > 0
        }
        broken = [language for language, value in loss.items() if not math.isfinite(value)]
        if broken:
            raise FloatingPointError(
                f"the loss is not finite by {where} ({', '.join(broken)}); lower train.*.lr, or look at that language's data"
            )
        total, tokens, utterances = sums.sum(0).tolist()
        seen = {"seen": {"tokens": tokens, "utterances": utterances}}
        return {"loss": loss | {"all": total / tokens}} | seen if tokens else seen


class NonFiniteUpdates:
    """Applies ``guard.nonfinite``: an update with a NaN or infinite gradient ends the run, or is counted and left out."""

    def __init__(self, guard: GuardConfig, comm: Communicator) -> None:
        self._guard, self._comm = guard, comm
        self._in_a_row = self._since_reported = 0

    def saw(self, where: str, applied: bool, losses: LanguageLosses, *, by_loss_scale: bool, mined: bool) -> None:
        """Count an update; ``applied`` says whether the engine has made it. Collective where it has not.

        Args:
            by_loss_scale: a loss scale is being found by trial; an overflow with finite losses is no fault then.
            mined: the update's gradients have gone into sketches already.

        Raises:
            FloatingPointError: on every rank, naming utterances.
        """
        if applied:
            losses.keep()
            self._in_a_row = 0
            return
        broken = losses.drop()
        self._since_reported += 1
        if by_loss_scale and not broken:
            if mined:
                raise FloatingPointError(f"{where}: the loss scale overflowed and the sketches saw it; set mine.during: pass")
            return
        self._in_a_row += 1
        more = f" and {len(broken) - MAX_LISTED} more" if len(broken) > MAX_LISTED else ""
        cause = f"the loss of {', '.join(broken[:MAX_LISTED])}{more}" if broken else "the gradient, though no loss,"
        fault = f"{where}: {cause} is not finite"
        if mined:
            raise FloatingPointError(f"{fault}, and the sketches have seen it; set mine.during: pass, or mend the data")
        if self._guard.nonfinite == "stop":
            raise FloatingPointError(f"{fault}; mend the data, lower train.*.lr, or set guard.nonfinite: skip")
        if self._in_a_row > self._guard.max_skipped:
            raise FloatingPointError(f"{fault}, like the {self._in_a_row - 1} before it (guard.max_skipped); lower train.*.lr")
        if self._comm.is_main:
            print(f"{fault}; the update is left out", flush=True)

    def count(self) -> int:
        """Updates left out since the last call."""
        count, self._since_reported = self._since_reported, 0
        return count
