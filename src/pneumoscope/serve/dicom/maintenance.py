"""What an operator does to a node's journal and files: retry, drop, export, rebuild.

All but `rebuild` may be done while the node runs: it sees the change within a second.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom

from pneumoscope.data.tables import write_rows
from pneumoscope.errors import DataError, counted
from pneumoscope.image.dicom import lenient_pydicom
from pneumoscope.image.dicom_header import CUT_OFF, DAMAGED
from pneumoscope.report.rows import csv_safe
from pneumoscope.serve.dicom import audit
from pneumoscope.serve.dicom.config_types import REBUILT_CALLER
from pneumoscope.serve.dicom.intake import Intake, NotAccepted, Origin
from pneumoscope.serve.dicom.journal import JOURNAL_FILE, UNSENT_STATES, Journal, now
from pneumoscope.serve.dicom.store import Store, dataset_offset, file_head

__all__ = [
    "REBUILD_BEGUN",
    "REBUILD_ENDED",
    "REBUILT",
    "Rebuilt",
    "drop",
    "export",
    "rebuild",
    "retry",
]

REBUILT = "rebuild"
"""Way in of images that a new journal was made of."""

REBUILD_BEGUN, REBUILD_ENDED = "rebuilt", "rebuild ended"  # in the audit log

# Between two images of a rebuild that are not taken for ones that came together: seconds without any image.
PAUSE, SHORT_PAUSE = 60.0, 1.0
MANY_TOGETHER = 2000  # images; from then on a short pause is enough

PIECE = 1 << 20
PREAMBLE_AND_LENGTH = 144  # bytes, up to the end of File Meta Information Group Length
EXPORTED = (
    *("sop_instance", "study_uid", "caller", "via", "received", "state", "detail", "modality", "body_part"),
    *("view", "age_band", "scanner", "site", "bundle", "status", "reasons", "positive", "p_target", "file"),
)
EXPORTED_OBJECTS = ("sop_instance", "sop_class", "study_uid", "source_images", "file")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did.

    Parameters
    ----------
    aside : Path or None
        Where the old journal is now; None where there was none.
    images : int
        Taken into the new journal.
    skipped : int
        Stored files that could not be read; they stay where they are.
    """

    aside: Path | None
    images: int
    skipped: int


def retry(
    journal: Journal, *, parked: bool = False, failed: bool = False, dead: bool = False, held: bool = False
) -> dict[str, int]:
    """Let the node try again; return how many of each.

    Parameters
    ----------
    journal : Journal
    parked : bool
        Images that crashed or outlasted their limit.
    failed : bool
        Results that could not be built.
    dead : bool
        Objects on the dead-letter list; the destination is asked before they are sent.
    held : bool
        Objects that mode shadow did not send.
    """
    changes = {
        "parked": (
            parked,
            "UPDATE instances SET state = 'received', tries = 0, detail = '' WHERE state = 'parked'",
        ),
        "failed": (
            failed,
            "UPDATE results SET state = 'composed', tries = 0, detail = '' WHERE state = 'failed'",
        ),
        "dead": (dead, "UPDATE deliveries SET state = 'sending', tries = 0 WHERE state = 'dead'"),
        # Under a journal that was lost it may have been sent: the destination is asked first.
        "held": (
            held,
            "UPDATE deliveries SET state = CASE WHEN object IN (SELECT o.id FROM objects o"
            " JOIN result_images r ON r.result = o.result JOIN instances i ON i.id = r.instance"
            " WHERE i.via = 'rebuild') THEN 'sending' ELSE 'pending' END WHERE state = 'held'",
        ),
    }
    with journal.change() as connection:
        done = {
            name: connection.execute(statement).rowcount
            for name, (asked, statement) in changes.items()
            if asked
        }
        audit.record(connection, "retry", **done)
    return done


def drop(journal: Journal, destination: str) -> int:
    """Abandon what is not sent to a destination; return how many objects.

    Parameters
    ----------
    journal : Journal
    destination : str
        One that is not in the configuration any more: nothing is sent to it.

    Raises
    ------
    DataError
        If the journal has nothing for it.
    """
    states = ", ".join(f"'{state}'" for state in UNSENT_STATES)
    with journal.change() as connection:
        count = connection.execute(
            "UPDATE deliveries SET state = 'withdrawn', detail = 'dropped', changed = ?"
            f" WHERE destination = ? AND state IN ({states})",
            (now(), destination),
        ).rowcount
        if not count:
            raise DataError(
                f"{destination}: nothing is left to send to a destination of this name; see 'pneumoscope "
                "dicom status'"
            )
        audit.record(connection, "dropped", destination=destination, objects=count)
    return count


def export(
    journal: Journal, store: Store, out: Path, *, study: str | None = None, images: bool = False
) -> int:
    """Write what the journal says about images and result objects, and copies of the objects.

    Into the folder go ``images.csv``, ``objects.csv``, and the copies in ``results`` and ``images``.

    Parameters
    ----------
    journal : Journal
    store : Store
    out : Path
        Made if absent.
    study : str, optional
        Study Instance UID; all studies if not given.
    images : bool
        Copy the received images as well.

    Returns
    -------
    int
        Number of images in the table.

    Raises
    ------
    DataError
        If the folder cannot be written, or is in that of the node.
    """
    own = store.folder.resolve()
    if any((out / name).resolve().is_relative_to(own) for name in ("", "images", "results")):
        raise DataError(
            f"{out}: the export would be in the node's own folder, where 'dicom purge' removes files; name "
            "another folder"
        )
    where, values = ("WHERE study_uid = ?", (study,)) if study else ("", ())
    rows = journal.rows(f"SELECT {', '.join(EXPORTED)} FROM instances {where} ORDER BY id", values)
    objects = journal.rows(f"SELECT * FROM objects {where} ORDER BY id", values)
    try:
        out.mkdir(parents=True, exist_ok=True)
        copied = (_copied(store, row["file"], out, "images") if images else "" for row in rows)
        table = [_exported(row) | {"file": file} for row, file in zip(rows, copied, strict=True)]
        write_rows(out / "images.csv", table, EXPORTED)
        made = [_exported_object(journal, store, one, out) for one in objects]
        write_rows(out / "objects.csv", made, EXPORTED_OBJECTS)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}); name another folder") from error
    return len(rows)


def _exported(row: sqlite3.Row) -> dict[str, object]:
    values = {name: "" if row[name] is None else row[name] for name in EXPORTED}
    received = datetime.datetime.fromtimestamp(row["received"], datetime.UTC)
    values["received"] = received.isoformat(timespec="milliseconds")
    return {name: csv_safe(value) if isinstance(value, str) else value for name, value in values.items()}


def _exported_object(journal: Journal, store: Store, row: sqlite3.Row, out: Path) -> dict[str, object]:
    """Copy a result object; return its line of the table."""
    file = _copied(store, row["file"], out, "results")
    values = {name: row[name] for name in ("sop_instance", "sop_class", "study_uid")}
    return values | {"source_images": " ".join(_source_images(journal, row, out / file)), "file": file}


def _source_images(journal: Journal, row: sqlite3.Row, path: Path) -> list[str]:
    """Return the images of an object: the one that a Secondary Capture shows, else all of its result."""
    if path.is_file():
        with lenient_pydicom(), contextlib.suppress(*CUT_OFF, *DAMAGED):
            header = pydicom.dcmread(path, specific_tags=["SourceImageSequence"], stop_before_pixels=True)
            if "SourceImageSequence" in header:
                return [str(one.ReferencedSOPInstanceUID) for one in header.SourceImageSequence]
    found = journal.rows(
        "SELECT i.sop_instance FROM result_images r JOIN instances i ON i.id = r.instance WHERE r.result = ?"
        " ORDER BY i.id",
        (row["result"],),
    )
    return [one["sop_instance"] for one in found]


def _copied(store: Store, file: str, out: Path, folder: str) -> str:
    """Copy a file of the node; return its path within the export, empty where it is not there any more."""
    source, target = store.folder / file, out / folder / Path(file).name
    target.parent.mkdir(exist_ok=True)
    try:
        shutil.copyfile(source, target)  # the source is opened first, so that nothing is left
    except FileNotFoundError:  # purged, perhaps by a node that runs meanwhile
        return ""
    return f"{folder}/{target.name}"


def rebuild(folder: Path, store: Store) -> Rebuilt:
    """Set a damaged journal aside and make a new one from the stored images, which are processed again.

    UIDs of results are derived from their images, so a destination that is asked recognises what it has.
    For that the images are taken in the order in which they came, and those that came within a short time
    are reported together. What was purged or retracted is not known to the new journal.

    Parameters
    ----------
    folder : Path
        Of the node, which must not run.
    store : Store

    Raises
    ------
    DataError
        If the folder cannot be written, such as on a full disk.
    """
    aside = _set_aside(folder)
    journal = Journal(folder, create=True)
    intake, taken, skipped = Intake(store, journal), 0, 0
    try:
        with journal.change() as connection:
            audit.record(connection, REBUILD_BEGUN, aside=aside.name if aside else "")
        for path, link in _as_they_came(folder):
            if _take_again(path, store, intake, link):
                taken += 1
            else:
                skipped += 1
                with journal.change() as connection:
                    audit.record(connection, "skipped", file=path.name)
        with journal.change() as connection:
            audit.record(connection, REBUILD_ENDED, images=taken, skipped=skipped)
    except (NotAccepted, OSError) as error:
        raise DataError(
            f"{folder}: after {counted(taken, 'image')} the next one could not be stored ({error}); free "
            "space on the disk and run 'pneumoscope dicom rebuild' again"
        ) from error
    finally:
        journal.close()
    return Rebuilt(aside, taken, skipped)


def _set_aside(folder: Path) -> Path | None:
    journal = folder / JOURNAL_FILE
    if not journal.exists():
        return None
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%f")
    aside = folder / f"damaged-{stamp}"
    try:
        aside.mkdir()
        for suffix in ("", "-wal", "-shm"):
            part = journal.with_name(journal.name + suffix)
            if part.exists():
                part.replace(aside / part.name)
    except OSError as error:
        raise DataError(f"{aside}: the journal cannot be set aside ({error.strerror})") from error
    return aside


def _as_they_came(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the stored images in the order of their times, each with a link: one for those without a pause.

    Conflicts come after the images that they are in conflict with, so that they are kept apart again.
    """
    number = count = 0
    before = -math.inf
    for at, path in sorted((path.stat().st_mtime, path) for path in folder.glob("images/*/*.dcm")):
        if at - before >= (PAUSE if count < MANY_TOGETHER else SHORT_PAUSE):
            number, count = number + 1, 0
        count, before = count + 1, at
        yield path, f"{REBUILT}-{number}"
    for path in sorted(folder.glob("conflicts/*.dcm")):
        yield path, REBUILT


def _take_again(path: Path, store: Store, intake: Intake, link: str) -> bool:
    """Take a stored file in; return False where it is no file that a node wrote, or is damaged.

    Or where it was kept apart, and the image that it is in conflict with is not there any more.
    """
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
        sop_class, sop_instance, syntax = (
            str(meta[name].value)
            for name in ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
        )
        caller = str(meta.get("SourceApplicationEntityTitle") or "").strip()
        head = file_head(sop_class, sop_instance, syntax, caller)
    except (*CUT_OFF, *DAMAGED):
        return False
    if path.parent.name == "conflicts" and not (store.folder / store.image_name(sop_instance)).exists():
        return False
    with path.open("rb") as file:
        # Not by the length of `head`: an earlier program may have written other file meta information.
        try:
            offset = dataset_offset(file.read(PREAMBLE_AND_LENGTH))
        except DataError:
            return False
        found = path.stat()
        size = found.st_size - offset
        if size <= 0:
            return False
        file.seek(offset)
        received = store.receive(head, size)
        while piece := file.read(PIECE):
            received.write(piece)
    origin = Origin(REBUILT, caller or REBUILT_CALLER, link)
    intake.accept(received, sop_class, sop_instance, origin)
    if path.exists():  # its time says when it came, also to the next rebuild
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    return True
