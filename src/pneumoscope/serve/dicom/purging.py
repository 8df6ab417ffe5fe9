"""Removing files: those of an age, and those that nothing refers to.

A file goes in two steps, each a transaction: first the journal says that it is purged, then it is removed if
the journal still says so. A kill in between leaves a file that the next sweep removes, never an entry whose
file is missing.
"""

from __future__ import annotations

import bisect
import datetime
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pneumoscope.errors import DataError
from pneumoscope.serve.dicom import audit
from pneumoscope.serve.dicom.journal import Journal, now
from pneumoscope.serve.dicom.store import Store

__all__ = ["LEAST_AGE", "Purged", "Swept", "purge", "sweep"]

logger = logging.getLogger(__name__)

AT_ONCE = 50  # files of one transaction, during which the node cannot write to the journal
LEAST_AGE = 3600.0  # seconds; a younger file may be one that is journalled in a moment

# An image that is finished, and whose results have arrived everywhere.
FINISHED = (
    "received < ? AND state IN ('reported', 'ignored', 'unreportable', 'conflict') AND NOT EXISTS (SELECT 1"
    " FROM result_images ri JOIN objects o ON o.result = ri.result JOIN deliveries d ON d.object = o.id"
    " WHERE ri.instance = instances.id AND d.state IN ('pending', 'sending', 'dead'))"
)
OF_PURGED_IMAGES = (
    "o.result IN (SELECT result FROM result_images WHERE instance = ?) AND NOT EXISTS (SELECT 1"
    " FROM result_images x JOIN instances i ON i.id = x.instance"
    " WHERE x.result = o.result AND i.state != 'purged')"
)
# The second part: objects of a result with an image that is not purged, and those that are still to be sent.
NEEDED = (
    "SELECT 1 FROM instances WHERE file = ? AND state != 'purged' UNION ALL"
    " SELECT 1 FROM objects o WHERE o.file = ? AND (EXISTS (SELECT 1 FROM result_images ri JOIN instances i"
    " ON i.id = ri.instance WHERE ri.result = o.result AND i.state != 'purged') OR EXISTS (SELECT 1"
    " FROM deliveries d WHERE d.object = o.id AND d.state IN ('pending', 'sending', 'dead')))"
)


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purge removed: images, result objects, bytes."""

    images: int
    objects: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did.

    Parameters
    ----------
    files, bytes : int
        Removed.
    kept : int
        Received images that the journal does not know and that were not removed: they are too many to come
        from crashes, so the journal is not the one that they were received with.
    """

    files: int = 0
    bytes: int = 0
    kept: int = 0


def purge(journal: Journal, store: Store, older_than: datetime.timedelta) -> Purged:
    """Remove stored images and result objects; what the journal says about them stays, for reports.

    Kept are images that are not finished, and those with a result that has not arrived everywhere. What was
    removed cannot be retracted, exported, processed again or, where mode shadow held it, sent.

    Parameters
    ----------
    journal : Journal
    store : Store
    older_than : timedelta
        Since the image was received.

    Raises
    ------
    DataError
        If a file cannot be removed.
    """
    limit = now() - older_than.total_seconds()
    images = objects = removed = 0
    for row in journal.rows(f"SELECT id FROM instances WHERE {FINISHED}", (limit,)):
        files = _mark(journal, row["id"], limit)
        if not files:
            continue
        images += 1
        sizes = _remove(journal, store, files)
        removed += sum(sizes.values())
        objects += sum(sizes.get(name, 0) > 0 for name in files[1:])
    with journal.change() as connection:
        audit.record(connection, "purged", images=images, objects=objects, before=limit)
    return Purged(images, objects, removed)


def _mark(journal: Journal, image: int, limit: float) -> list[str]:
    """Mark an image as purged; return its file and those of results that no other image needs.

    Nothing is returned where the image is in use again, such as by ``retract --again``.
    """
    with journal.change() as connection:
        marked = connection.execute(
            f"UPDATE instances SET state = 'purged' WHERE id = ? AND {FINISHED} RETURNING file",
            (image, limit),
        ).fetchone()
        if marked is None:
            return []
        connection.execute(
            "UPDATE deliveries SET state = 'withdrawn', detail = 'purged', changed = ? WHERE state = 'held'"
            f" AND object IN (SELECT o.id FROM objects o WHERE {OF_PURGED_IMAGES})",
            (now(), image),
        )
        objects = connection.execute(
            f"SELECT o.file FROM objects o WHERE {OF_PURGED_IMAGES}", (image,)
        ).fetchall()
    return [marked["file"], *(row["file"] for row in objects)]


def sweep(journal: Journal, store: Store, least_age: float = LEAST_AGE) -> Swept:
    """Remove files that the journal does not need: crashes and purges that were cut off leave some.

    Parameters
    ----------
    journal : Journal
    store : Store
    least_age : float
        Seconds; a file that was written later stays.

    Raises
    ------
    DataError
        If a file cannot be removed.
    """
    limit = now() - least_age
    left = {name: at for name, at in store.files() if at < limit and not _needed(journal, name)}
    unknown, unreadable = _unknown_images(journal, left)
    if kept := 0 if _from_crashes(journal, unknown.values()) else len(unknown):
        logger.error(
            "stored images are not in the journal", extra={"images": kept, "fix": "pneumoscope dicom rebuild"}
        )
    stay = unreadable | (unknown.keys() if kept else set())
    sizes: dict[str, int] = {}
    names = sorted(left.keys() - stay)
    for start in range(0, len(names), AT_ONCE):
        # Once more: a result may be written again under the name of one that was cut off.
        again = [name for name in names[start : start + AT_ONCE] if store.written(name) < limit]
        sizes |= _remove(journal, store, again)
    done = Swept(len(sizes), sum(sizes.values()), kept)
    if done.files:
        logger.info("files removed that nothing refers to", extra={"files": done.files, "bytes": done.bytes})
        with journal.change() as connection:
            audit.record(connection, "swept", files=done.files, bytes=done.bytes)
    return done


def _unknown_images(journal: Journal, left: Mapping[str, float]) -> tuple[dict[str, float], set[str]]:
    """Return which of these are received images without an entry, and which a rebuild could not read."""
    skipped = {
        json.loads(row["detail"])["file"]
        for row in journal.rows("SELECT detail FROM audit WHERE event = 'skipped'")
    }
    unknown, unreadable = {}, set()
    for name, at in left.items():
        if name.startswith("results/") or journal.value("SELECT 1 FROM instances WHERE file = ?", (name,)):
            continue
        if name.rsplit("/", 1)[1] in skipped:
            unreadable.add(name)
        else:
            unknown[name] = at
    return unknown, unreadable


def _from_crashes(journal: Journal, times: Iterable[float]) -> bool:
    """Return whether crashes explain images without an entry.

    Images are entered one at a time, so a crash leaves one at most. More between two starts are images that
    were accepted and that this journal, for example an older copy, does not know.
    """
    starts = [
        datetime.datetime.fromisoformat(row["at"]).timestamp()
        for row in journal.rows("SELECT at FROM audit WHERE event = 'started' ORDER BY seq")
    ]
    crashes = Counter(bisect.bisect(starts, at) for at in times)
    return max(crashes.values(), default=0) <= 1


def _remove(journal: Journal, store: Store, names: Iterable[str]) -> dict[str, int]:
    """Remove files that are not needed; return the size of each in bytes, 0 where there was none.

    Within a transaction, so that no other process enters one of them meanwhile.
    """
    with journal.change():
        try:
            return {name: store.remove(name) for name in names if not _needed(journal, name)}
        except OSError as error:
            raise DataError(
                f"{store.folder}: a file cannot be removed ({error.strerror}); run this as the node's user"
            ) from error


def _needed(journal: Journal, name: str) -> bool:
    return journal.value(NEEDED, (name, name)) is not None
