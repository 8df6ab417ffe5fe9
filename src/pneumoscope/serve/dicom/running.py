"""The lock of a node's folder: which process works in it, and what it says of itself.

The lock file has the number of the process, then a line of JSON: ``since`` and ``mode``, which is null for a
rebuild. Once a node takes images there is a third line. An earlier version wrote the number only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import IO

from pneumoscope.data.drafts import locked
from pneumoscope.errors import DataError
from pneumoscope.serve.dicom.journal import Journal
from pneumoscope.serve.dicom.maintenance import REBUILD_BEGUN

__all__ = ["Running", "lock_folder", "mark_ready", "read_running"]

LOCK_FILE = "lock"
LONGEST_TEST, PAUSE = 1.0, 0.02  # seconds; a test by `read_running` takes much less


@dataclass(frozen=True, slots=True)
class Running:
    """The process of a node.

    Parameters
    ----------
    since : str
        When it was started.
    mode : {"shadow", "live"}
    ready : bool
        Whether it takes images; False while it starts.
    """

    since: str
    mode: str
    ready: bool = True


def lock_folder(folder: Path, mode: str | None = None) -> IO[str]:
    """Take the folder for this process; it is free again when the file is closed or the process ends.

    Parameters
    ----------
    folder : Path
    mode : {"shadow", "live"}, optional
        Of the node; not given where no node is to run.

    Raises
    ------
    DataError
        If another process has it, or files cannot be locked there.
    """
    taken = "another node uses this folder (process {holder}); stop it, or give this one a folder of its own"
    end = monotonic() + LONGEST_TEST
    while True:
        try:
            file = locked(folder / LOCK_FILE, taken, "use a folder")
        except DataError as error:
            if not isinstance(error.__cause__, BlockingIOError) or monotonic() > end:
                raise
            sleep(PAUSE)  # it may be `read_running` that has it
            continue
        since = datetime.now(UTC).isoformat(timespec="milliseconds")
        file.write(json.dumps({"since": since, "mode": mode}) + "\n")
        file.flush()
        return file


def mark_ready(lock: IO[str]) -> None:
    """Note in the file of `lock_folder` that the node takes images."""
    lock.write("ready\n")
    lock.flush()


def read_running(journal: Journal) -> Running | None:
    """Return what the node of a journal's folder says of itself; None where none runs."""
    try:
        file = (journal.path.parent / LOCK_FILE).open(encoding="ascii")
    except FileNotFoundError:
        return None
    with file:
        if not _is_locked(file):
            return None
        _, *said = file.read().splitlines() or [""]
    if not said:
        return _earlier_version(journal)
    facts = json.loads(said[0])
    return Running(facts["since"], facts["mode"], len(said) > 1) if facts["mode"] else None


def _is_locked(file: IO[str]) -> bool:
    import fcntl  # which Windows does not have

    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # where files cannot be locked, no node starts
        return False
    return False


def _earlier_version(journal: Journal) -> Running | None:
    """Return what the audit log says of a node that does not say it itself; None where it is a rebuild."""
    row = journal.row(
        "SELECT event, at, detail FROM audit WHERE event IN ('started', ?) ORDER BY seq DESC LIMIT 1",
        (REBUILD_BEGUN,),
    )
    if row is None or row["event"] == REBUILD_BEGUN:
        return None
    return Running(row["at"], json.loads(row["detail"])["mode"])
