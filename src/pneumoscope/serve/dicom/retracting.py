"""Retracting results in the journal: who is told, what is withdrawn, what is processed again."""

from __future__ import annotations

import datetime
import sqlite3

from pneumoscope.errors import DataError
from pneumoscope.serve.dicom import audit
from pneumoscope.serve.dicom.contracts import PublishedObject
from pneumoscope.serve.dicom.header import encode
from pneumoscope.serve.dicom.journal import Journal, now
from pneumoscope.serve.dicom.queue import BuiltObject, enter_objects
from pneumoscope.serve.dicom.retraction import build_retraction
from pneumoscope.serve.dicom.store import Store

__all__ = ["retract"]


def retract(journal: Journal, store: Store, uid: str, reason: str, *, again: bool = False) -> int:
    """Retract the results of a study, or the one that holds an image or object; return how many.

    Objects that are not known to have arrived are withdrawn; a retraction goes to every destination that has
    objects of the result, or may have.

    Parameters
    ----------
    journal : Journal
    store : Store
    uid : str
        Study Instance UID, or SOP Instance UID of an image or a result object.
    reason : str
        Without any attribute of the patient.
    again : bool
        Process the images again; the new result has UIDs of its own.

    Raises
    ------
    DataError
        If there is no such result, or its objects or, with `again`, its images were purged.
    """
    results = journal.rows(
        "SELECT DISTINCT r.id, r.study_uid FROM results r JOIN result_images ri ON ri.result = r.id"
        " JOIN instances i ON i.id = ri.instance LEFT JOIN objects o ON o.result = r.id"
        " WHERE r.state = 'built' AND ? IN (r.study_uid, i.sop_instance, o.sop_instance)",
        (uid,),
    )
    if not results:
        raise DataError(f"{uid}: no result of this study, image or object; see 'pneumoscope dicom export'")
    return sum(_retract(journal, store, row["id"], row["study_uid"], reason, again=again) for row in results)


def _retract(journal: Journal, store: Store, result: int, study: str, reason: str, *, again: bool) -> bool:
    """Retract one result; return False where another command has done it meanwhile."""
    published = _published(journal, store, result, study)
    made = datetime.datetime.now(datetime.UTC).astimezone().replace(microsecond=0)
    made_now = []
    for one in build_retraction(published, reason, made) if published else []:
        name = store.result_name(str(one.SOPInstanceUID))
        store.write(name, encode(one))
        uids = (str(one.SOPInstanceUID), str(one.SOPClassUID), str(one.SeriesInstanceUID), study)
        made_now.append(BuiltObject(*uids, file=name))
    told = False
    try:
        with journal.change() as connection:
            if not _claimed(connection, result, reason):
                return False
            where = _withdraw(connection, result)
            enter_objects(connection, result, made_now if where else (), dict.fromkeys(where, "pending"))
            if again:
                _process_again(connection, result, study)
            audit.record(connection, "retracted", study=study, reason=reason, again=again, destinations=where)
        told = bool(where)
    finally:
        if not told:
            for entered in made_now:
                store.remove(entered.file)
    return True


def _published(journal: Journal, store: Store, result: int, study: str) -> list[PublishedObject]:
    """Return the objects of a result; raise where their files are not there any more."""
    published = [
        PublishedObject(
            store.folder / row["file"],
            row["study_uid"],
            row["series_uid"],
            row["sop_class"],
            row["sop_instance"],
        )
        for row in journal.rows("SELECT * FROM objects WHERE result = ? ORDER BY id", (result,))
    ]
    if missing := [one for one in published if not one.path.is_file()]:
        raise DataError(
            f"{study}: {len(missing)} of its result objects were purged, so it cannot be retracted"
        )
    return published


def _claimed(connection: sqlite3.Connection, result: int, reason: str) -> bool:
    return bool(
        connection.execute(
            "UPDATE results SET state = 'retracted', detail = ? WHERE id = ? AND state = 'built'",
            (reason, result),
        ).rowcount
    )


def _withdraw(connection: sqlite3.Connection, result: int) -> list[str]:
    """Withdraw what has not arrived of a result; return the destinations that have, or may have, some of it.

    Nothing is told to a destination that was never sent anything, such as in mode shadow. What is being sent,
    or waits to be sent again, is withdrawn as well: it would arrive after its retraction.
    """
    of_result = "object IN (SELECT id FROM objects WHERE result = ?)"
    rows = connection.execute(
        f"SELECT DISTINCT destination FROM deliveries WHERE {of_result}"
        " AND state IN ('sent', 'sending', 'dead') ORDER BY 1",
        (result,),
    ).fetchall()
    connection.execute(
        f"UPDATE deliveries SET state = 'withdrawn', changed = ? WHERE {of_result}"
        " AND state IN ('pending', 'sending', 'held', 'dead')",
        (now(), result),
    )
    return [row["destination"] for row in rows]


def _process_again(connection: sqlite3.Connection, result: int, study: str) -> None:
    within = "id IN (SELECT instance FROM result_images WHERE result = ?)"
    if connection.execute(
        f"SELECT 1 FROM instances WHERE {within} AND state = 'purged'", (result,)
    ).fetchone():
        raise DataError(f"{study}: its images were purged, so they cannot be processed again; omit --again")
    connection.execute(
        "UPDATE instances SET state = 'received', tries = 0, revision = revision + 1"
        f" WHERE {within} AND state = 'reported'",
        (result,),
    )
