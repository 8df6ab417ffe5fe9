"""Files taken in, as datasets that are received by C-STORE are.

Nothing is parsed here: a confined worker finds UIDs and transfer syntax of each file.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pneumoscope.errors import PneumoscopeError
from pneumoscope.serve.dicom.config import MB, Limits
from pneumoscope.serve.dicom.intake import Intake, Origin
from pneumoscope.serve.dicom.journal import JournalError
from pneumoscope.serve.dicom.store import file_head
from pneumoscope.serve.workers.pool import WorkerPool

__all__ = ["PIECE", "TOO_LARGE", "FileIntake", "NotDicom"]

logger = logging.getLogger(__name__)

PIECE = 1 << 20
TOO_LARGE = "it is larger than the limit"


class NotDicom(PneumoscopeError):
    """A file that is no DICOM image; sending it again does not help."""


class FileIntake:
    """Takes DICOM files in, as `Intake` takes datasets.

    Parameters
    ----------
    intake : Intake
    pool : WorkerPool
        Of `pneumoscope.serve.dicom.worker`.
    limits : Limits
    on_left_out : callable
        Called with the origin of each file that is not taken and will not be tried again.
    """

    def __init__(
        self,
        intake: Intake,
        pool: WorkerPool,
        limits: Limits,
        on_left_out: Callable[[Origin], None] = lambda _origin: None,
    ) -> None:
        self._intake, self._pool, self.limits = intake, pool, limits
        self._on_left_out = on_left_out
        self._links: set[str] = set()

    @property
    def open_links(self) -> frozenset[str]:
        """Links that may still bring images."""
        return frozenset(self._links)

    @contextmanager
    def open_link(self, via: str, caller: str) -> Iterator[Origin]:
        """Hold a link open while files are taken that belong together; give their origin."""
        link = f"{via}-{time.time_ns():x}"
        self._links.add(link)
        try:
            yield Origin(via, caller, link)
        finally:
            self._links.discard(link)

    async def left_out(self, origin: Origin, why: str, sop_instance: str = "") -> None:
        """Record a file that is not taken and will not be tried again."""
        logger.warning("file left out", extra={"caller": origin.caller, "why": why})
        self._on_left_out(origin)
        try:
            await asyncio.to_thread(self._intake.left_out, origin, why, sop_instance)
        except JournalError as error:  # what is received next finds out whether the journal works
            logger.error("journal not written", extra={"why": str(error)})

    async def take(self, data: bytes, origin: Origin) -> None:
        """Store and journal the content of a file.

        Raises
        ------
        NotDicom
            If it is no DICOM image.
        NotAccepted
            If disk or journal do not allow it.
        JobStopped
            If the worker was stopped over it.
        """
        job = {"kind": "head", "name": "file", "max_inflated": self.limits.max_inflated_mb * MB}
        head, _ = await self._pool.run(job, data)
        if "error" in head:
            raise NotDicom(head["error"])
        await asyncio.to_thread(self._keep, data, head, origin)

    def _keep(self, data: bytes, head: dict[str, Any], origin: Origin) -> None:
        sop_class, sop_instance = head["sop_class"], head["sop_instance"]
        try:
            start = file_head(sop_class, sop_instance, head["transfer_syntax"], origin.caller)
        except ValueError as error:
            raise NotDicom("its UIDs are none") from error
        received = self._intake.store.receive(start, self.limits.max_dataset_mb * MB)
        view = memoryview(data)[head["offset"] :]
        for begin in range(0, len(view), PIECE):
            received.write(bytes(view[begin : begin + PIECE]))
        self._intake.accept(received, sop_class, sop_instance, origin)
