"""What is to be sent, in the journal: once per destination, even across crashes.

A delivery is ``pending``; before its object goes out it becomes ``sending``, on disk, and then ``sent``.
What is found ``sending`` may have arrived or not: the destination is asked before it is sent again. ``dead``
deliveries wait for a command, ``held`` ones are those of mode shadow, ``withdrawn`` ones were retracted,
purged or dropped before they were known to have arrived.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.serve.dicom import audit
from pneumoscope.serve.dicom.contracts import OutgoingObject
from pneumoscope.serve.dicom.journal import Journal, now

__all__ = ["Outbox", "QueuedDelivery"]


@dataclass(frozen=True, slots=True)
class QueuedDelivery:
    """An object on its way.

    Parameters
    ----------
    id : int
    uncertain : bool
        It may have arrived already.
    tries : int
        Failures so far.
    object : OutgoingObject
    """

    id: int
    uncertain: bool
    tries: int
    object: OutgoingObject


class Outbox:
    """Deliveries to one destination.

    Parameters
    ----------
    journal : Journal
    folder : Path
        Of the node.
    destination : str
        Its name.
    longest_wait : float
        Seconds; what has waited for so long comes first.
    on_sent : callable
        Called for each result of which all objects have arrived, with the time when its last image was
        received.
    """

    def __init__(
        self,
        journal: Journal,
        folder: Path,
        destination: str,
        longest_wait: float,
        *,
        on_sent: Callable[[float], None] = lambda _received: None,
    ) -> None:
        self.journal, self._on_sent = journal, on_sent
        self._folder, self._destination, self._longest_wait = folder, destination, longest_wait

    def due(self, postponed: Collection[int], most: int) -> list[QueuedDelivery]:
        """Return what to send next, but nothing that is postponed; objects of a result in their order."""
        rows = self.journal.rows(
            "SELECT d.id, d.state, d.tries, o.file, o.study_uid, o.series_uid, o.sop_class, o.sop_instance"
            " FROM deliveries d JOIN objects o ON o.id = d.object JOIN results r ON r.id = o.result"
            " WHERE d.destination = ? AND d.state IN ('pending', 'sending')"
            " ORDER BY (r.last_received < ?) DESC, r.priority DESC, d.id LIMIT ?",
            (self._destination, now() - self._longest_wait, most + len(postponed)),
        )
        return [
            QueuedDelivery(
                row["id"],
                row["state"] == "sending",
                row["tries"],
                OutgoingObject(
                    self._folder / row["file"],
                    *(row[name] for name in ("study_uid", "series_uid", "sop_class", "sop_instance")),
                ),
            )
            for row in rows
            if row["id"] not in postponed
        ][:most]

    def sending(self, deliveries: Sequence[QueuedDelivery]) -> list[QueuedDelivery]:
        """Note, on disk, that these are about to be sent; return those that still are to be."""
        with self.journal.change() as connection:
            return [one for one in deliveries if _set(connection, one, "sending")]

    def not_tried(self, deliveries: Sequence[QueuedDelivery]) -> None:
        """Note that nothing of these was sent after all; what was uncertain before stays so."""
        with self.journal.change() as connection:
            for one in deliveries:
                if not one.uncertain:
                    _set(connection, one, "pending")

    def sent(self, deliveries: Sequence[QueuedDelivery], *, before: bool = False) -> None:
        """Note that the destination has these; `before`: it had them when it was asked."""
        if not deliveries:
            return
        with self.journal.change() as connection:
            for one in deliveries:
                _set(connection, one, "sent", "found there" if before else "")
            audit.record(
                connection,
                "found" if before else "sent",
                destination=self._destination,
                objects=[one.object.sop_instance for one in deliveries],
            )
        self._tell(deliveries)

    def _tell(self, deliveries: Sequence[QueuedDelivery]) -> None:
        marks = ", ".join("?" * len(deliveries))
        for row in self.journal.rows(
            "SELECT r.last_received FROM results r WHERE r.state = 'built' AND r.id IN (SELECT o.result"
            f" FROM objects o JOIN deliveries d ON d.object = o.id WHERE d.id IN ({marks}))"
            " AND NOT EXISTS (SELECT 1 FROM objects o JOIN deliveries d ON d.object = o.id"
            " WHERE o.result = r.id AND d.destination = ? AND d.state != 'sent')",
            (*(one.id for one in deliveries), self._destination),
        ):
            self._on_sent(row["last_received"])

    def failed(self, delivery: QueuedDelivery, why: str, *, dead: bool) -> None:
        """Note a failure; the object may have arrived all the same."""
        with self.journal.change() as connection:
            changed = _set(connection, delivery, "dead" if dead else "sending", why, failures=1)
            if dead and changed:
                audit.record(
                    connection,
                    "not delivered",
                    destination=self._destination,
                    object=delivery.object.sop_instance,
                    why=why,
                )


def _set(
    connection: sqlite3.Connection,
    delivery: QueuedDelivery,
    state: str,
    detail: str | None = None,
    *,
    failures: int = 0,
) -> bool:
    """Change a delivery that is in hand; one that was withdrawn meanwhile stays so: return False."""
    return bool(
        connection.execute(
            "UPDATE deliveries SET state = ?, detail = coalesce(?, detail), tries = tries + ?, changed = ?"
            " WHERE id = ? AND state IN ('pending', 'sending')",
            (state, detail, failures, now(), delivery.id),
        ).rowcount
    )
