"""Rows of results in the journal: of images that are reported together, or each alone."""

from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Sequence

__all__ = ["enter_result", "raise_study", "split_result"]


def enter_result(
    connection: sqlite3.Connection, study_uid: str, bundle: str, priority: int, images: Sequence[sqlite3.Row]
) -> int:
    """Enter a result of these images, to be built; return its number."""
    destinations = {name for image in images for name in json.loads(image["destinations"])}
    made = datetime.datetime.now(datetime.UTC).astimezone().isoformat(timespec="seconds")
    number = connection.execute(
        "INSERT INTO results (study_uid, made, revision, bundle, state, priority, destinations,"
        " first_received, last_received) VALUES (?, ?, ?, ?, 'composed', ?, ?, ?, ?)",
        (
            *(study_uid, made, max(image["revision"] for image in images), bundle, priority),
            json.dumps(sorted(destinations)),
            min(image["received"] for image in images),
            max(image["received"] for image in images),
        ),
    ).lastrowid
    assert number is not None
    connection.executemany(
        "INSERT INTO result_images VALUES (?, ?)", [(number, image["id"]) for image in images]
    )
    return number


def split_result(connection: sqlite3.Connection, number: int) -> None:
    """Put a result of its own for each image in the place of a result."""
    study, bundle, priority, places = connection.execute(
        "SELECT study_uid, bundle, priority, destinations FROM results WHERE id = ?", (number,)
    ).fetchone()
    images = connection.execute(
        "SELECT i.id, i.revision, i.received, ? AS destinations FROM instances i"
        " JOIN result_images ri ON ri.instance = i.id WHERE ri.result = ? ORDER BY i.sop_instance",
        (places, number),
    ).fetchall()
    for image in images:
        enter_result(connection, study, bundle, priority, [image])
    # After the others are there: SQLite would give its number to the first of them.
    connection.execute("DELETE FROM result_images WHERE result = ?", (number,))
    connection.execute("DELETE FROM results WHERE id = ?", (number,))


def raise_study(connection: sqlite3.Connection, study_uid: str, priority: int) -> None:
    """Give all of a study at least this priority; nothing is lowered."""
    for table in ("instances", "results"):
        connection.execute(
            f"UPDATE {table} SET priority = ? WHERE study_uid = ? AND priority < ?",
            (priority, study_uid, priority),
        )
