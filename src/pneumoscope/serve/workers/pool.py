"""A pool of worker processes: each job has a time limit, and a worker that ends is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pneumoscope.errors import PneumoscopeError
from pneumoscope.serve.workers.frames import Buffer, Response, read_frame, write_frame

__all__ = ["JobStopped", "WorkerLimits", "WorkerPool"]

START_TIMEOUT = 120.0  # seconds to load the libraries and the model on a busy machine
PAUSE_AFTER_FAILED_START = 1.0
WORKER_MODULE = "pneumoscope.serve.workers.worker"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Limits of one job.

    Parameters
    ----------
    seconds : float
        For reading and predicting one image.
    memory : int
        Bytes that a worker may allocate beyond those of the loaded model. The largest image that is read, 50
        megapixels of 16-bit RGB, takes about 400 MB.
    """

    seconds: float = 30.0
    memory: int = 1_024_000_000


class JobStopped(PneumoscopeError):
    """A job that was stopped, with the reason in one line."""


@dataclass(eq=False, slots=True)
class _QueuedJob:
    job: Mapping[str, Any]
    pieces: tuple[Buffer, ...]
    response: asyncio.Future[Response] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class _Worker:
    """One worker process. Its methods block; all but `kill` must be called from one thread."""

    def __init__(self, module: str, bundle: Path, memory: int) -> None:
        self._module, self._bundle, self._memory = module, bundle, memory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process number, or None where there is no running process."""
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
        command = [sys.executable, "-m", self._module]
        command += ["--bundle", str(self._bundle), "--memory", str(self._memory)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C goes to the server only
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout is not None
        head, _ = read_frame(self._process.stdout)
        if "ready" not in head:
            raise PneumoscopeError(str(head.get("error", "a worker did not start")))

    def run(self, job: Mapping[str, Any], pieces: Sequence[Buffer]) -> Response:
        """Run one job.

        Raises
        ------
        EOFError, OSError, ValueError
            If the process ended, or sent something that is not a message.
        """
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        write_frame(process.stdin, job, pieces)
        return read_frame(process.stdout)

    def kill(self) -> None:
        """End the process at once; a thread that waits for it gets an error. Safe from any thread."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the process and release its pipes."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # unflushed output
                    stream.close()
        process.wait()


class WorkerPool:
    """Runs jobs in worker processes, first come, first served.

    Parameters
    ----------
    bundle : Path
        Folder of the bundle to load.
    workers : int
        Number of processes.
    limits : WorkerLimits, optional
        Time and memory of one job.
    on_restart : callable, optional
        Called each time a worker is replaced.
    module : str
        The module that a worker runs: this package's own, or one that calls its `main` with other jobs.
    """

    def __init__(
        self,
        bundle: Path,
        *,
        workers: int,
        limits: WorkerLimits = WorkerLimits(),
        on_restart: Callable[[], None] = lambda: None,
        module: str = WORKER_MODULE,
    ) -> None:
        self.workers = workers
        self._limits = limits
        self._on_restart = on_restart
        self._workers = [_Worker(module, bundle, limits.memory) for _ in range(workers)]
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="pneumoscope-worker")
        self._jobs: asyncio.Queue[_QueuedJob] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return self._jobs.qsize()

    @property
    def alive(self) -> int:
        """Workers that are running."""
        return sum(pid is not None for pid in self.pids)

    @property
    def pids(self) -> list[int | None]:
        """Process number of each worker; None where it is being replaced."""
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
                "a worker ended while loading the model: free some memory or use fewer workers"
            ) from error
        except PneumoscopeError:
            await self.stop()
            raise
        self._tasks = [asyncio.create_task(self._serve(worker)) for worker in self._workers]

    async def stop(self) -> None:
        """End all workers and their jobs."""
        for task in self._tasks:
            task.cancel()
        for worker in self._workers:
            worker.kill()  # frees a thread that waits for it
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)
        for worker in self._workers:
            worker.close()

    async def run(self, job: Mapping[str, Any], *pieces: Buffer) -> Response:
        """Run one job in the next free worker.

        Parameters
        ----------
        job : mapping
            What to do: a `pneumoscope.serve.workers.frames.Job`, or what another `module` takes.
        *pieces : bytes or bytearray
            Content of the image file.

        Returns
        -------
        Response
            As `pneumoscope.serve.workers.worker.respond` describes it.

        Raises
        ------
        JobStopped
            If the job took too long or its worker ended.
        """
        queued = _QueuedJob(job, pieces)
        self._jobs.put_nowait(queued)
        return await queued.response

    async def _serve(self, worker: _Worker) -> None:
        """Run jobs in one worker, one after another, until cancelled."""
        while True:
            if worker.pid is None:
                await self._restart(worker)
            queued = await self._jobs.get()
            if queued.response.cancelled():
                continue
            try:
                response = await self._timed(
                    worker, self._limits.seconds, worker.run, queued.job, queued.pieces
                )
            except (EOFError, OSError, ValueError, JobStopped) as error:
                if not queued.response.done():
                    queued.response.set_exception(_stopped(error))
                worker.kill()
                await self._restart(worker)
            else:
                if not queued.response.done():
                    queued.response.set_result(response)
            del queued  # an idle worker must not keep an upload in memory

    async def _restart(self, worker: _Worker) -> None:
        self._on_restart()
        while True:
            try:
                await self._start(worker)
            except (EOFError, OSError, ValueError, PneumoscopeError) as error:
                logger.error("a worker did not start: %s", type(error).__name__)
                await asyncio.sleep(PAUSE_AFTER_FAILED_START)
            else:
                return

    async def _start(self, worker: _Worker) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, worker.close)
        await self._timed(worker, START_TIMEOUT, worker.start)

    async def _timed(
        self, worker: _Worker, seconds: float, work: Callable[..., Any], *arguments: object
    ) -> Any:
        """Run a blocking call in a thread, and kill its worker after the time limit."""
        loop = asyncio.get_running_loop()
        late = asyncio.Event()

        def stop() -> None:
            late.set()
            worker.kill()

        timer = loop.call_later(seconds, stop)
        stopped = f"it took longer than {seconds:g} s"
        try:
            done = await loop.run_in_executor(self._threads, work, *arguments)
        except (EOFError, OSError) as error:
            if late.is_set():
                raise JobStopped(stopped) from error
            raise
        finally:
            timer.cancel()
        if late.is_set():  # done at the last moment; the worker is killed, and must not get the next job
            raise JobStopped(stopped)
        return done


def _stopped(error: Exception) -> JobStopped:
    why = str(error) if isinstance(error, JobStopped) else "the reader ended"
    return JobStopped(f"reading this file was stopped: {why}; it is damaged or too large, export it again")
