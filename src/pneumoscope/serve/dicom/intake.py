"""Taking a dataset in: on disk, then in the journal, and only then accepted."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pneumoscope.errors import PneumoscopeError
from pneumoscope.serve.dicom import audit
from pneumoscope.serve.dicom.journal import Journal, JournalError, now
from pneumoscope.serve.dicom.store import ReceivedFile, Store, uid_hash

__all__ = ["Accepted", "Intake", "NotAccepted", "Origin"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a dataset comes from.

    Parameters
    ----------
    via : {"store", "folder", "web"}
    caller : str
        Calling AE title, or the name of a folder or server.
    link : str
        The association or scan that brought it; a study is complete once all its links are closed.
    """

    via: str
    caller: str
    link: str


class Accepted(StrEnum):
    """How a dataset was accepted."""

    NEW = "new"
    DUPLICATE = "duplicate"
    """The same instance with the same content: nothing more to do."""
    CONFLICT = "conflict"
    """Another content under a UID that is known: kept apart, reported, not processed."""


class NotAccepted(PneumoscopeError):
    """A dataset that could not be stored or journalled; the sender must keep it and send it again."""


class Intake:
    """Stores and journals datasets; may be used from several threads.

    Parameters
    ----------
    store : Store
    journal : Journal
    min_free_bytes : int
        Free disk space below which nothing is accepted.
    on_accepted : callable
        Called with the way in which each dataset was accepted and its origin.
    priority_of : callable
        Returns the priority that the images of a caller have from the start.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        *,
        min_free_bytes: int = 0,
        on_accepted: Callable[[Accepted, Origin], None] = lambda _how, _origin: None,
        priority_of: Callable[[str], int] = lambda _caller: 0,
    ) -> None:
        self.store = store
        self._journal = journal
        self._min_free_bytes = min_free_bytes
        self._on_accepted, self._priority_of = on_accepted, priority_of
        # From the look into the journal to the entry in it: two senders may have the same instance.
        self._lock = threading.Lock()

    def accept(self, received: ReceivedFile, sop_class: str, sop_instance: str, origin: Origin) -> Accepted:
        """Store and journal a dataset that has arrived completely.

        Parameters
        ----------
        received : ReceivedFile
            Its file is renamed, or removed.
        sop_class, sop_instance : str
            UIDs.
        origin : Origin

        Raises
        ------
        NotAccepted
            If disk or journal do not allow it; nothing is left behind.
        """
        try:
            # On disk before the lock is taken: that is what takes long.
            if not received.finish():
                raise NotAccepted(received.failure)
            if self.store.free_bytes < self._min_free_bytes:
                raise NotAccepted(f"less than {self._min_free_bytes / 1e6:g} MB are free on the disk")
            try:
                with self._lock:
                    how = self._enter(received, sop_class, sop_instance, origin)
            except (OSError, JournalError) as error:
                raise NotAccepted(str(error)) from error
        finally:
            received.discard()
        logger.info(
            "accepted",
            extra={"instance": uid_hash(sop_instance)[:12], "how": str(how), "caller": origin.caller},
        )
        self._on_accepted(how, origin)
        return how

    def left_out(self, origin: Origin, why: str, sop_instance: str = "") -> None:
        """Journal that a file was not taken in and will not be asked for again.

        Raises
        ------
        JournalError
            If the journal does not allow it.
        """
        with self._journal.change() as connection:
            audit.record(
                connection, "left out", instance=sop_instance, caller=origin.caller, via=origin.via, why=why
            )

    def _enter(self, received: ReceivedFile, sop_class: str, sop_instance: str, origin: Origin) -> Accepted:
        priority, made = self._priority_of(origin.caller), ""
        try:
            # The file gets its name within the transaction, so that no purge or sweep removes it as unknown.
            with self._journal.change() as connection:
                place = self._place(connection, received.sha256, sop_instance)
                if place.name:
                    # A file that was there before stays if this fails: it may be the only copy of an image.
                    made = "" if (self.store.folder / place.name).exists() else place.name
                    self.store.keep(received, place.name)
                if place.again is not None:
                    _enter_again(connection, place.again, place, origin, priority)
                elif place.how is not Accepted.DUPLICATE:
                    _insert(connection, received, sop_class, sop_instance, origin, place, priority)
                _record(connection, received, sop_instance, origin, place.how)
        except (OSError, JournalError):
            if made:
                self.store.remove(made)
            raise
        return place.how

    def _place(self, connection: sqlite3.Connection, sha256: str, sop_instance: str) -> _Place:
        same = connection.execute(
            "SELECT id, sha256, state, file FROM instances WHERE sop_instance = ?", (sop_instance,)
        ).fetchall()
        own = next((row for row in same if row["sha256"] == sha256), None)
        others = {row["state"] for row in same if row is not own} - {"purged", "unreportable"}
        # In conflict with an image that nothing could be reported of, it takes the place of that one.
        if own is not None and own["state"] != "purged" and (others or own["state"] != "conflict"):
            return self._known(own)
        again = None if own is None else own["id"]
        if others:
            how, name = Accepted.CONFLICT, self.store.conflict_name(sop_instance, sha256)
        else:
            how, name = Accepted.NEW, self.store.image_name(sop_instance)
            _make_way(connection, sop_instance)
        if again is not None and _was_reported(connection, again):
            how = Accepted.DUPLICATE
        return _Place(how, name, again)

    def _known(self, own: sqlite3.Row) -> _Place:
        """Return the place of an image that came before; where its file was lost, this one replaces it."""
        if (self.store.folder / own["file"]).exists():
            return _Place(Accepted.DUPLICATE)
        if own["state"] == "parked":  # perhaps for want of the file
            return _Place(Accepted.NEW, own["file"], own["id"])
        return _Place(Accepted.DUPLICATE, own["file"])


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an image goes: the name of its file, and the number of the same image where that was purged.

    The name is empty for an image that is there already, with its file.
    """

    how: Accepted
    name: str = ""
    again: int | None = None

    @property
    def state(self) -> tuple[str, str]:
        """State and its reason, of an image that was not reported."""
        if self.how is Accepted.CONFLICT:
            return "conflict", "another image has the same SOP Instance UID"
        return "received", ""


def _make_way(connection: sqlite3.Connection, sop_instance: str) -> None:
    """Give up an image that nothing could be reported of: one that was corrected takes name and file."""
    given_up = connection.execute(
        "UPDATE instances SET state = 'purged', detail = 'another image took its place'"
        " WHERE sop_instance = ? AND state = 'unreportable' RETURNING sha256",
        (sop_instance,),
    ).fetchall()
    for row in given_up:
        audit.record(connection, "replaced", instance=sop_instance, sha256=row["sha256"])


def _was_reported(connection: sqlite3.Connection, image: int) -> bool:
    """Return whether the last result of an image counts: not where a purge removed it before it was sent."""
    last = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM objects o JOIN deliveries d ON d.object = o.id WHERE o.result = r.id"
        " AND d.state = 'withdrawn' AND d.detail = 'purged') AS unsent"
        " FROM results r JOIN result_images ri ON ri.result = r.id"
        " WHERE ri.instance = ? AND r.state IN ('built', 'retracted') ORDER BY r.id DESC LIMIT 1",
        (image,),
    ).fetchone()
    return last is not None and not last["unsent"]


def _enter_again(
    connection: sqlite3.Connection, image: int, place: _Place, origin: Origin, priority: int
) -> None:
    """Enter an image that was purged: it is processed unless it was reported, or is in conflict."""
    if place.how is Accepted.DUPLICATE:
        connection.execute(
            "UPDATE instances SET state = 'reported', file = ? WHERE id = ?", (place.name, image)
        )
        return
    # A result that was removed before it was sent is void; the next one has UIDs of its own.
    void = connection.execute(
        "UPDATE results SET state = 'retracted', detail = 'purged before it was sent'"
        " WHERE state = 'built' AND id IN (SELECT result FROM result_images WHERE instance = ?)",
        (image,),
    )
    connection.execute(
        "UPDATE instances SET state = ?, detail = ?, file = ?, via = ?, caller = ?, link = ?, received = ?,"
        " tries = 0, priority = max(priority, ?), revision = revision + ? WHERE id = ?",
        (
            *(*place.state, place.name, origin.via, origin.caller, origin.link, now()),
            *(priority, void.rowcount > 0, image),
        ),
    )


def _insert(
    connection: sqlite3.Connection,
    received: ReceivedFile,
    sop_class: str,
    sop_instance: str,
    origin: Origin,
    place: _Place,
    priority: int,
) -> None:
    connection.execute(
        "INSERT INTO instances (sop_instance, sop_class, sha256, bytes, file, via, caller, link,"
        " received, state, detail, priority) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(sop_instance, sop_class, received.sha256, received.bytes, place.name),
            *(origin.via, origin.caller, origin.link, now(), *place.state, priority),
        ),
    )


def _record(
    connection: sqlite3.Connection, received: ReceivedFile, sop_instance: str, origin: Origin, how: Accepted
) -> None:
    if how is Accepted.DUPLICATE:
        audit.record(connection, "duplicate", instance=sop_instance, caller=origin.caller)
        return
    audit.record(
        connection,
        "conflict" if how is Accepted.CONFLICT else "received",
        instance=sop_instance,
        sha256=received.sha256,
        caller=origin.caller,
        via=origin.via,
    )
