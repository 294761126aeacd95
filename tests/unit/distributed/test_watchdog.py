"""Ranks as threads around one store: whatever stops one of them ends all, and rank 0's last line says why."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from gdps_ds.distributed import watchdog as module
from gdps_ds.distributed.watchdog import Pulse, Watchdog, is_consequence, verdict


class Job:
    """Watchdogs that write down, instead of doing it, that they end their process."""

    def __init__(self, ranks: int, timeout: float = 60.0) -> None:
        self.store = dist.HashStore()
        self.ended: dict[int, int] = {}
        self._all_ended = threading.Event()
        self._ranks = ranks
        self.dogs = [Watchdog(self.store, rank, ranks, timeout, self._end(rank)) for rank in range(ranks)]

    def _end(self, rank: int) -> Callable[[int], None]:
        def end(code: int) -> None:
            self.ended.setdefault(rank, code)
            if len(self.ended) == self._ranks:
                self._all_ended.set()

        return end

    def wait(self) -> None:
        assert self._all_ended.wait(60), f"only {sorted(self.ended)} ended"
        assert set(self.ended.values()) == {module.EXIT_CODE}

    def fail(self, rank: int, error: Exception, **options: bool) -> threading.Thread:
        """As the main thread of a rank does, which here is not ended."""

        def run() -> None:
            with pytest.raises(SystemExit):
                self.dogs[rank].fail(error, **options)

        thread = threading.Thread(target=run)
        thread.start()
        return thread


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.02)
    monkeypatch.setattr(module, "SILENCE", 1.0)
    monkeypatch.setattr(module, "PATIENCE", 10.0)


def last_line(capfd: pytest.CaptureFixture[str]) -> str:
    """Said by rank 0; what a main thread that is not ended here says later is left out."""
    return next(line for line in capfd.readouterr().err.splitlines() if line.startswith("train: "))


def test_an_exception_on_one_rank_ends_all_and_comes_before_its_consequences(capfd: pytest.CaptureFixture[str]) -> None:
    job = Job(3)
    job.dogs[2].beat("micro-batch 1 of update 7 of unified")
    threads = [job.fail(0, RuntimeError("[gloo/transport/tcp/pair.cc:525] Connection closed by peer"))]
    threads.append(job.fail(2, MemoryError("no room")))
    job.wait()
    assert last_line(capfd) == "train: rank 2, micro-batch 1 of update 7 of unified: MemoryError: no room"
    [thread.join() for thread in threads]


def test_memory_that_runs_out_names_the_options(capfd: pytest.CaptureFixture[str]) -> None:
    job = Job(1)
    job.dogs[0].beat("micro-batch 2 of update 3 of unified")
    thread = job.fail(0, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    job.wait()
    said = last_line(capfd)
    assert said.startswith("train: rank 0, micro-batch 2 of update 3 of unified: OutOfMemoryError: CUDA out of memory.")
    assert "; lower data.max_frames (where it translates, decode.max_frames), or take another ZeRO stage" in said
    thread.join()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 77) is killed by signal: Bus error. The workers may be out."),
        RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)"),
        dist.DistBackendError("NCCL error: Error while creating shared memory segment /dev/shm/nccl-yZ3 (size 9637888)"),
    ],
    ids=["bus error", "torch", "nccl"],
)
def test_shared_memory_that_runs_out_names_the_option_of_the_container(
    error: Exception, capfd: pytest.CaptureFixture[str]
) -> None:
    job = Job(2)
    threads = [job.fail(0, dist.DistBackendError("NCCL: remote process exited")), job.fail(1, error)]
    job.wait()
    said = last_line(capfd)
    assert said.startswith(f"train: rank 1, starting: {type(error).__name__}: {error}; where /dev/shm is full, make it larger:")
    assert "docker run --shm-size=8g" in said
    for thread in threads:
        thread.join()


def test_a_fault_that_every_rank_has_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    job = Job(2)
    threads = [job.fail(rank, ValueError("data.languages names no corpus"), told=True) for rank in range(2)]
    job.wait()
    error = capfd.readouterr().err
    assert "Traceback" not in error and error.splitlines()[0] == "train: data.languages names no corpus"
    [thread.join() for thread in threads]


def test_a_rank_that_stands_still_is_found_among_those_that_wait_for_it(capfd: pytest.CaptureFixture[str]) -> None:
    job = Job(3, timeout=2.0)
    contexts = [dog.watching("unified") for dog in job.dogs]
    for rank, (dog, context) in enumerate(zip(job.dogs, contexts, strict=True)):
        context.__enter__()
        dog.beat("waiting for the data of update 3 of unified")
        if rank != 1:
            dog.beat("update 3 of unified")
    job.wait()
    error = capfd.readouterr().err
    assert "train: rank 1 stands still since" in error
    assert "waiting for the data of update 3 of unified (guard.timeout: 2)" in error
    assert error.count("most recent call first") >= 1  # where rank 1 stands


def test_rank_zero_alone_may_work_for_long_but_not_stand_still(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its processor time says which; the rank that waits for it is not taken for one that stands still."""
    used, working = itertools.count(), threading.Event()
    working.set()
    monkeypatch.setattr(module.time, "clock_gettime", lambda clock: next(used) if working.is_set() else 0.0)
    job = Job(2, timeout=0.5)
    contexts = [dog.alone("planning") for dog in job.dogs]
    for context in contexts:
        context.__enter__()
    until = time.monotonic() + 3 * 0.5
    while time.monotonic() < until:
        assert job.ended == {}
        time.sleep(0.02)
    working.clear()
    job.wait()
    assert re.match(r"train: rank 0 stands still since \d+ s: planning \(guard\.timeout: 0\.5\)", last_line(capfd))


def test_after_the_work_of_rank_zero_ranks_have_told_of_as_many_steps_and_are_watched_as_before() -> None:
    job = Job(2)
    for dog in job.dogs:
        with dog.watching("mining"):
            with dog.alone("choosing sites"):
                assert dog._watched is (dog is job.dogs[0])
            assert dog._watched
        assert not dog._watched
    assert job.dogs[0]._beats == job.dogs[1]._beats
    for dog in job.dogs:
        dog.close()


def test_a_killed_rank_is_named_by_its_silence(capfd: pytest.CaptureFixture[str]) -> None:
    job = Job(2)
    while not job.store.check(["pulse/1"]):
        time.sleep(0.01)
    job.dogs[1].close()
    job.ended[1] = module.EXIT_CODE  # as if it were killed
    thread = job.fail(0, RuntimeError("[gloo] Connection closed by peer"))
    job.wait()
    assert last_line(capfd).startswith("train: rank 1 ended without a word: killed, out of memory, or its node lost")
    thread.join()


def test_a_store_that_has_vanished_ends_the_rank(capfd: pytest.CaptureFixture[str]) -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
    ended = threading.Event()
    Watchdog(client, 1, 2, 60.0, lambda code: ended.set())
    server.wait(["pulse/1"])  # a client does one thing at a time: waiting, it would keep its watchdog from telling
    del server
    assert ended.wait(60)
    assert "train: rank 1, starting: rank 0 has gone (" in capfd.readouterr().err


def test_a_closed_watchdog_leaves_its_rank_alone() -> None:
    job = Job(2)
    for dog in job.dogs:
        dog.close()
    job.store.set("cause", "too late")
    assert job.ended == {}


def pulse(beats: int, still: float | None) -> Pulse:
    return Pulse(1, beats, still, f"step {beats}")


def test_verdict() -> None:
    timeout, heard = 10.0, [0.0, 0.0, 0.0]
    assert verdict([pulse(3, 9.0), pulse(2, 9.5), pulse(3, 9.0)], heard, timeout) is None
    assert verdict([pulse(3, None), pulse(2, None), pulse(3, None)], heard, timeout) is None
    assert "rank 1 stands still since 11 s: step 2" in str(
        verdict([pulse(3, 12.0), pulse(2, 11.0), pulse(3, 9.0)], heard, timeout)
    )
    # The slowest rank is still at work: the others wait for it, and it has time left.
    assert verdict([pulse(3, 12.0), pulse(2, 4.0), pulse(3, 12.0)], heard, timeout) is None
    assert "every rank stands still" in str(verdict([pulse(3, 12.0), pulse(3, 11.0), pulse(3, 12.0)], heard, timeout))
    assert "nothing has been heard of rank 2 for 10 s" in str(verdict([pulse(3, 1.0)] * 3, [0.0, 1.0, 10.0], timeout))


@pytest.mark.parametrize(
    ("error", "consequence"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:119] Timed out waiting 20000ms"), True),
        (dist.DistBackendError("NCCL communicator was aborted on rank 1."), True),
        (RuntimeError("CUDA out of memory"), False),
        (ValueError("gloo"), False),
    ],
)
def test_which_errors_may_be_another_ranks_fault(error: Exception, consequence: bool) -> None:
    assert is_consequence(error) is consequence
