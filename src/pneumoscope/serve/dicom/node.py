"""The node: receiver, workers, couriers and everything else, from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pneumoscope import __version__
from pneumoscope.errors import DataError, PneumoscopeError
from pneumoscope.model.bundle import Bundle, load_bundle
from pneumoscope.parallel import available_cpus
from pneumoscope.serve.dicom import audit
from pneumoscope.serve.dicom.commitment import Committer
from pneumoscope.serve.dicom.config import MB, DestinationConfig, NodeConfig
from pneumoscope.serve.dicom.courier import Courier
from pneumoscope.serve.dicom.fetch import FileIntake, FolderWatch, WebPull
from pneumoscope.serve.dicom.intake import Accepted, Intake, Origin
from pneumoscope.serve.dicom.journal import Journal, JournalError, now
from pneumoscope.serve.dicom.metrics import NodeMetrics
from pneumoscope.serve.dicom.outbox import Outbox
from pneumoscope.serve.dicom.processor import WORKER_MODULE, Processor
from pneumoscope.serve.dicom.queue import Queue
from pneumoscope.serve.dicom.scp import Receiver
from pneumoscope.serve.dicom.senders import open_sender
from pneumoscope.serve.dicom.store import Store
from pneumoscope.serve.workers.pool import WorkerLimits, WorkerPool

__all__ = ["Node", "lock_folder", "run_node"]

logger = logging.getLogger(__name__)

LOCK_FILE = "lock"
STOP_SECONDS = 60.0  # for associations, images and objects in hand when the node stops
BEAT = 5.0
STUCK_SECONDS = 300.0  # without a sign of life of a part, the watchdog is not told that all is well


def lock_folder(folder: Path) -> IO[str]:
    """Take the folder for this process; it is free again when the file is closed or the process ends.

    Raises
    ------
    DataError
        If another process has it.
    """
    file = (folder / LOCK_FILE).open("a+", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read(20).strip()
        file.close()
        raise DataError(
            f"{folder}: another node uses this folder (process {holder or 'unknown'}); stop it, or give this "
            "one a folder of its own"
        ) from error
    file.seek(0)
    file.truncate()
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def run_node(config: NodeConfig, on_ready: Callable[[int, int | None], None] = lambda _port, _metrics: None) -> None:
    """Run a node until SIGTERM or Ctrl-C; what is in hand is finished.

    Parameters
    ----------
    config : NodeConfig
    on_ready : callable
        Called with the port for DICOM and the one for metrics once both are open.

    Raises
    ------
    PneumoscopeError
        If it cannot start, or the journal fails while it runs.
    """
    asyncio.run(Node(config).run(on_ready))


class Node:
    """A node; see `run_node`.

    Parameters
    ----------
    config : NodeConfig
    """

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._metrics = NodeMetrics()
        self._stop = asyncio.Event()
        self._failure: PneumoscopeError | None = None

    async def run(self, on_ready: Callable[[int, int | None], None]) -> None:
        """Start, work, stop."""
        config = self._config
        bundle = load_bundle(config.bundle, allow_draft=False)
        bundle.manifest.operating_point(config.process.operating_point)
        store = Store(config.folder)
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock_folder(config.folder))
            journal = Journal(config.folder, create=True, check=True)
            stack.callback(journal.close)
            left = store.clear_incoming()
            _record_start(journal, config, bundle)
            logger.info("starting", extra={"bundle": bundle.identity, "mode": config.mode, "removed": left})
            pool = WorkerPool(
                bundle.path,
                workers=config.process.workers or available_cpus(),
                limits=WorkerLimits(config.process.seconds, config.process.memory_mb * MB),
                on_restart=self._metrics.restarts.inc,
                module=WORKER_MODULE,
            )
            await pool.start()
            try:
                await self._work(on_ready, bundle, store, journal, pool)
            finally:
                await pool.stop()
            with journal.change() as connection:
                audit.record(connection, "stopped")
        if self._failure is not None:
            raise self._failure

    async def _work(
        self,
        on_ready: Callable[[int, int | None], None],
        bundle: Bundle,
        store: Store,
        journal: Journal,
        pool: WorkerPool,
    ) -> None:
        config, metrics = self._config, self._metrics
        longest_wait = config.priority.longest_wait_minutes * 60
        couriers = [self._courier(one, journal, longest_wait) for one in config.destinations]
        if config.mode == "shadow":
            couriers = []

        def accepted(how: Accepted, origin: Origin) -> None:
            metrics.received.labels(origin.via, str(how)).inc()
            processor.wake()

        def built() -> None:
            for courier in couriers:
                courier.wake()

        intake = Intake(
            store, journal, min_free_bytes=config.limits.min_free_mb * MB, on_accepted=accepted
        )
        committer = Committer(config, journal)
        receiver = Receiver(
            config,
            intake,
            journal,
            on_closed=lambda: processor.wake(),
            on_commitment=committer.wake,
        )

        def image(status: str, seconds: float) -> None:
            metrics.images.labels(status).inc()
            metrics.image_seconds.observe(seconds)

        processor = Processor(
            config,
            bundle,
            Queue(journal, longest_wait),
            store,
            pool,
            open_links=lambda: receiver.open_links,
            on_built=built,
            on_image=image,
        )
        metrics.watch(journal, store, lambda: _values(receiver, pool, couriers))
        files = FileIntake(intake, pool, config.limits)
        sources = [FolderWatch(one, files) for one in config.folders]
        pulls = [WebPull(one, files, journal) for one in config.pull]
        metrics_port = self._open_metrics()
        try:
            port = _listen(receiver, config)
            for part in (*couriers, committer):
                part.start()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop.set)
            tasks = [loop.create_task(self._watched(one.run())) for one in (processor, *sources, *pulls)]
            on_ready(port, metrics_port)
            _notify("READY=1")
            await self._wait(processor, couriers)
            _notify("STOPPING=1")
            await self._finish(receiver, processor, tasks)
            for courier in couriers:
                await asyncio.to_thread(courier.stop, STOP_SECONDS)
            await asyncio.to_thread(committer.stop, 5.0)
        finally:
            receiver.stop()
            metrics.close()

    def _courier(self, one: DestinationConfig, journal: Journal, longest_wait: float) -> Courier:
        def outcome(destination: str, what: str) -> None:
            self._metrics.deliveries.labels(destination, what).inc()

        def delivered(received: float) -> None:
            self._metrics.study_seconds.observe(max(0.0, now() - received))

        return Courier(
            one,
            self._config.retry,
            Outbox(journal, self._config.folder, one.name, longest_wait, on_sent=delivered),
            lambda: open_sender(one, self._config.aet),
            on_outcome=outcome,
        )

    async def _watched(self, work: object) -> None:
        """Run a part; the node stops where one fails."""
        try:
            await work  # type: ignore[misc]
        except JournalError as error:
            self._failure = error
            self._stop.set()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            logger.critical("a part of the node failed", extra={"error": type(error).__name__})
            self._failure = PneumoscopeError(f"a part of the node failed with {type(error).__name__}")
            self._stop.set()
            raise

    async def _wait(self, processor: Processor, couriers: list[Courier]) -> None:
        """Wait for the end, and tell the watchdog that all parts are alive."""
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), BEAT)
            failed = next((one.failure for one in couriers if one.failure is not None), None)
            if failed is not None:
                self._failure = failed
                self._stop.set()
            oldest = min(one.alive for one in (processor, *couriers))
            if time.monotonic() - oldest < STUCK_SECONDS:
                _notify("WATCHDOG=1")

    async def _finish(
        self, receiver: Receiver, processor: Processor, tasks: list[asyncio.Task[None]]
    ) -> None:
        """Let associations, images and results in hand end."""
        logger.info("stopping")
        receiver.refuse_new()
        end = time.monotonic() + STOP_SECONDS
        while receiver.open_links and time.monotonic() < end:
            await asyncio.sleep(0.1)
        receiver.stop()
        processor.stop()
        for task in tasks[1:]:
            task.cancel()
        await asyncio.wait(tasks, timeout=max(1.0, end - time.monotonic()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _open_metrics(self) -> int | None:
        where = self._config.metrics
        if where.port is None:
            return None
        try:
            return self._metrics.serve(where.host, where.port)
        except OSError as error:
            raise DataError(
                f"metrics cannot be served on {where.host}:{where.port} ({error.strerror}); set metrics.port"
            ) from error


def _record_start(journal: Journal, config: NodeConfig, bundle: Bundle) -> None:
    with journal.change() as connection:
        audit.record(
            connection,
            "started",
            version=__version__,
            mode=config.mode,
            bundle=bundle.identity,
            decision_sha256=bundle.manifest.decision_sha256,
        )
        # What was not sent because of mode shadow stays held: a switch to live sends new results only.
        if config.mode == "shadow":
            connection.execute("UPDATE deliveries SET state = 'held' WHERE state = 'pending'")


def _listen(receiver: Receiver, config: NodeConfig) -> int:
    where = config.listen
    try:
        return receiver.start()
    except OSError as error:
        raise DataError(
            f"cannot listen on {where.host}:{where.port} ({error.strerror}); set listen.host and listen.port"
        ) from error


def _values(receiver: Receiver, pool: WorkerPool, couriers: list[Courier]) -> dict[str, float]:
    counts = receiver.counts
    return {
        "associations_open": len(receiver.open_links),
        "associations_accepted": counts["accepted"],
        "associations_rejected": counts["rejected"],
        "connections_rejected": receiver.rejected_connections,
        "datasets_not_stored": counts["not_stored"],
        "workers_alive": pool.alive,
        "destinations_unreachable": sum(not courier.reachable for courier in couriers),
    }


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); without systemd nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or sys.platform == "win32":
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect(address)
        connection.sendall(state.encode())
