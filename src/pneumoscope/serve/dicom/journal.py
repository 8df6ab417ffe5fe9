"""The journal: what the node has accepted, made and sent, in SQLite.

Every change is one transaction that is on disk when it returns (write-ahead log, synchronous=FULL). Several
threads share one connection; the commands of the terminal open the same file from other processes.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError

__all__ = [
    "DELIVERY_STATES",
    "IMAGE_STATES",
    "JOURNAL_FILE",
    "PRIORITIES",
    "RESULT_STATES",
    "UNSENT_STATES",
    "Journal",
    "JournalError",
    "now",
    "priority_name",
]

JOURNAL_FILE = "journal.sqlite"
SCHEMA_VERSION = 1
BUSY_SECONDS = 30.0

# Primary codes of SQLite that say nothing against the file itself.
PASSING = frozenset(
    {
        *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED),
        *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM),
    }
)

PRIORITIES = {"routine": 0, "high": 1, "urgent": 2}

IMAGE_STATES = (
    *("received", "predicted", "composed", "reported", "ignored", "parked", "unreportable", "conflict"),
    "purged",
)
RESULT_STATES = ("composed", "built", "failed", "retracted")
DELIVERY_STATES = ("pending", "sending", "sent", "dead", "held", "withdrawn")
UNSENT_STATES = ("pending", "sending", "dead", "held")
"""Of deliveries that are not over."""

SCHEMA = f"""
CREATE TABLE instances (
  id INTEGER PRIMARY KEY,
  sop_instance TEXT NOT NULL,
  sop_class TEXT NOT NULL,
  sha256 TEXT NOT NULL,
  bytes INTEGER NOT NULL,
  file TEXT NOT NULL,
  via TEXT NOT NULL,
  caller TEXT NOT NULL,
  link TEXT NOT NULL,
  received REAL NOT NULL,
  state TEXT NOT NULL CHECK (state IN {IMAGE_STATES}),
  tries INTEGER NOT NULL DEFAULT 0,
  detail TEXT NOT NULL DEFAULT '',
  priority INTEGER NOT NULL DEFAULT 0,
  revision INTEGER NOT NULL DEFAULT 0,
  study_uid TEXT, modality TEXT, body_part TEXT, view TEXT, age_band TEXT, scanner TEXT, site TEXT,
  bundle TEXT, status TEXT, reasons TEXT, positive INTEGER, p_target REAL,
  prediction TEXT, inputs TEXT, destinations TEXT, predicted REAL, seconds REAL,
  UNIQUE (sop_instance, sha256)
);
CREATE INDEX instances_by_state ON instances (state, priority DESC, id);
CREATE INDEX instances_by_study ON instances (study_uid, state);
CREATE INDEX instances_by_time ON instances (received);
CREATE TABLE artefacts (
  instance INTEGER PRIMARY KEY REFERENCES instances (id),
  finding TEXT, region TEXT, height INTEGER, width INTEGER, heatmap BLOB, preview BLOB
);
CREATE TABLE results (
  id INTEGER PRIMARY KEY,
  study_uid TEXT NOT NULL,
  made TEXT NOT NULL,
  revision INTEGER NOT NULL,
  bundle TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN {RESULT_STATES}),
  tries INTEGER NOT NULL DEFAULT 0,
  detail TEXT NOT NULL DEFAULT '',
  priority INTEGER NOT NULL DEFAULT 0,
  destinations TEXT NOT NULL,
  first_received REAL NOT NULL,
  last_received REAL NOT NULL,
  built REAL
);
CREATE INDEX results_by_state ON results (state, priority DESC, id);
CREATE INDEX results_by_study ON results (study_uid);
CREATE TABLE result_images (
  result INTEGER NOT NULL REFERENCES results (id),
  instance INTEGER NOT NULL REFERENCES instances (id),
  PRIMARY KEY (result, instance)
);
CREATE INDEX result_images_by_instance ON result_images (instance);
CREATE TABLE objects (
  id INTEGER PRIMARY KEY,
  result INTEGER NOT NULL REFERENCES results (id),
  sop_instance TEXT NOT NULL UNIQUE,
  sop_class TEXT NOT NULL,
  series_uid TEXT NOT NULL,
  study_uid TEXT NOT NULL,
  file TEXT NOT NULL
);
CREATE INDEX objects_by_result ON objects (result);
CREATE TABLE deliveries (
  id INTEGER PRIMARY KEY,
  object INTEGER NOT NULL REFERENCES objects (id),
  destination TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN {DELIVERY_STATES}),
  tries INTEGER NOT NULL DEFAULT 0,
  detail TEXT NOT NULL DEFAULT '',
  changed REAL NOT NULL,
  UNIQUE (object, destination)
);
CREATE INDEX deliveries_by_state ON deliveries (destination, state, id);
CREATE TABLE commitments (
  id INTEGER PRIMARY KEY,
  transaction_uid TEXT NOT NULL,
  caller TEXT NOT NULL,
  host TEXT NOT NULL,
  items TEXT NOT NULL,
  requested REAL NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('pending', 'sent', 'dead')),
  tries INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE audit (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  at TEXT NOT NULL,
  event TEXT NOT NULL,
  detail TEXT NOT NULL,
  hash TEXT NOT NULL
);
CREATE TRIGGER audit_is_append_only_1 BEFORE UPDATE ON audit
  BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_append_only_2 BEFORE DELETE ON audit
  BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER priority_is_never_lowered_1 BEFORE UPDATE OF priority ON instances
  WHEN NEW.priority < OLD.priority
  BEGIN SELECT RAISE(ABORT, 'a priority is never lowered'); END;
CREATE TRIGGER priority_is_never_lowered_2 BEFORE UPDATE OF priority ON results
  WHEN NEW.priority < OLD.priority
  BEGIN SELECT RAISE(ABORT, 'a priority is never lowered'); END;
"""


# Made where an earlier program did not.
INDEXES = (
    "CREATE INDEX IF NOT EXISTS instances_by_file ON instances (file)",
    "CREATE INDEX IF NOT EXISTS instances_by_link ON instances (state, link)",
    "CREATE INDEX IF NOT EXISTS objects_by_file ON objects (file)",
    "CREATE INDEX IF NOT EXISTS audit_by_event ON audit (event, seq)",
)


def priority_name(value: int) -> str:
    """Return the name of a priority."""
    return next(name for name, number in PRIORITIES.items() if number == value)


class JournalError(DataError):
    """A journal that cannot be used: damaged, of another version, or on a full disk.

    Parameters
    ----------
    message : str
    passing : bool
        It may work later: nothing is wrong with the file itself.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class Journal:
    """The journal of one folder; may be used from several threads.

    Parameters
    ----------
    folder : Path
        Of the node.
    create : bool
        Make the journal where there is none.
    check : bool
        Verify its structure, which reads all of it.

    Raises
    ------
    JournalError
        If it is missing, damaged, or of another version.
    """

    def __init__(self, folder: Path, *, create: bool = False, check: bool = False) -> None:
        self.path = folder / JOURNAL_FILE
        self._lock = threading.RLock()
        new = not self.path.exists()
        if new and not create:
            raise JournalError(f"{self.path}: there is no journal; start the node once, or check 'folder'")
        try:
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._prepare()
            if check:
                self._check()
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    def _prepare(self) -> None:
        run = self._connection.execute
        run("PRAGMA journal_mode=WAL")
        run("PRAGMA synchronous=FULL")
        run("PRAGMA foreign_keys=ON")
        run("PRAGMA cell_size_check=ON")
        run("PRAGMA secure_delete=ON")  # what was purged is not left in free pages
        (version,) = run("PRAGMA user_version").fetchone()
        if version == 0:
            with self.change() as connection:
                if not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                    for statement in _statements(SCHEMA):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise JournalError(
                f"{self.path}: has version {version}, this program reads {SCHEMA_VERSION}; use the program "
                "that wrote it, or another folder"
            )
        for statement in INDEXES:
            run(statement)

    def _check(self) -> None:
        found = [row[0] for row in self._connection.execute("PRAGMA integrity_check(3)")]
        broken = list(self._connection.execute("PRAGMA foreign_key_check"))
        if found != ["ok"] or broken:
            what = "; ".join(found) if found != ["ok"] else "rows that refer to missing ones"
            raise self._damaged(what)

    def _damaged(self, why: object) -> JournalError:
        reason = " ".join(str(why).split())
        code = getattr(why, "sqlite_errorcode", 0) & 0xFF
        if code in PASSING:
            return JournalError(
                f"{self.path}: the journal cannot be written ({reason}); free space on its disk",
                passing=True,
            )
        return JournalError(
            f"{self.path}: the journal is damaged ({reason}); stop the node and run 'pneumoscope dicom "
            "rebuild', which sets it aside and makes a new one from the stored images"
        )

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """Make one transaction: on disk when the block ends, undone if the block raises.

        Raises
        ------
        JournalError
            If the disk is full or the journal is damaged.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.IntegrityError:
                raise
            except sqlite3.Error as error:
                raise self._damaged(error) from error

    def rows(self, query: str, parameters: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        """Return the rows of a query.

        Raises
        ------
        JournalError
            If the journal is damaged.
        """
        with self._lock:
            try:
                return self._connection.execute(query, parameters).fetchall()
            except sqlite3.Error as error:
                raise self._damaged(error) from error

    def row(self, query: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Row | None:
        """Return the first row of a query, or None."""
        found = self.rows(query, parameters)
        return found[0] if found else None

    def value(self, query: str, parameters: tuple[Any, ...] = ()) -> Any:
        """Return the first value of a query, or None."""
        found = self.row(query, parameters)
        return None if found is None else found[0]

    def close(self) -> None:
        """Close the file, its write-ahead log merged."""
        with self._lock:
            self._connection.close()


def now() -> float:
    """Return the time of the wall clock, in seconds since 1970; for records, not for waiting."""
    return time.time()


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script; a trigger has semicolons of its own."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
