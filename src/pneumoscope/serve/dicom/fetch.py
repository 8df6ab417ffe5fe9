"""Other ways in than C-STORE: files in a folder, and images of a DICOMweb server.

Nothing is parsed here: a confined worker finds UIDs and transfer syntax of each file.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError, PneumoscopeError
from pneumoscope.image.limits import DEFAULT_LIMITS
from pneumoscope.serve.dicom.config import MB, FolderConfig, Limits, PullConfig
from pneumoscope.serve.dicom.dicomweb import DicomWebClient, WebError, authorization, first_value
from pneumoscope.serve.dicom.intake import Intake, NotAccepted, Origin
from pneumoscope.serve.dicom.journal import Journal
from pneumoscope.serve.dicom.store import file_head
from pneumoscope.serve.dicom.tls import client_context
from pneumoscope.serve.workers.pool import WorkerPool

__all__ = ["FileIntake", "FolderWatch", "WebPull", "dicom_parts"]

logger = logging.getLogger(__name__)

SOP_INSTANCE, STUDY, SERIES = "00080018", "0020000D", "0020000E"
PAGE = 200  # instances of one QIDO response
PIECE = 1 << 20


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
    """

    def __init__(self, intake: Intake, pool: WorkerPool, limits: Limits) -> None:
        self._intake, self._pool, self.limits = intake, pool, limits

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

    Raises
    ------
    DataError
        If the folder is not there.
    """

    def __init__(self, config: FolderConfig, files: FileIntake) -> None:
        if not config.path.is_dir():
            raise DataError(f"{config.path}: no such folder; make it, or change 'folders' in node.yaml")
        self._config, self._files = config, files
        self._seen: dict[Path, tuple[int, int]] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except OSError as error:
                why = error.strerror
                logger.error("folder not read", extra={"caller": self._config.name, "why": why})
            await asyncio.sleep(self._config.every_seconds)

    async def look(self) -> int:
        """Look once; return how many files were taken."""
        link, taken = f"folder-{time.time_ns():x}", 0
        for path, size in await asyncio.to_thread(self._settled):
            origin = Origin("folder", self._config.name, link)
            try:
                if size > self._files.limits.max_dataset_mb * MB:
                    raise NotDicom("it is larger than the limit")
                data = await asyncio.to_thread(path.read_bytes)
                await self._files.take(data, origin)
            except (NotAccepted, OSError) as error:
                logger.error("file not stored", extra={"caller": origin.caller, "why": type(error).__name__})
                continue  # it stays where it is
            except PneumoscopeError as error:
                logger.warning("file set aside", extra={"caller": origin.caller, "why": str(error)})
                await asyncio.to_thread(_move, path, self._config.bad)
                continue
            taken += 1
            if self._config.done is None:
                await asyncio.to_thread(path.unlink, missing_ok=True)
            else:
                await asyncio.to_thread(_move, path, self._config.done)
        return taken

    def _settled(self) -> list[tuple[Path, int]]:
        """Return the files that have not changed since the last look."""
        before, self._seen = self._seen, {}
        found = []
        keep_out = [one for one in (self._config.done, self._config.bad) if one is not None]
        for path in sorted(self._config.path.rglob("*")):
            if path.name.startswith(".") or any(path.is_relative_to(one) for one in keep_out):
                continue
            try:
                if path.is_symlink() or not path.is_file():
                    continue
                stat = path.stat()
            except OSError:
                continue
            self._seen[path] = (stat.st_size, stat.st_mtime_ns)
            if stat.st_size and before.get(path) == self._seen[path]:
                found.append((path, stat.st_size))
        return found


class WebPull:
    """Asks a DICOMweb server for images that the journal does not have, and fetches them.

    Parameters
    ----------
    config : PullConfig
    files : FileIntake
    journal : Journal
    """

    def __init__(self, config: PullConfig, files: FileIntake, journal: Journal) -> None:
        self._config, self._files, self._journal = config, files, journal
        self._client = DicomWebClient(
            config.url,
            tls=None if config.tls is None else client_context(config.tls),
            authorization=authorization(config.token_file, config.password_file),
            timeout=config.timeout,
        )
        self._given_up: set[str] = set()

    async def run(self) -> None:
        """Look until cancelled."""
        try:
            while True:
                try:
                    await self.look()
                except WebError as error:
                    caller = self._config.name
                    logger.warning("server not reached", extra={"caller": caller, "why": str(error)})
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
        link, taken = f"web-{time.time_ns():x}", 0
        origin = Origin("web", self._config.name, link)
        for study, series, instance in await asyncio.to_thread(self._new_instances):
            try:
                data = await asyncio.to_thread(self._fetch, study, series, instance)
            except WebError as error:  # others may be there
                logger.warning("image not fetched", extra={"caller": origin.caller, "why": str(error)})
                continue
            try:
                if data is None:
                    raise NotDicom("the server gave no DICOM file")
                await self._files.take(data, origin)
                taken += 1
            except NotAccepted as error:
                logger.error("image not stored", extra={"caller": origin.caller, "why": str(error)})
            except PneumoscopeError as error:
                self._given_up.add(instance)
                logger.warning("image left out", extra={"caller": origin.caller, "why": str(error)})
        return taken

    def _new_instances(self) -> list[tuple[str, str, str]]:
        today = datetime.datetime.now().astimezone().date()
        first = today - datetime.timedelta(days=self._config.days - 1)
        found: dict[str, tuple[str, str, str]] = {}
        for modality in self._config.modalities:
            query = [("StudyDate", f"{first:%Y%m%d}-{today:%Y%m%d}"), ("Modality", modality)]
            for one in self._listed(query):
                uids = tuple(first_value(one, tag) for tag in (STUDY, SERIES, SOP_INSTANCE))
                if all(re.fullmatch(r"[0-9.]{1,64}", uid) for uid in uids):
                    found[uids[2]] = (uids[0], uids[1], uids[2])
        return [uids for instance, uids in found.items() if not self._known(instance)]

    def _listed(self, query: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        offset = 0
        while True:
            page = [("limit", str(PAGE)), ("offset", str(offset))]
            response = self._client.request("GET", "/instances", query=[*query, *page])
            rows = response.json() if response.status == 200 else None
            if response.status not in {200, 204}:
                raise WebError(f"HTTP status {response.status}")
            if not isinstance(rows, list):
                return
            yield from (row for row in rows if isinstance(row, dict))
            offset += len(rows)
            if len(rows) < PAGE:
                return

    def _known(self, instance: str) -> bool:
        if instance in self._given_up:
            return True
        return self._journal.value("SELECT 1 FROM instances WHERE sop_instance = ?", (instance,)) is not None

    def _fetch(self, study: str, series: str, instance: str) -> bytes | None:
        response = self._client.request(
            "GET",
            f"/studies/{study}/series/{series}/instances/{instance}",
            headers={"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'},
            max_bytes=min(self._files.limits.max_dataset_mb * MB, 10 * DEFAULT_LIMITS.max_bytes) + PIECE,
        )
        if response.status != 200:
            raise WebError(f"HTTP status {response.status}")
        parts = dicom_parts(response.headers.get("content-type", ""), response.body)
        return parts[0] if parts else None


def dicom_parts(content_type: str, body: bytes) -> list[bytes]:
    """Return the parts of a multipart/related body (PS3.18 8.6.1.2); none where it is not one."""
    match = re.search(r'boundary="?([^";,\s]+)"?', content_type)
    if not content_type.lower().startswith("multipart/related") or not match:
        return []
    delimiter = b"\r\n--" + match[1].encode()
    pieces = (b"\r\n" + body).split(delimiter)
    parts = []
    for piece in pieces[1:]:
        if piece.startswith(b"--"):
            break
        _, found, content = piece.partition(b"\r\n\r\n")
        if found:
            parts.append(content)
    return parts


def _move(path: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    if target.exists():
        target = folder / f"{path.stem}-{secrets.token_hex(4)}{path.suffix}"
    path.replace(target)
