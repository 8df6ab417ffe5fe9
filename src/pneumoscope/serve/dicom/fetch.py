"""Other ways in than C-STORE: files in a folder, and images of a DICOMweb server.

Nothing is parsed here: a confined worker finds UIDs and transfer syntax of each file.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import logging
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError, PneumoscopeError
from pneumoscope.image.dicom_header import is_uid
from pneumoscope.image.limits import DEFAULT_LIMITS
from pneumoscope.serve.dicom.background import STUCK_SECONDS, Pulse
from pneumoscope.serve.dicom.config import MB, FolderConfig, Limits, PullConfig
from pneumoscope.serve.dicom.dicomweb import (
    TOTAL,
    DicomWebClient,
    TooLong,
    WebError,
    authorization,
    dicom_parts,
    first_value,
)
from pneumoscope.serve.dicom.intake import Intake, NotAccepted, Origin
from pneumoscope.serve.dicom.journal import Journal, JournalError
from pneumoscope.serve.dicom.store import file_head
from pneumoscope.serve.dicom.tls import client_context
from pneumoscope.serve.workers.pool import JobStopped, WorkerPool

__all__ = ["FileIntake", "FolderWatch", "WebPull"]

logger = logging.getLogger(__name__)

SOP_INSTANCE, STUDY, SERIES = "00080018", "0020000D", "0020000E"
PAGE = 200  # instances that one QIDO request asks for
MOST_TRIES = 3  # of a file that makes a worker crash
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


class FolderWatch:
    """Takes the files of a folder; one is taken once it has the same size and time twice in a row.

    Parameters
    ----------
    config : FolderConfig
    files : FileIntake
    longest : float
        Seconds that one file may take, over which the watchdog does not mind.

    Raises
    ------
    DataError
        If the folder is not there.
    """

    def __init__(self, config: FolderConfig, files: FileIntake, longest: float = STUCK_SECONDS) -> None:
        if not config.path.is_dir():
            raise DataError(f"{config.path}: no such folder; make it, or change 'folders' in node.yaml")
        self._config, self._files = config, files
        self.name, self._pulse = f"folder-{config.name}", Pulse(longest + config.every_seconds)
        self._seen: dict[Path, tuple[int, int]] = {}
        # Files that are done with and could not be moved, as they were then, and where they belong.
        self._not_moved: dict[Path, tuple[tuple[int, int], Path | None]] = {}

    @property
    def stuck(self) -> bool:
        """Whether it has taken too long over a file, or to read the folder."""
        return self._pulse.lost

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self._pulse.beat()
            try:
                await self.look()
            except OSError as error:
                why = error.strerror
                logger.error("folder not read", extra={"caller": self._config.name, "why": why})
            await asyncio.sleep(self._config.every_seconds)

    async def look(self) -> int:
        """Look once; return how many files were taken."""
        taken = 0
        with self._files.open_link("folder", self._config.name) as origin:
            for path, size in await asyncio.to_thread(self._settled):
                taken += await self._take(path, size, origin)
        return taken

    async def _take(self, path: Path, size: int, origin: Origin) -> bool:
        """Take one file and put it out of the way; return whether it was taken."""
        self._pulse.beat()
        done = self._not_moved.get(path)
        if done is not None and done[0] == self._seen[path]:
            await asyncio.to_thread(self._put_away, path, done[1])
            return False
        try:
            if size > self._files.limits.max_dataset_mb * MB:
                raise NotDicom(TOO_LARGE)
            data = await asyncio.to_thread(path.read_bytes)
            if not await asyncio.to_thread(self._as_seen, path):
                return False  # it is being written again: a later look takes it
            await self._files.take(data, origin)
        except (NotAccepted, OSError) as error:
            logger.error("file not stored", extra={"caller": origin.caller, "why": type(error).__name__})
            return False  # it stays where it is
        except PneumoscopeError as error:
            await asyncio.to_thread(self._put_away, path, self._config.bad)
            await self._files.left_out(origin, str(error))
            return False
        await asyncio.to_thread(self._put_away, path, self._config.done)
        return True

    def _put_away(self, path: Path, folder: Path | None) -> None:
        """Move a file, or delete it where no folder is given; try again later where that fails.

        One that was written again meanwhile is another image, and stays.
        """
        if not self._as_seen(path):
            self._not_moved.pop(path, None)
            return
        try:
            if folder is None:
                path.unlink(missing_ok=True)
            else:
                _move(path, folder)
        except OSError as error:  # the next file may be moved all the same
            if path not in self._not_moved:
                logger.error("file not moved", extra={"caller": self._config.name, "why": error.strerror})
            self._not_moved[path] = self._seen[path], folder
        else:
            self._not_moved.pop(path, None)

    def _as_seen(self, path: Path) -> bool:
        """Return whether a file is as it was at the last look."""
        try:
            return _state(path.stat()) == self._seen.get(path)
        except OSError:
            return False

    def _settled(self) -> list[tuple[Path, int]]:
        """Return the files that have not changed since the last look."""
        before, self._seen = self._seen, {}
        found = []
        keep_out = [one for one in (self._config.done, self._config.bad) if one is not None]
        for path in sorted(self._config.path.rglob("*")):
            self._pulse.beat()
            if path.name.startswith(".") or any(path.is_relative_to(one) for one in keep_out):
                continue
            try:
                if path.is_symlink() or not path.is_file():
                    continue
                stat = path.stat()
            except OSError:
                continue
            self._seen[path] = _state(stat)
            if stat.st_size and before.get(path) == self._seen[path]:
                found.append((path, stat.st_size))
        return found


def _state(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


class WebPull:
    """Asks a DICOMweb server for images that the journal does not have, and fetches them.

    Parameters
    ----------
    config : PullConfig
    files : FileIntake
    journal : Journal
    longest : float
        Seconds that one image may take beside the requests, over which the watchdog does not mind.
    """

    def __init__(
        self, config: PullConfig, files: FileIntake, journal: Journal, longest: float = STUCK_SECONDS
    ) -> None:
        self._config, self._files, self._journal = config, files, journal
        waits = config.every_seconds + (TOTAL + 2) * config.timeout
        self.name, self._pulse = f"pull-{config.name}", Pulse(longest + waits)
        self._client = DicomWebClient(
            config.url,
            tls=None if config.tls is None else client_context(config.tls),
            server_name="" if config.tls is None else config.tls.server_name,
            authorization=authorization(config.token_file, config.password_file),
            timeout=config.timeout,
        )
        self._given_up: set[str] = set()
        self._stopped: Counter[str] = Counter()

    @property
    def stuck(self) -> bool:
        """Whether it has taken too long over an image or a query."""
        return self._pulse.lost

    async def run(self) -> None:
        """Look until cancelled."""
        try:
            while True:
                self._pulse.beat()
                try:
                    await self.look()
                except WebError as error:
                    caller = self._config.name
                    logger.warning("server not reached", extra={"caller": caller, "why": str(error)})
                except JournalError as error:
                    if not error.passing:
                        raise
                    logger.error("journal not read", extra={"why": str(error)})
                await asyncio.sleep(self._config.every_seconds)
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    async def look(self) -> int:
        """Look once; return how many images were taken.

        Raises
        ------
        WebError
            If the server does not respond.
        """
        taken = 0
        found = await asyncio.to_thread(self._new_instances)
        for _, images in itertools.groupby(found, key=lambda uids: uids[0]):  # study by study
            with self._files.open_link("web", self._config.name) as origin:
                for study, series, instance in images:
                    taken += await self._take(study, series, instance, origin)
        return taken

    async def _take(self, study: str, series: str, instance: str, origin: Origin) -> bool:
        """Fetch one image; return whether it was taken."""
        self._pulse.beat()
        try:
            data = await asyncio.to_thread(self._fetch, study, series, instance)
            await self._files.take(data, origin)
        except WebError as error:  # others may be there
            logger.warning("image not fetched", extra={"caller": origin.caller, "why": str(error)})
            return False
        except NotAccepted as error:
            logger.error("image not stored", extra={"caller": origin.caller, "why": str(error)})
            return False
        except PneumoscopeError as error:
            self._stopped[instance] += 1
            if isinstance(error, JobStopped) and self._stopped[instance] < MOST_TRIES:
                return False  # it may have been the machine; once more at the next look
            self._given_up.add(instance)
            await self._files.left_out(origin, str(error), instance)
            return False
        return True

    def _new_instances(self) -> list[tuple[str, str, str]]:
        """Return what the server lists and the journal does not have, study by study."""
        today = datetime.datetime.now().astimezone().date()
        first = today - datetime.timedelta(days=self._config.days - 1)
        found: dict[str, tuple[str, str, str]] = {}
        for modality in self._config.modalities:
            query = [("StudyDate", f"{first:%Y%m%d}-{today:%Y%m%d}"), ("Modality", modality)]
            for one in self._listed(query):
                uids = tuple(first_value(one, tag) for tag in (STUDY, SERIES, SOP_INSTANCE))
                if all(map(is_uid, uids)):
                    found[uids[2]] = (uids[0], uids[1], uids[2])
        return sorted(uids for instance, uids in found.items() if not self._known(instance))

    def _listed(self, query: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        """Yield the rows of all pages: a server may give fewer than it is asked for at a time."""
        offset, seen = 0, set[str]()
        while True:
            self._pulse.beat()
            page = [("limit", str(PAGE)), ("offset", str(offset))]
            response = self._client.request("GET", "/instances", query=[*query, *page])
            rows = response.json() if response.status == 200 else None
            if response.status not in {200, 204}:
                raise WebError(f"HTTP status {response.status}")
            if not isinstance(rows, list):
                return
            listed = [row for row in rows if isinstance(row, dict)]
            new = [row for row in listed if first_value(row, SOP_INSTANCE) not in seen]
            if not new:  # the end, or a server that does not know `offset`
                return
            seen.update(first_value(row, SOP_INSTANCE) for row in new)
            yield from new
            offset += len(rows)

    def _known(self, instance: str) -> bool:
        if instance in self._given_up:
            return True
        return self._journal.value("SELECT 1 FROM instances WHERE sop_instance = ?", (instance,)) is not None

    def _fetch(self, study: str, series: str, instance: str) -> bytes:
        """Return the file of an image; raise `NotDicom` where fetching it again does not help."""
        most = min(self._files.limits.max_dataset_mb * MB, 10 * DEFAULT_LIMITS.max_bytes)
        try:
            response = self._client.request(
                "GET",
                f"/studies/{study}/series/{series}/instances/{instance}",
                headers={"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'},
                max_bytes=most + PIECE,
            )
        except TooLong as error:
            raise NotDicom(TOO_LARGE) from error
        if response.status != 200:
            raise WebError(f"HTTP status {response.status}")
        parts = dicom_parts(response.headers.get("content-type", ""), response.body)
        if not parts or len(parts[0]) > most:
            raise NotDicom(TOO_LARGE if parts else "the server gave no DICOM file")
        return parts[0]


def _move(path: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    if target.exists():
        target = folder / f"{path.stem}-{secrets.token_hex(4)}{path.suffix}"
    shutil.move(path, target)  # also to another file system
