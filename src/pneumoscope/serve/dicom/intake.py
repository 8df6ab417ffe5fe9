"""Taking a dataset in: on disk, then in the journal, and only then accepted."""

from __future__ import annotations

import logging
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
        same = self._journal.rows(
            "SELECT id, sha256, state FROM instances WHERE sop_instance = ?", (sop_instance,)
        )
        if any(row["sha256"] == received.sha256 and row["state"] != "purged" for row in same):
            with self._journal.change() as connection:
                audit.record(connection, "duplicate", instance=sop_instance, caller=origin.caller)
            return Accepted.DUPLICATE
        again = next((row["id"] for row in same if row["sha256"] == received.sha256), None)
        conflict = any(row["state"] != "purged" for row in same)
        name = (
            self.store.conflict_name(sop_instance, received.sha256)
            if conflict
            else self.store.image_name(sop_instance)
        )
        self.store.keep(received, name)
        try:
            self._journal_file(received, sop_class, sop_instance, origin, name, again, conflict=conflict)
        except JournalError:
            self.store.remove(name)
            raise
        if again is not None:
            return Accepted.DUPLICATE
        return Accepted.CONFLICT if conflict else Accepted.NEW

    def _journal_file(
        self,
        received: ReceivedFile,
        sop_class: str,
        sop_instance: str,
        origin: Origin,
        name: str,
        again: int | None,
        *,
        conflict: bool,
    ) -> None:
        """Enter a stored file; `again` is the number of the same image that was purged."""
        with self._journal.change() as connection:
            if again is not None:  # what was made of it was sent
                connection.execute(
                    "UPDATE instances SET state = 'reported', file = ? WHERE id = ?", (name, again)
                )
                audit.record(connection, "duplicate", instance=sop_instance, caller=origin.caller)
                return
            connection.execute(
                "INSERT INTO instances (sop_instance, sop_class, sha256, bytes, file, via, caller, link,"
                " received, state, detail, priority) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(sop_instance, sop_class, received.sha256, received.bytes, name),
                    *(origin.via, origin.caller, origin.link, now()),
                    "conflict" if conflict else "received",
                    "another image has the same SOP Instance UID" if conflict else "",
                    self._priority_of(origin.caller),
                ),
            )
            audit.record(
                connection,
                "conflict" if conflict else "received",
                instance=sop_instance,
                sha256=received.sha256,
                caller=origin.caller,
                via=origin.via,
            )
