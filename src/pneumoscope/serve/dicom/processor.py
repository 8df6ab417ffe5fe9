"""Processing: images through the confined workers, complete studies into results, results into objects."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

from pneumoscope.errors import PneumoscopeError
from pneumoscope.model.bundle import Bundle
from pneumoscope.serve.dicom.background import STUCK_SECONDS, Pulse
from pneumoscope.serve.dicom.config import MB, NodeConfig
from pneumoscope.serve.dicom.journal import PRIORITIES, JournalError
from pneumoscope.serve.dicom.queue import BuiltObject, Outcome, Queue, QueuedImage, QueuedResult
from pneumoscope.serve.dicom.store import Store, uid_hash
from pneumoscope.serve.workers.pool import JobStopped, WorkerPool

__all__ = ["Processor"]

logger = logging.getLogger(__name__)

TICK = 0.1  # seconds between looks at the studies in hand
LOOK_AGAIN = 1.0  # seconds after which work is looked for even if nothing was announced


class Processor:
    """Takes work from the journal for as long as it runs. All its methods belong to one event loop.

    Parameters
    ----------
    config : NodeConfig
    bundle : Bundle
    queue : Queue
    store : Store
    pool : WorkerPool
        Of `pneumoscope.serve.dicom.worker`.
    open_links : callable
        Returns the links that may still bring images.
    on_built : callable
        Called when the objects of a result are stored.
    on_image : callable
        Called with the status of each image, or ``parked``, ``ignored`` or ``unreportable``, and its seconds.
    """

    def __init__(
        self,
        config: NodeConfig,
        bundle: Bundle,
        queue: Queue,
        store: Store,
        pool: WorkerPool,
        *,
        open_links: Callable[[], frozenset[str]],
        on_built: Callable[[], None] = lambda: None,
        on_image: Callable[[str, float], None] = lambda _status, _seconds: None,
    ) -> None:
        self.name = "processor"
        self._config, self._bundle, self._queue = config, bundle, queue
        self._store, self._pool = store, pool
        self._open_links, self._on_built, self._on_image = open_links, on_built, on_image
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._images: set[int] = set()
        self._results: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        # When something last happened to a study, by the clock that no one sets.
        self._moved: dict[str, float] = {}
        self._link_closed: dict[str, float] = {}
        self._seen_links: frozenset[str] = frozenset()
        self._stopping = False
        # What is in hand waits for a worker, and for one that is replaced.
        self._longest = STUCK_SECONDS + 3 * config.process.seconds
        self._pulse = Pulse()
        self._begun: dict[asyncio.Task[None], float] = {}

    @property
    def stuck(self) -> bool:
        """Whether it has not looked for work for too long, or has something in hand for too long."""
        oldest = min(self._begun.values(), default=math.inf)
        return self._pulse.lost or time.monotonic() - oldest > self._longest

    def wake(self) -> None:
        """Say that there may be work; safe from any thread."""
        self._loop.call_soon_threadsafe(self._wake.set)

    async def run(self) -> None:
        """Work until `stop`; then finish what is in hand.

        Raises
        ------
        JournalError
            If the journal cannot be used any more.
        """
        while not self._stopping:
            self._pulse.beat()
            self._wake.clear()
            try:
                # First what has ended: its place is taken by the next image at once, not after the next wait.
                for task in [task for task in self._tasks if task.done()]:
                    self._tasks.discard(task)
                    task.result()
                waiting = self._start_work()
            except JournalError as error:
                if not error.passing:
                    raise
                logger.error("journal not written", extra={"why": str(error)})
                await asyncio.sleep(LOOK_AGAIN)  # what was not recorded is done again
                continue
            try:
                await asyncio.wait_for(self._wake.wait(), TICK if waiting else LOOK_AGAIN)
            except TimeoutError:
                continue
        await asyncio.gather(*self._tasks)

    def stop(self) -> None:
        """Take no more work."""
        self._stopping = True
        self._wake.set()

    def _start_work(self) -> bool:
        """Begin as much as there are workers; return whether a study waits for its time."""
        waiting = self._compose()
        while len(self._tasks) < self._pool.workers:
            result = self._queue.next_result(self._results)
            # A result that hangs is tried again only while no image waits.
            first = result is not None and not result.deferred
            image = None if first else self._queue.next_image(self._images)
            if image is not None:
                self._images.add(image.id)
                self._begin(self._predict(image))
            elif result is not None:
                self._results.add(result.id)
                self._begin(self._build(result))
            else:
                break
        return waiting

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        self._begun[task] = time.monotonic()
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._begun.pop(task, None)
        self._wake.set()

    async def _predict(self, image: QueuedImage) -> None:
        process = self._config.process
        name = uid_hash(image.sop_instance)[:12]
        job = {
            "kind": "predict",
            "name": name,
            "caller": image.caller,
            "sop_class": image.sop_class,
            "sop_instance": image.sop_instance,
            "rules": [rule.model_dump(mode="json") for rule in self._config.rules],
            "destinations": [one.name for one in self._config.destinations],
            "operating_point": process.operating_point,
            "max_inflated": self._config.limits.max_inflated_mb * MB,
        }
        began = time.monotonic()
        try:
            data = await asyncio.to_thread((self._store.folder / image.file).read_bytes)
            head, pieces = await self._pool.run(job, data)
        except (JobStopped, OSError) as error:
            why = str(error) if isinstance(error, JobStopped) else "the stored file cannot be read"
            parked = await asyncio.to_thread(self._queue.stopped, image, why, process.tries)
            logger.warning("image stopped", extra={"instance": name, "why": why, "parked": parked})
            if parked:
                self._on_image("parked", time.monotonic() - began)
        else:
            await asyncio.to_thread(self._keep, image, head, pieces, time.monotonic() - began)
        finally:
            self._images.discard(image.id)

    def _keep(self, image: QueuedImage, head: dict[str, Any], pieces: list[bytes], seconds: float) -> None:
        """Record what a worker found in an image."""
        facts: dict[str, Any] = head.get("facts") or {}
        why = head.get("error") or head.get("ignore")
        study = str(facts.get("study_uid") or "")
        if not why and not study:
            why = "it has no Study Instance UID"
        if why:
            state = "ignored" if "ignore" in head and "error" not in head else "unreportable"
            self._queue.ended(image, state, why, facts)
            self._log_image(image, state, seconds)
            return
        row, route = head["row"], head["route"]
        target = self._bundle.manifest.target.name
        heatmap = head["heatmap"] or {}
        outcome = Outcome(
            facts=facts,
            destinations=route["destinations"],
            priority=PRIORITIES[route["priority"]],
            row=row,
            positive=None if row["decision"] is None else row["decision"] == target,
            inputs=head["inputs"],
            seconds=seconds,
            finding=heatmap.get("finding"),
            region=heatmap.get("region"),
            size=head["size"],
            heatmap=pieces[0],
            preview=pieces[1],
        )
        self._queue.predicted(image, outcome, self._bundle.identity)
        self._moved[study] = time.monotonic()
        self._log_image(image, row["status"], seconds)

    def _log_image(self, image: QueuedImage, status: str, seconds: float) -> None:
        name = uid_hash(image.sop_instance)[:12]
        logger.info("processed", extra={"instance": name, "status": status, "seconds": round(seconds, 3)})
        self._on_image(status, seconds)

    def _compose(self) -> bool:
        """Make results of the studies that are complete; return whether some are not."""
        studies = self._queue.studies_in_hand()
        now, open_links = time.monotonic(), self._open_links()
        for link in self._seen_links - open_links:
            self._link_closed[link] = now
        self._seen_links = open_links
        if not studies:
            self._moved.clear()
            self._link_closed.clear()
            return False
        in_hand = {link for images in studies.values() for _, link in images}
        self._link_closed = {link: at for link, at in self._link_closed.items() if link in in_hand}
        queued = self._queue.links_in_hand()
        busy = open_links | queued
        # A rebuild gives a study the same result as before only if no image of it is missing.
        kept_open = {link for link in in_hand & queued if self._queue.is_rebuilding(link)}
        process, waiting = self._config.process, False
        positive = PRIORITIES[self._config.priority.positive]
        for study, images in studies.items():
            links = {link for _, link in images}
            last = max(
                self._moved.setdefault(study, now), *(self._link_closed.get(link, 0.0) for link in links)
            )
            quiet = now - last
            complete = quiet >= process.quiet_seconds and not links & busy
            if complete or (quiet >= process.longest_open_seconds and not links & kept_open):
                self._queue.compose(study, self._bundle.identity, positive)
                self._moved.pop(study, None)
            else:
                waiting = True
        return waiting

    async def _build(self, result: QueuedResult) -> None:
        tries = self._config.process.tries
        for image in result.images:
            image["path"] = str(self._store.folder / image["path"])
        job = {
            "kind": "build",
            "study": result.study_uid,
            "made": result.made,
            "revision": result.revision,
            "options": self._config.results.model_dump(),
            "images": result.images,
            "max_inflated": self._config.limits.max_inflated_mb * MB,
        }
        name = uid_hash(result.study_uid)[:12]
        try:
            head, files = await self._pool.run(job, *result.pieces)
            if "error" in head:
                raise PneumoscopeError(head["error"])
            destinations = await asyncio.to_thread(self._store_objects, result, head["objects"], files)
        except OSError as error:  # says nothing against the result
            logger.error("result not stored", extra={"study": name, "why": error.strerror})
            await asyncio.sleep(LOOK_AGAIN)
        except JournalError:
            raise
        except PneumoscopeError as error:
            why, final = str(error), not isinstance(error, JobStopped)
            failed = await asyncio.to_thread(
                self._queue.not_built, result, why, most_tries=tries, final=final
            )
            logger.error("result not built", extra={"study": name, "why": why, "given_up": failed})
        else:
            logger.info(
                "result built", extra={"study": name, "objects": len(files), "destinations": destinations}
            )
            self._on_built()
        finally:
            self._results.discard(result.id)

    def _store_objects(
        self, result: QueuedResult, described: list[dict[str, str]], files: list[bytes]
    ) -> list[str]:
        objects = []
        for one, content in zip(described, files, strict=True):
            name = self._store.result_name(one["sop_instance"])
            self._store.write(name, content)
            objects.append(BuiltObject(**one, file=name))
        return self._queue.built(result, objects, live=self._config.mode == "live")
