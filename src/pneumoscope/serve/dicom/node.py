"""The node: receiver, workers, couriers and everything else, from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

from pneumoscope import __version__
from pneumoscope.errors import DataError, PneumoscopeError
from pneumoscope.model.bundle import Bundle, load_bundle
from pneumoscope.parallel import available_cpus
from pneumoscope.serve.dicom import audit
from pneumoscope.serve.dicom.background import STUCK_SECONDS, stop_together
from pneumoscope.serve.dicom.commitment import Committer
from pneumoscope.serve.dicom.config import MB, DestinationConfig, NodeConfig
from pneumoscope.serve.dicom.courier import Courier
from pneumoscope.serve.dicom.file_intake import FileIntake
from pneumoscope.serve.dicom.folder_watch import FolderWatch
from pneumoscope.serve.dicom.intake import Accepted, Intake, Origin
from pneumoscope.serve.dicom.journal import JOURNAL_FILE, Journal, JournalError, now
from pneumoscope.serve.dicom.maintenance import REBUILD_BEGUN, REBUILD_ENDED
from pneumoscope.serve.dicom.metrics import NodeMetrics
from pneumoscope.serve.dicom.outbox import Outbox
from pneumoscope.serve.dicom.processor import Processor
from pneumoscope.serve.dicom.purging import sweep
from pneumoscope.serve.dicom.queue import Queue
from pneumoscope.serve.dicom.routing import priority_on_arrival
from pneumoscope.serve.dicom.running import lock_folder, mark_ready
from pneumoscope.serve.dicom.scp import Receiver
from pneumoscope.serve.dicom.senders import open_sender
from pneumoscope.serve.dicom.store import Store
from pneumoscope.serve.dicom.tls import client_context
from pneumoscope.serve.dicom.watchdog import Watchdog, notify
from pneumoscope.serve.dicom.web_pull import WebPull
from pneumoscope.serve.workers.pool import WorkerLimits, WorkerPool

__all__ = ["OnReady", "run_node"]

logger = logging.getLogger(__name__)

WORKER_MODULE = "pneumoscope.serve.dicom.worker"
STOP_SECONDS = 60.0  # for associations and images in hand when the node stops, and then for objects
BEAT = 5.0
OnReady = Callable[[int, int | None], None]


def run_node(config: NodeConfig, on_ready: OnReady = lambda _port, _metrics: None) -> None:
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

    async def run() -> None:
        bundle = load_bundle(config.bundle, allow_draft=False)
        bundle.manifest.operating_point(config.process.operating_point)
        os.umask(0o077)  # everything in the folder is for the node's user only
        store = Store(config.folder)
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(lock_folder(config.folder, config.mode))
            journal = _opened_journal(store)
            stack.callback(journal.close)
            left = store.clear_incoming()
            swept = sweep(journal, store).files
            _record_start(journal, config, bundle)
            facts = {"bundle": bundle.identity, "mode": config.mode, "removed": left, "swept": swept}
            logger.info("starting", extra=facts)

            def ready(port: int, metrics: int | None) -> None:
                mark_ready(lock)
                on_ready(port, metrics)

            await _Node(config, bundle, store, journal).run(ready)
            with journal.change() as connection:
                audit.record(connection, "stopped")

    asyncio.run(run())


class _Node:
    """The parts of a node, and what they tell each other."""

    def __init__(self, config: NodeConfig, bundle: Bundle, store: Store, journal: Journal) -> None:
        self._config, self._journal = config, journal
        self._stop = asyncio.Event()
        self._failure: PneumoscopeError | None = None
        metrics = self._metrics = NodeMetrics()
        limits, longest_wait = config.limits, config.priority.longest_wait_minutes * 60
        _check_links(config)
        self._pool = _worker_pool(config, bundle, metrics)
        intake = Intake(
            store,
            journal,
            min_free_bytes=limits.min_free_mb * MB,
            on_accepted=self._on_accepted,
            priority_of=lambda caller: priority_on_arrival(caller, config.rules),
        )
        files = FileIntake(intake, self._pool, limits, on_left_out=self._on_left_out)
        self._committer = Committer(config, journal)
        self._receiver = Receiver(
            config, intake, journal, on_closed=self._on_closed, on_commitment=self._committer.wake
        )
        queue = Queue(journal, longest_wait)
        queue.use_bundle(bundle.identity)
        self._processor = Processor(
            config,
            bundle,
            queue,
            store,
            self._pool,
            open_links=lambda: self._receiver.open_links | files.open_links,
            on_built=self._on_built,
            on_image=self._on_image,
        )
        live = config.mode == "live"
        self._couriers = [self._courier(one, longest_wait) for one in config.destinations if live]
        longest = STUCK_SECONDS + 3 * config.process.seconds
        self._sources: list[FolderWatch | WebPull] = [
            *(FolderWatch(one, files, longest) for one in config.folders),
            *(WebPull(one, files, journal, longest) for one in config.pull),
        ]
        self._watchdog = Watchdog(
            [self._receiver, self._committer, *self._couriers, self._processor, *self._sources]
        )
        destinations = [one.name for one in config.destinations]
        metrics.watch(journal, store, self._values, callers=config.senders, destinations=destinations)

    async def run(self, on_ready: OnReady) -> None:
        """Start, work, stop."""
        await self._pool.start()
        try:
            metrics_port = self._open_metrics()
            port = self._listen()
            for courier in self._couriers:
                courier.start()
            self._committer.start()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop.set)
            work = [self._processor.run(), *(source.run() for source in self._sources)]
            tasks = [loop.create_task(self._watched(one)) for one in work]
            on_ready(port, metrics_port)
            notify("READY=1")
            await self._wait()
            notify("STOPPING=1")
            await self._finish(tasks)
        finally:
            self._receiver.stop()
            self._metrics.close()
            await self._pool.stop()
        if self._failure is not None:
            raise self._failure

    def _on_accepted(self, how: Accepted, origin: Origin) -> None:
        self._metrics.received.labels(origin.via, str(how)).inc()
        self._processor.wake()

    def _on_left_out(self, origin: Origin) -> None:
        self._metrics.received.labels(origin.via, "left_out").inc()

    def _on_closed(self) -> None:
        self._processor.wake()

    def _on_built(self) -> None:
        for courier in self._couriers:
            courier.wake()

    def _on_image(self, status: str, seconds: float) -> None:
        self._metrics.images.labels(status).inc()
        self._metrics.image_seconds.observe(seconds)

    def _courier(self, one: DestinationConfig, longest_wait: float) -> Courier:
        def outcome(destination: str, what: str) -> None:
            self._metrics.deliveries.labels(destination, what).inc()

        def delivered(received: float) -> None:
            self._metrics.study_seconds.observe(max(0.0, now() - received))

        return Courier(
            one,
            self._config.retry,
            Outbox(self._journal, self._config.folder, one.name, longest_wait, on_sent=delivered),
            lambda: open_sender(one, self._config.aet),
            on_outcome=outcome,
        )

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a part; the node stops where one fails."""
        try:
            await work
        except PneumoscopeError as error:
            logger.critical("a part of the node failed", extra={"why": str(error)})
            self._failure = error
        except asyncio.CancelledError:
            raise
        except Exception as error:
            logger.critical("a part of the node failed", extra={"error": type(error).__name__})
            self._failure = PneumoscopeError(f"a part of the node failed with {type(error).__name__}")
            raise
        finally:
            self._stop.set()

    async def _wait(self) -> None:
        """Wait for the end, or for the failure of a part, and tell the watchdog that all parts are alive."""
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), BEAT)
            failures = [self._receiver.failure, self._committer.failure]
            failures += [courier.failure for courier in self._couriers]
            failed = next((failure for failure in failures if failure is not None), None)
            if failed is not None:
                self._failure = failed
                self._stop.set()
            self._watchdog.look()

    async def _finish(self, tasks: list[asyncio.Task[None]]) -> None:
        """Let associations, images, results and objects in hand end."""
        logger.info("stopping")
        self._receiver.refuse_new()
        end = time.monotonic() + STOP_SECONDS
        while self._receiver.open_links and time.monotonic() < end:
            await asyncio.sleep(0.1)
        self._receiver.stop()
        self._processor.stop()
        for task in tasks[1:]:
            task.cancel()
        await asyncio.wait(tasks, timeout=max(1.0, end - time.monotonic()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(stop_together, [*self._couriers, self._committer], STOP_SECONDS)

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

    def _listen(self) -> int:
        where = self._config.listen
        try:
            return self._receiver.start()
        except OSError as error:
            raise DataError(
                f"cannot listen on {where.host}:{where.port} ({error.strerror}); set listen.host and "
                "listen.port"
            ) from error

    def _values(self) -> dict[str, float]:
        counts = self._receiver.counts
        return {
            "associations_open": len(self._receiver.open_links),
            "associations_accepted": counts["accepted"],
            "associations_rejected": counts["rejected"],
            "connections_rejected": self._receiver.rejected_connections,
            "datasets_not_stored": counts["not_stored"],
            "workers_alive": self._pool.alive,
            "destinations_unreachable": sum(not courier.reachable for courier in self._couriers),
        }


def _opened_journal(store: Store) -> Journal:
    """Open the journal; raise where there are images that it cannot know."""
    fix = "run 'pneumoscope dicom rebuild', which makes a new journal from the stored images"
    path = store.folder / JOURNAL_FILE
    if not path.exists() and any(not name.startswith("results/") for name, _ in store.files()):
        raise JournalError(
            f"{path}: the journal is missing, but there are stored images; restore it, or {fix}"
        )
    journal = Journal(store.folder, create=True, check=True)
    last = journal.value(
        "SELECT event FROM audit WHERE event IN (?, ?) ORDER BY seq DESC LIMIT 1",
        (REBUILD_BEGUN, REBUILD_ENDED),
    )
    if last == REBUILD_BEGUN:
        journal.close()
        raise JournalError(f"{path}: making it anew was cut off; {fix}")
    return journal


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
        # What was not sent because of mode shadow stays held: a switch to live sends new results only, and
        # what retracts results that had arrived before.
        if config.mode == "shadow":
            connection.execute(
                "UPDATE deliveries SET state = 'held' WHERE state = 'pending' AND object NOT IN (SELECT o.id"
                " FROM objects o JOIN results r ON r.id = o.result WHERE r.state = 'retracted')"
            )


def _check_links(config: NodeConfig) -> None:
    """Find a certificate or token that is missing before the node starts."""
    for one in config.destinations:
        open_sender(one, config.aet).close()
    for tls in (caller.tls for caller in config.callers if caller.tls is not None):
        client_context(tls)


def _worker_pool(config: NodeConfig, bundle: Bundle, metrics: NodeMetrics) -> WorkerPool:
    return WorkerPool(
        bundle.path,
        workers=config.process.workers or available_cpus(),
        limits=WorkerLimits(config.process.seconds, config.process.memory_mb * MB),
        on_restart=metrics.restarts.inc,
        module=WORKER_MODULE,
    )
