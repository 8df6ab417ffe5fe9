from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from pneumoscope.errors import PneumoscopeError
from pneumoscope.serve.workers.pool import JobStopped, WorkerLimits, WorkerPool

JOB = {"name": "a.png", "heatmap": False, "preview": False, "operating_point": "screening"}

needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def with_pool(bundle, work, *, workers=1, **limits):
    """Run an async function with a pool; returns its result and how often a worker was replaced."""
    restarts = []

    async def run():
        pool = WorkerPool(
            bundle.path, workers=workers, limits=WorkerLimits(**limits), on_restart=lambda: restarts.append(1)
        )
        await pool.start()
        try:
            return await work(pool)
        finally:
            await pool.stop()
            assert pool.pids == [None] * workers

    return asyncio.run(run()), len(restarts)


def test_jobs_get_responses(web_bundle, png):
    async def work(pool):
        assert pool.alive == 2
        return await asyncio.gather(*(pool.run(JOB, png) for _ in range(5)))

    responses, restarts = with_pool(web_bundle, work, workers=2)
    assert [head["row"]["status"] for head, _ in responses] == ["ok"] * 5
    assert restarts == 0


def test_a_worker_that_was_killed_as_it_ended_gets_no_further_job(tmp_path):
    killed = threading.Event()
    worker = SimpleNamespace(kill=killed.set)

    async def late():
        pool = WorkerPool(tmp_path, workers=1)
        await pool._timed(worker, 0.05, lambda: killed.wait(30) and "a whole response")

    with pytest.raises(JobStopped, match="it took longer"):
        asyncio.run(late())


def test_a_job_that_hangs_is_stopped_and_the_next_one_runs(web_bundle, png):
    async def work(pool):
        os.kill(pool.pids[0], signal.SIGSTOP)
        with pytest.raises(JobStopped, match="longer than 1 s"):
            await pool.run(JOB, png)
        return await pool.run(JOB, png)

    (head, _), restarts = with_pool(web_bundle, work, seconds=1)
    assert head["row"]["status"] == "ok"
    assert restarts == 1


def test_a_job_whose_upload_is_never_taken_is_stopped(web_bundle):
    """More than a pipe holds: the server blocks while writing."""

    async def work(pool):
        os.kill(pool.pids[0], signal.SIGSTOP)
        with pytest.raises(JobStopped, match="longer than 1 s"):
            await pool.run(JOB, bytes(1_000_000))

    assert with_pool(web_bundle, work, seconds=1)[1] == 1


def test_a_worker_that_crashes_takes_only_its_job(web_bundle, png):
    async def work(pool):
        pid = pool.pids[0]
        os.kill(pid, signal.SIGSTOP)
        crashing = asyncio.create_task(pool.run(JOB, png))
        others = [asyncio.create_task(pool.run(JOB, png)) for _ in range(3)]
        await asyncio.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(JobStopped, match="the reader ended"):
            await crashing
        return await asyncio.gather(*others)

    responses, restarts = with_pool(web_bundle, work)
    assert [head["row"]["status"] for head, _ in responses] == ["ok"] * 3
    assert restarts == 1


@needs_proc
def test_memory_is_bounded(web_bundle, png):
    """36 megapixels need 180 MB; a worker with a limit of 50 reports that and goes on."""
    blank = np.zeros((6000, 6000), np.uint8)
    blank[::2] = 200
    large = cv2.imencode(".png", blank)[1].tobytes()

    async def work(pool):
        return await pool.run(JOB, large), await pool.run(JOB, png)

    ((head, _), (after, _)), _ = with_pool(web_bundle, work, memory=50_000_000)
    assert head["row"]["status"] == "unreadable"
    assert head["row"]["reasons"] == ["reader_stopped"]
    assert "memory" in head["row"]["message"]
    assert after["row"]["status"] == "ok"


@needs_proc
def test_workers_may_write_no_file_and_leave_no_core(web_bundle):
    async def work(pool):
        return Path(f"/proc/{pool.pids[0]}/limits").read_text()

    lines = with_pool(web_bundle, work)[0].splitlines()
    for name in ("Max file size", "Max core file size"):
        line = next(line for line in lines if line.startswith(name))
        assert line.removeprefix(name).split()[:2] == ["0", "0"]


def test_cancelled_jobs_are_skipped(web_bundle, png):
    async def work(pool):
        cancelled = [asyncio.create_task(pool.run(JOB, png)) for _ in range(20)]
        await asyncio.sleep(0)
        for one in cancelled:
            one.cancel()
        return await pool.run(JOB, png)

    assert with_pool(web_bundle, work)[0][0]["row"]["status"] == "ok"


def test_a_bundle_that_does_not_load_is_one_line(tmp_path):
    async def work():
        pool = WorkerPool(tmp_path, workers=1, limits=WorkerLimits())
        await pool.start()

    with pytest.raises(PneumoscopeError, match="not a bundle"):
        asyncio.run(work())
