"""A few workers, watched: each job has a time limit, and a worker that dies is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pneumoscope.errors import PneumoscopeError
from pneumoscope.serve.web.frames import Buffer, read_frame, write_frame
from pneumoscope.serve.web.limits import WebLimits

__all__ = ["JobStopped", "WorkerPool"]

START_TIMEOUT = 120.0  # seconds to load the libraries and the model on a busy machine
PAUSE_AFTER_FAILED_START = 1.0

logger = logging.getLogger(__name__)

Answer = tuple[dict[str, Any], list[bytes]]


class JobStopped(PneumoscopeError):
    """A job that ended without an answer; the text says why, for people."""


@dataclass(eq=False, slots=True)
class _Job:
    head: dict[str, Any]
    data: Buffer
    answer: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class _Worker:
    """One worker process. Its methods block; all but `kill` belong into one thread."""

    def __init__(self, bundle: Path, memory: int) -> None:
        self._bundle, self._memory = bundle, memory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, while it lives."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process and wait until the model is loaded.

        Raises
        ------
        PneumoscopeError
            If the model does not load.
        EOFError, OSError, ValueError
            If the process cannot be started or ends.
        """
        command = [sys.executable, "-m", "pneumoscope.serve.web.worker"]
        command += ["--bundle", str(self._bundle), "--memory", str(self._memory)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the server alone
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout is not None
        head, _ = read_frame(self._process.stdout)
        if "ready" not in head:
            raise PneumoscopeError(str(head.get("error", "a worker does not start")))

    def run(self, head: dict[str, Any], data: Buffer) -> Answer:
        """Have one job done.

        Raises
        ------
        EOFError, OSError, ValueError
            If the process ended, or talks nonsense.
        """
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        write_frame(process.stdin, head, [data])
        return read_frame(process.stdout)

    def kill(self) -> None:
        """End the process at once; whoever waits for it gets an error. Safe from any thread."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the process and forget it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was still to be flushed
                    stream.close()
        process.wait()


class WorkerPool:
    """Runs jobs in worker processes, first come, first served.

    Parameters
    ----------
    bundle : Path
        Of the bundle to load; its hashes have been checked.
    workers : int
        Processes.
    limits : WebLimits
        For time and memory.
    on_restart : callable
        Called whenever a worker had to be replaced.
    """

    def __init__(
        self,
        bundle: Path,
        *,
        workers: int,
        limits: WebLimits,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        self.workers = workers
        self._limits = limits
        self._on_restart = on_restart
        self._workers = [_Worker(bundle, limits.worker_memory) for _ in range(workers)]
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="pneumoscope-worker")
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def waiting(self) -> int:
        """Jobs that no worker has taken yet."""
        return self._jobs.qsize()

    @property
    def alive(self) -> int:
        """Workers that live."""
        return sum(pid is not None for pid in self.pids)

    @property
    def pids(self) -> list[int | None]:
        """Process of each worker; None where it is being replaced."""
        return [worker.pid for worker in self._workers]

    async def start(self) -> None:
        """Start all workers and wait until each has loaded the model.

        Raises
        ------
        PneumoscopeError
            If the model does not load.
        """
        try:
            await asyncio.gather(*(self._start(worker) for worker in self._workers))
        except (EOFError, OSError, ValueError) as error:
            await self.stop()
            raise PneumoscopeError(
                "a worker ended while it loaded the model; is there memory for it?"
            ) from error
        except PneumoscopeError:
            await self.stop()
            raise
        self._tasks = [asyncio.create_task(self._serve(worker)) for worker in self._workers]

    async def stop(self) -> None:
        """End all workers, and the jobs with them."""
        for task in self._tasks:
            task.cancel()
        for worker in self._workers:
            worker.kill()  # a thread that waits for it comes free
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)
        for worker in self._workers:
            worker.close()

    async def run(self, head: dict[str, Any], data: Buffer) -> Answer:
        """Have one job done by the next free worker.

        Raises
        ------
        JobStopped
            If it took too long, or brought the worker down.
        """
        job = _Job(head, data)
        self._jobs.put_nowait(job)
        return await job.answer

    async def _serve(self, worker: _Worker) -> None:
        """Give one worker its jobs, one after the other, for ever."""
        while True:
            if worker.pid is None:
                await self._restart(worker)
            job = await self._jobs.get()
            if job.answer.cancelled():
                continue
            try:
                answer = await self._timed(worker, self._limits.job_timeout, worker.run, job.head, job.data)
            except (EOFError, OSError, ValueError, JobStopped) as error:
                if not job.answer.done():
                    job.answer.set_exception(_stopped(error))
                worker.kill()
                await self._restart(worker)
            else:
                if not job.answer.done():
                    job.answer.set_result(answer)
            del job  # an idle worker must not hold on to an upload

    async def _restart(self, worker: _Worker) -> None:
        self._on_restart()
        while True:
            try:
                await self._start(worker)
            except (EOFError, OSError, ValueError, PneumoscopeError) as error:
                logger.error("a worker does not start: %s", type(error).__name__)
                await asyncio.sleep(PAUSE_AFTER_FAILED_START)
            else:
                return

    async def _start(self, worker: _Worker) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, worker.close)
        await self._timed(worker, START_TIMEOUT, worker.start)

    async def _timed(
        self, worker: _Worker, seconds: float, work: Callable[..., Any], *arguments: object
    ) -> Any:
        """Run what blocks in a thread, and kill the worker it waits for when time is up."""
        loop = asyncio.get_running_loop()
        late = asyncio.Event()

        def give_up() -> None:
            late.set()
            worker.kill()

        timer = loop.call_later(seconds, give_up)
        try:
            return await loop.run_in_executor(self._threads, work, *arguments)
        except (EOFError, OSError) as error:
            if late.is_set():
                raise JobStopped(f"it took longer than {seconds:g} s") from error
            raise
        finally:
            timer.cancel()


def _stopped(error: Exception) -> JobStopped:
    why = str(error) if isinstance(error, JobStopped) else "the reader ended"
    return JobStopped(
        f"reading this file was stopped: {why}; it is damaged or too demanding, export it again"
    )
