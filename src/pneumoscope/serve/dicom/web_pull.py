"""Images that a DICOMweb server has."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pneumoscope.errors import PneumoscopeError
from pneumoscope.image.dicom_header import is_uid
from pneumoscope.image.limits import DEFAULT_LIMITS
from pneumoscope.serve.dicom.background import STUCK_SECONDS, Pulse
from pneumoscope.serve.dicom.config import MB, PullConfig
from pneumoscope.serve.dicom.dicomweb import (
    TOTAL,
    DicomWebClient,
    TooLong,
    WebError,
    authorization,
    dicom_parts,
    first_value,
)
from pneumoscope.serve.dicom.file_intake import PIECE, TOO_LARGE, FileIntake, NotDicom
from pneumoscope.serve.dicom.intake import NotAccepted, Origin
from pneumoscope.serve.dicom.journal import Journal, JournalError
from pneumoscope.serve.dicom.tls import client_context
from pneumoscope.serve.workers.pool import JobStopped

__all__ = ["WebPull"]

logger = logging.getLogger(__name__)

SOP_INSTANCE, STUDY, SERIES = "00080018", "0020000D", "0020000E"
PAGE = 200  # instances that one QIDO request asks for
MOST_TRIES = 3  # of a file that makes a worker crash


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
