"""Long work: CPUs and processes that share it, items through a few threads in order, and its progress."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

__all__ = ["CHUNK", "Launch", "Progress", "TimeLeft", "available_cpus", "in_order", "launched_as"]

S = TypeVar("S")
T = TypeVar("T")

CHUNK = 8
"""Images per task: enough for one network call to pay, few enough to share out."""


def available_cpus() -> int:
    """Return how many CPUs this process may use, which is not how many the machine has."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Launch(NamedTuple):
    """Place of this process among those that ``torchrun`` started with the same command; alone without it."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0  # on this machine
    local_processes: int = 1


def launched_as() -> Launch:
    """Return the place of this process, from the variables that ``torchrun`` sets."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if any(name not in os.environ for name in names):
        return Launch()
    return Launch(*(int(os.environ[name]) for name in names))


def in_order(
    items: Iterable[S], work: Callable[[Sequence[S]], Sequence[T]], *, workers: int, chunk: int = CHUNK
) -> Iterator[T]:
    """Yield what `work` makes of the items, in their order.

    At most two chunks a worker, and one more, are under way, so memory does not grow with the number of
    items, and items are drawn only as fast as the results are taken.

    Parameters
    ----------
    items : iterable
        May be endless.
    work : callable
        Takes a chunk of items and returns as many results; runs in several threads at once. What it
        raises is raised here.
    workers : int
        Threads.
    chunk : int
        Items per call of `work`.
    """
    chunks = _chunks(items, chunk)
    first = next(chunks, [])
    if len(first) < min(2, chunk):  # one image needs no threads
        yield from work(first) if first else ()
        return
    under_way: deque[Future[Sequence[T]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="pneumoscope") as pool:
        try:
            under_way.append(pool.submit(work, first))
            for one in chunks:
                under_way.append(pool.submit(work, one))
                if len(under_way) > 2 * workers:
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def _chunks(items: Iterable[S], size: int) -> Iterator[list[S]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


class Progress:
    """Receives the progress of long work; this base class shows nothing.

    The command line implements it for a terminal and for plain output; a caller from Python may subclass it.
    """

    def step(self, name: str) -> None:
        """Begin a step, such as ``"training"``."""

    def update(self, done: int, total: int | None = None) -> None:
        """Report how much of the present step is done, and of how much if that is known."""

    def message(self, line: str) -> None:
        """Report a line that stays visible, such as the metrics of an epoch."""

    def collect(self, results: Iterable[T], total: int) -> list[T]:
        """Return all results as a list, reporting each of the `total` as it comes."""
        collected = []
        for result in results:
            collected.append(result)
            self.update(len(collected), total)
        return collected


class TimeLeft:
    """Estimates how long a step still takes, from the speed of its last part.

    The last third of the time counts, and at least half a minute, so that a step that becomes slower, such as
    training when more layers are trained, is soon estimated right. The first report is the beginning: a
    resumed step has much done by then. From the second on, the time between two reports counts as ten minutes
    at most, or as three times the longest before: a process that was suspended did not work all that time.
    """

    SHARE = 1 / 3
    AT_LEAST = 30.0  # seconds
    FIRST = 2.0  # seconds before there is an estimate
    MOST = 256  # reports kept
    PAUSE = 600.0  # seconds between two reports

    def __init__(self) -> None:
        self._reports: list[tuple[float, int]] = []
        self._last: float | None = None
        self._worked = self._longest = 0.0

    def __call__(self, now: float, done: int, total: int | None) -> float | None:
        """Return the seconds left, or None where that is not known.

        Parameters
        ----------
        now : float
            Seconds, of any clock that runs evenly.
        done, total
            As of `Progress.update`.
        """
        since_last = 0.0 if self._last is None else now - self._last
        if self._longest:
            since_last = min(since_last, max(self.PAUSE, 3 * self._longest))
        self._last, self._longest = now, max(self._longest, since_last)
        self._worked += since_last
        now = self._worked
        if self._reports and done < self._reports[-1][1]:  # the step counts something else from here
            self._reports.clear()
        self._reports.append((now, done))
        if len(self._reports) > self.MOST:
            del self._reports[1:-1:2]
        began = self._reports[0][0]
        if not total or done >= total or now - began < self.FIRST:
            return None
        since = now - max(self.AT_LEAST, self.SHARE * (now - began))
        then, before = next(one for one in self._reports if one[0] >= since)
        if done == before:
            then, before = self._reports[0]
        return (now - then) * (total - done) / (done - before) if done > before else None
