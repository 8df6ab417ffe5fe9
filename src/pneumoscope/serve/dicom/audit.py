"""The audit log: who sent what, which bundle processed it, what was sent where.

Each entry has a hash over itself and the entry before it, so that a change, a removal or an insertion is
found anywhere but at the end. What was cut off at the end is found where the last hash was noted: ``audit
--verify`` prints it, and takes it with ``--head``. An entry is written in the transaction of what it records.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import sqlite3
from dataclasses import dataclass

from pneumoscope.errors import counted
from pneumoscope.serve.dicom.journal import Journal

__all__ = ["AuditCheck", "record", "verify"]

START = "0" * 64


@dataclass(frozen=True, slots=True)
class AuditCheck:
    """What a verification found.

    Parameters
    ----------
    entries : int
        That were read.
    head : str
        Hash of the last one.
    fault : str
        The first thing that is wrong, in a line; empty if nothing is.
    """

    entries: int
    head: str
    fault: str = ""


def record(connection: sqlite3.Connection, event: str, **detail: object) -> None:
    """Append an entry within the transaction of the connection.

    Parameters
    ----------
    connection : sqlite3.Connection
        Of `Journal.change`.
    event : str
        Such as ``received``.
    **detail
        UIDs, names of systems and bundles, counts; no attribute of a patient.
    """
    last = connection.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    seq, before = (last["seq"] + 1, last["hash"]) if last else (1, START)
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    text = json.dumps(detail, sort_keys=True, ensure_ascii=False, default=str)
    connection.execute(
        "INSERT INTO audit (seq, at, event, detail, hash) VALUES (?, ?, ?, ?, ?)",
        (seq, at, event, text, _hash(before, seq, at, event, text)),
    )


def verify(journal: Journal, head: str | None = None) -> AuditCheck:
    """Follow the chain from its start.

    Parameters
    ----------
    journal : Journal
    head : str, optional
        A hash that was noted before; the log must have an entry with it.
    """
    before, expected, seen = START, 1, head is None
    done = 0
    while rows := journal.rows("SELECT * FROM audit WHERE seq >= ? ORDER BY seq LIMIT 5000", (expected,)):
        for row in rows:
            if row["seq"] != expected:
                return AuditCheck(done, before, f"entry {expected} is missing")
            if row["hash"] != _hash(before, row["seq"], row["at"], row["event"], row["detail"]):
                return AuditCheck(done, before, f"entry {expected} was changed")
            before, expected, done = row["hash"], expected + 1, done + 1
            seen = seen or before == head
    highest = journal.value("SELECT seq FROM sqlite_sequence WHERE name = 'audit'") or 0
    if (missing := highest - done) > 0:
        what = counted(missing, "entry at the end is", "entries at the end are")
        return AuditCheck(done, before, f"{what} missing")
    return AuditCheck(
        done, before, "" if seen else "no entry has the given hash: the log was replaced or cut"
    )


def _hash(before: str, seq: int, at: str, event: str, detail: str) -> str:
    return hashlib.sha256(json.dumps([before, seq, at, event, detail]).encode()).hexdigest()
