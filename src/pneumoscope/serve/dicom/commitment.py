"""Storage commitment: telling a sender what the node has stored and journalled (PS3.4 annex J).

The response goes on a new association to the port that the caller's configuration names: the only way that
every sender must take (PS3.4 J.3.3).
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import Dataset
from pynetdicom import build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from pneumoscope.errors import PneumoscopeError
from pneumoscope.serve.dicom import audit
from pneumoscope.serve.dicom.background import Background
from pneumoscope.serve.dicom.config import CallerConfig, NodeConfig
from pneumoscope.serve.dicom.journal import Journal
from pneumoscope.serve.dicom.outgoing import OutgoingAE, why_not_opened
from pneumoscope.serve.dicom.tls import client_context

__all__ = ["Committer", "committed"]

logger = logging.getLogger(__name__)

NO_SUCH_INSTANCE, CLASS_CONFLICT = 0x0112, 0x0119
ALL_STORED, SOME_FAILED = 1, 2
MOST_TRIES = 30
LOOK_AGAIN = 5.0
SECONDS = 30.0  # for connection and response
LONGEST_PAUSE = 300.0
LONGEST = 10 * SECONDS  # over one report: name, connection, association, response, release, and the journal


def committed(journal: Journal, folder: Path, items: Sequence[tuple[str, str]]) -> list[int]:
    """Return for each class and instance 0 if it is stored, else the reason (PS3.4 J.4).

    Parameters
    ----------
    journal : Journal
    folder : Path
        Of the node, in which the stored files are.
    items : sequence of (str, str)
        SOP Class and SOP Instance UIDs.
    """
    reasons = []
    for sop_class, sop_instance in items:
        rows = journal.rows(
            "SELECT sop_class, file FROM instances WHERE sop_instance = ?"
            " AND state NOT IN ('purged', 'conflict')",
            (sop_instance,),
        )
        rows = [row for row in rows if (folder / row["file"]).exists()]
        if not rows:
            reasons.append(NO_SUCH_INSTANCE)
        else:
            reasons.append(0 if any(row["sop_class"] == sop_class for row in rows) else CLASS_CONFLICT)
    return reasons


class Committer(Background):
    """A thread that responds to the requests in the journal.

    Parameters
    ----------
    config : NodeConfig
    journal : Journal
    """

    def __init__(self, config: NodeConfig, journal: Journal) -> None:
        super().__init__("commitment", LONGEST)
        self._config, self._journal = config, journal
        self._callers = {caller.aet: caller for caller in config.callers}
        self._postponed: dict[int, float] = {}

    def _work(self) -> None:
        while not self._stopping:
            self.pulse.beat()
            self._wake.clear()
            try:
                for row in self._journal.rows(
                    "SELECT * FROM commitments WHERE state = 'pending' ORDER BY id"
                ):
                    if self._postponed.get(row["id"], 0.0) <= time.monotonic() and not self._stopping:
                        self._respond(row)
            except PneumoscopeError as error:  # the journal
                logger.error("storage commitment", extra={"why": str(error)})
            self._wake.wait(LOOK_AGAIN)

    def _respond(self, row: sqlite3.Row) -> None:
        self.pulse.beat()
        caller = self._callers.get(row["caller"])
        items = [(one[0], one[1]) for one in json.loads(row["items"])]
        reasons = committed(self._journal, self._config.folder, items)
        port = caller.port if caller is not None else None
        why = "the caller, or its port, is not in the configuration any more"
        if caller is not None and port is not None:
            try:
                report = _report(row["transaction_uid"], items, reasons)
                why = self._send(caller, port, row["host"], report)
            except PneumoscopeError as error:  # a certificate of this caller: others are not to wait for it
                why = str(error)
            except (OSError, RuntimeError, ValueError) as error:  # its text may quote the other side
                why = type(error).__name__
        dead = bool(why) and (port is None or row["tries"] + 1 >= MOST_TRIES)
        with self._journal.change() as connection:
            connection.execute(
                "UPDATE commitments SET state = ?, tries = tries + 1 WHERE id = ?",
                ("dead" if dead else "pending" if why else "sent", row["id"]),
            )
            if dead or not why:
                audit.record(
                    connection,
                    "commitment not delivered" if dead else "committed",
                    caller=row["caller"],
                    instances=len(items),
                    missing=sum(reason != 0 for reason in reasons),
                )
        if why:
            logger.warning("storage commitment not delivered", extra={"caller": row["caller"], "why": why})
            self._postponed[row["id"]] = time.monotonic() + min(LONGEST_PAUSE, 2.0 ** row["tries"])
        else:
            self._postponed.pop(row["id"], None)

    def _send(self, caller: CallerConfig, port: int, host: str, report: Dataset) -> str:
        """Send the report; return an empty string, or why it did not arrive."""
        ae = OutgoingAE(self._config.aet, SECONDS)
        ae.add_requested_context(StorageCommitmentPushModel)
        tls = None if caller.tls is None else (client_context(caller.tls), caller.tls.server_name or host)
        try:
            association = ae.associate(
                host,
                port,
                ae_title=caller.aet,
                # The node is the provider of the service although it opens the association.
                ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)],
                tls_args=tls,
            )
        except (OSError, UnicodeError) as error:
            return why_not_opened(error)
        if not association.is_established:
            return "no association"
        try:
            event = SOME_FAILED if "FailedSOPSequence" in report else ALL_STORED
            status, _ = association.send_n_event_report(
                report,
                event,
                StorageCommitmentPushModel,
                StorageCommitmentPushModelInstance,
            )
        except (RuntimeError, ValueError) as error:
            return type(error).__name__
        finally:
            if association.is_established:
                association.release()
        if "Status" not in status:
            return "no response"
        return "" if status.Status == 0 else f"status {status.Status:04X}"


def _report(transaction: str, items: Sequence[tuple[str, str]], reasons: Sequence[int]) -> Dataset:
    stored: list[Dataset] = []
    failed: list[Dataset] = []
    for (sop_class, sop_instance), reason in zip(items, reasons, strict=True):
        one = Dataset()
        one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = sop_class, sop_instance
        if reason:
            one.FailureReason = reason
        (failed if reason else stored).append(one)
    report = Dataset()
    report.TransactionUID = transaction
    if stored:
        report.ReferencedSOPSequence = stored
    if failed:
        report.FailedSOPSequence = failed
    return report
