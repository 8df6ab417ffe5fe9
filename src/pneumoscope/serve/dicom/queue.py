"""What is to be processed, in the journal: images to predict, studies that are complete, results to build.

An image is ``received``, then ``predicted``, ``composed`` into a result, and ``reported`` once the objects of
the result are stored. Or it ends as ``ignored`` by a rule, ``parked`` after several crashes, or
``unreportable``, where there is no study to report it in.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pneumoscope.serve.dicom import audit
from pneumoscope.serve.dicom.composing import enter_result, raise_study, split_result
from pneumoscope.serve.dicom.journal import Journal, now

__all__ = [
    "BuiltObject",
    "Outcome",
    "Queue",
    "QueuedImage",
    "QueuedResult",
    "enter_objects",
]

MOST_IMAGES = 12  # of one result, which is built within the time and memory of one image
COLUMNS = "id, sop_instance, sop_class, sha256, file, caller, link, tries, received, priority"


@dataclass(frozen=True, slots=True)
class QueuedImage:
    """An image to predict."""

    id: int
    sop_instance: str
    sop_class: str
    sha256: str
    file: str
    caller: str
    link: str
    tries: int
    received: float
    priority: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker found in an image.

    Parameters
    ----------
    facts : mapping
        Of its header.
    destinations : tuple of str
    priority : int
    row : mapping
        The prediction.
    positive : bool or None
    inputs : mapping
        See `pneumoscope.serve.dicom.inputs`.
    seconds : float
        In the worker.
    finding, region, size
        Of the heat map, and rows and columns of the image.
    heatmap, preview : bytes
    """

    facts: Mapping[str, Any]
    destinations: Sequence[str]
    priority: int
    row: Mapping[str, Any]
    positive: bool | None
    inputs: Mapping[str, float]
    seconds: float
    finding: str | None
    region: Sequence[float] | None
    size: Sequence[int] | None
    heatmap: bytes
    preview: bytes


@dataclass(frozen=True, slots=True)
class QueuedResult:
    """A result to build: its images as the worker takes them, and heat map and preview of each.

    It is ``deferred`` where building it has failed before: images are predicted first.
    """

    id: int
    study_uid: str
    made: str
    revision: int
    priority: int
    tries: int
    deferred: int
    images: list[dict[str, Any]]
    pieces: list[bytes]


@dataclass(frozen=True, slots=True)
class BuiltObject:
    """An object of a result, stored."""

    sop_instance: str
    sop_class: str
    series_uid: str
    study_uid: str
    file: str


class Queue:
    """Images, studies and results of a journal.

    Parameters
    ----------
    journal : Journal
    longest_wait : float
        Seconds; what has waited for so long comes first, whatever the priority of others.
    """

    def __init__(self, journal: Journal, longest_wait: float) -> None:
        self.journal = journal
        self._longest_wait = longest_wait

    def use_bundle(self, bundle: str) -> int:
        """Let images be predicted again that another bundle predicted and that are not reported yet.

        Parameters
        ----------
        bundle : str
            Identity of the present one.

        Returns
        -------
        int
            How many images.
        """
        with self.journal.change() as connection:
            old = "(SELECT id FROM results WHERE state IN ('composed', 'failed') AND bundle != ?)"
            again = connection.execute(
                "UPDATE instances SET state = 'received', tries = 0"
                " WHERE (state = 'predicted' AND bundle != ?)"
                f" OR id IN (SELECT instance FROM result_images WHERE result IN {old})",
                (bundle, bundle),
            ).rowcount
            connection.execute(f"DELETE FROM result_images WHERE result IN {old}", (bundle,))
            connection.execute(f"DELETE FROM results WHERE id IN {old}", (bundle,))
            if again:
                audit.record(connection, "predicted again", images=again, bundle=bundle)
        return again

    def next_image(self, taken: Collection[int]) -> QueuedImage | None:
        """Return the image to predict next, but none of those that are taken.

        What has waited for too long comes first. One that crashed or outlasted its limit is tried again when
        no other is waiting, or when it has waited for too long and no other has.
        """
        since = now() - self._longest_wait
        rows = self.journal.rows(
            f"SELECT {COLUMNS} FROM instances WHERE state = 'received'"
            " ORDER BY (received < ?) DESC, tries, (CASE WHEN received < ? THEN 0 ELSE priority END) DESC, id"
            " LIMIT ?",
            (since, since, len(taken) + 1),
        )
        return next((QueuedImage(**row) for row in rows if row["id"] not in taken), None)

    def predicted(self, image: QueuedImage, outcome: Outcome, bundle: str) -> None:
        """Record the prediction of an image."""
        facts, row = outcome.facts, outcome.row
        with self.journal.change() as connection:
            connection.execute(
                "UPDATE instances SET state = 'predicted', detail = '', study_uid = ?, modality = ?,"
                " body_part = ?, view = ?, age_band = ?, scanner = ?, site = ?, bundle = ?, status = ?,"
                " reasons = ?, positive = ?, p_target = ?, prediction = ?, inputs = ?, destinations = ?,"
                " predicted = ?, seconds = ?, priority = max(priority, ?) WHERE id = ?",
                (
                    *(facts[name] for name in ("study_uid", "modality", "body_part", "view", "age_band")),
                    *(facts["scanner"], facts["site"], bundle, row["status"], json.dumps(row["reasons"])),
                    *(outcome.positive, row["p_target"], json.dumps(row), json.dumps(outcome.inputs)),
                    *(json.dumps(list(outcome.destinations)), now(), outcome.seconds),
                    *(outcome.priority, image.id),
                ),
            )
            height, width = outcome.size or (None, None)
            connection.execute(
                "INSERT OR REPLACE INTO artefacts VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    *(image.id, outcome.finding, json.dumps(outcome.region), height, width),
                    *(outcome.heatmap, outcome.preview),
                ),
            )
            audit.record(
                connection,
                "predicted",
                instance=image.sop_instance,
                bundle=bundle,
                status=row["status"],
                reasons=row["reasons"],
            )

    def ended(
        self, image: QueuedImage, state: str, detail: str, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Record that nothing more is done with an image, and why: it is ignored or unreportable."""
        known = facts or {}
        with self.journal.change() as connection:
            connection.execute(
                "UPDATE instances SET state = ?, detail = ?, study_uid = ?, modality = ?, view = ?,"
                " scanner = ?, site = ?, predicted = ? WHERE id = ?",
                (
                    *(state, detail, known.get("study_uid"), known.get("modality"), known.get("view")),
                    *(known.get("scanner"), known.get("site"), now(), image.id),
                ),
            )
            audit.record(connection, state, instance=image.sop_instance, why=detail)

    def stopped(self, image: QueuedImage, why: str, most_tries: int) -> bool:
        """Count a crash or time-out; return whether the image is parked now."""
        parked = image.tries + 1 >= most_tries
        with self.journal.change() as connection:
            connection.execute(
                "UPDATE instances SET tries = tries + 1, detail = ?, state = ? WHERE id = ?",
                (why, "parked" if parked else "received", image.id),
            )
            if parked:
                audit.record(connection, "parked", instance=image.sop_instance, why=why)
        return parked

    def studies_in_hand(self) -> dict[str, list[tuple[int, str]]]:
        """Return the studies with predicted images that are in no result: id and link of each image."""
        studies: dict[str, list[tuple[int, str]]] = {}
        for row in self.journal.rows(
            "SELECT id, study_uid, link FROM instances WHERE state = 'predicted' ORDER BY id"
        ):
            studies.setdefault(row["study_uid"], []).append((row["id"], row["link"]))
        return studies

    def links_in_hand(self) -> frozenset[str]:
        """Return the links that brought images which are not predicted yet."""
        rows = self.journal.rows("SELECT DISTINCT link FROM instances WHERE state = 'received'")
        return frozenset(row["link"] for row in rows)

    def is_rebuilding(self, link: str) -> bool:
        """Return whether a rebuild took images with this link that were not tried yet."""
        return bool(
            self.journal.value(
                "SELECT 1 FROM instances WHERE state = 'received' AND link = ? AND via = 'rebuild'"
                " AND tries = 0 LIMIT 1",
                (link,),
            )
        )

    def compose(self, study_uid: str, bundle: str, positive_priority: int) -> int:
        """Put the predicted images of a study, the first so many, into one result; return its number."""
        with self.journal.change() as connection:
            images = connection.execute(
                "SELECT id, revision, priority, positive, destinations, received FROM instances"
                " WHERE study_uid = ? AND state = 'predicted' ORDER BY sop_instance LIMIT ?",
                (study_uid, MOST_IMAGES),
            ).fetchall()
            priority = max(image["priority"] for image in images)
            if any(image["positive"] for image in images):
                priority = max(priority, positive_priority)
            number = enter_result(connection, study_uid, bundle, priority, images)
            connection.executemany(
                "UPDATE instances SET state = 'composed' WHERE id = ?", [(image["id"],) for image in images]
            )
            raise_study(connection, study_uid, priority)
        return number

    def next_result(self, taken: Collection[int]) -> QueuedResult | None:
        """Return the result to build next, but none of those that are taken; the failed ones come last."""
        since = now() - self._longest_wait
        rows = self.journal.rows(
            "SELECT id, study_uid, made, revision, priority, tries,"
            " (tries AND last_received >= ?) AS deferred FROM results WHERE state = 'composed'"
            " ORDER BY (last_received < ?) DESC, tries, priority DESC, id LIMIT ?",
            (since, since, len(taken) + 1),
        )
        row = next((row for row in rows if row["id"] not in taken), None)
        if row is None:
            return None
        images, pieces = [], []
        for one in self.journal.rows(
            "SELECT i.file, i.sop_class, i.sop_instance, i.sha256, i.prediction, a.* FROM result_images r"
            " JOIN instances i ON i.id = r.instance JOIN artefacts a ON a.instance = i.id"
            " WHERE r.result = ? ORDER BY i.sop_instance",
            (row["id"],),
        ):
            same = {name: one[name] for name in ("sop_class", "sop_instance", "sha256", "height", "width")}
            region = json.loads(one["region"])
            images.append(
                {
                    **same,
                    "path": one["file"],
                    "row": json.loads(one["prediction"]),
                    "finding": one["finding"],
                    "region": region,
                }
            )
            pieces += [one["heatmap"], one["preview"]]
        return QueuedResult(**row, images=images, pieces=pieces)

    def built(self, result: QueuedResult, objects: Sequence[BuiltObject], *, live: bool) -> list[str]:
        """Record the objects of a result, to be sent where it goes; return those destinations."""
        with self.journal.change() as connection:
            row = connection.execute(
                "SELECT destinations, EXISTS (SELECT 1 FROM result_images JOIN instances ON id = instance"
                " WHERE result = results.id AND via = 'rebuild') AS known_before FROM results WHERE id = ?",
                (result.id,),
            ).fetchone()
            destinations: list[str] = json.loads(row["destinations"])
            # Under a journal that was lost it may have been sent: the destination is asked first.
            state = "held" if not live else "sending" if row["known_before"] else "pending"
            enter_objects(connection, result.id, objects, dict.fromkeys(destinations, state))
            connection.execute(
                "UPDATE results SET state = 'built', detail = '', built = ? WHERE id = ?", (now(), result.id)
            )
            _reported(connection, result.id)
            audit.record(
                connection,
                "built",
                study=result.study_uid,
                objects=[one.sop_instance for one in objects],
                instances=[image["sop_instance"] for image in result.images],
            )
        return destinations

    def not_built(self, result: QueuedResult, why: str, *, most_tries: int, final: bool) -> bool:
        """Count a failure to build; return whether it is given up. It may be tried again by a command.

        A result of several images that is given up becomes one result for each of them, so that an image that
        cannot be reported costs the others nothing.
        """
        failed = final or result.tries + 1 >= most_tries
        with self.journal.change() as connection:
            if failed and len(result.images) > 1:
                split_result(connection, result.id)
                audit.record(connection, "split", study=result.study_uid, why=why)
                return False
            connection.execute(
                "UPDATE results SET tries = tries + 1, detail = ?, state = ? WHERE id = ?",
                (why, "failed" if failed else "composed", result.id),
            )
            if failed:
                audit.record(connection, "not built", study=result.study_uid, why=why)
        return failed


def enter_objects(
    connection: sqlite3.Connection, result: int, objects: Sequence[BuiltObject], states: Mapping[str, str]
) -> None:
    """Enter stored objects of a result, each with a delivery to every destination, in the given state."""
    for one in objects:
        number = connection.execute(
            "INSERT INTO objects (result, sop_instance, sop_class, series_uid, study_uid, file)"
            " VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
            (result, one.sop_instance, one.sop_class, one.series_uid, one.study_uid, one.file),
        ).fetchone()[0]
        connection.executemany(
            "INSERT INTO deliveries (object, destination, state, changed) VALUES (?, ?, ?, ?)",
            [(number, destination, state, now()) for destination, state in states.items()],
        )


def _reported(connection: sqlite3.Connection, result: int) -> None:
    """Mark the images of a result, whose heat maps and previews are in its objects now."""
    within = "(SELECT instance FROM result_images WHERE result = ?)"
    connection.execute(f"UPDATE instances SET state = 'reported' WHERE id IN {within}", (result,))
    connection.execute(f"DELETE FROM artefacts WHERE instance IN {within}", (result,))
