"""The state of a node as its journal has it, and whether its process runs."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pneumoscope.serve.dicom.journal import UNSENT_STATES, Journal, now, priority_name
from pneumoscope.serve.dicom.running import Running, read_running
from pneumoscope.serve.dicom.store import uid_hash

__all__ = ["WAITING", "NodeStatus", "read_status"]

MOST_LISTED = 20

# Images that are accepted and not reported yet; one whose result failed waits for a person, not for the node.
WAITING = (
    "state IN ('received', 'predicted', 'composed') AND id NOT IN (SELECT ri.instance FROM result_images ri"
    " JOIN results r ON r.id = ri.result WHERE r.state = 'failed')"
)


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What ``pneumoscope dicom status`` shows.

    Parameters
    ----------
    running : Running or None
        None where the node does not run.
    instances, results : dict of str to int
        How many are in each state.
    deliveries : dict of str to dict of str to int
        By destination.
    oldest_seconds : float or None
        Age of the oldest image that is not reported yet.
    last_received_seconds : float or None
        Since the last image.
    worklist : list of dict
        Studies that are in hand, first the one that comes first: ``study``, ``priority``, ``positive``,
        ``minutes``.
    parked, conflicts, unreportable, failed, dead : list of dict
        What needs a person, the latest first, with its reason.
    removed : dict of str to int
        Objects that are not sent to destinations which are not in the configuration any more; a person has
        to drop them, or to enter the destination again.
    left_out, split : list of dict
        Files of folders and servers that were not taken, and studies that could not be reported in one result
        and are reported image by image; the latest first, with the reason.
    """

    running: Running | None
    instances: dict[str, int]
    results: dict[str, int]
    deliveries: dict[str, dict[str, int]]
    oldest_seconds: float | None
    last_received_seconds: float | None
    worklist: list[dict[str, Any]]
    parked: list[dict[str, Any]]
    conflicts: list[dict[str, Any]]
    unreportable: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    dead: list[dict[str, Any]]
    removed: dict[str, int]
    left_out: list[dict[str, Any]]
    split: list[dict[str, Any]]

    @property
    def needs_attention(self) -> bool:
        """Whether something waits for a person."""
        stopped = self.parked or self.conflicts or self.unreportable
        return bool(stopped or self.failed or self.dead or self.removed)


def read_status(
    journal: Journal, longest_wait: float, destinations: Collection[str] | None = None
) -> NodeStatus:
    """Read the state of a node.

    Parameters
    ----------
    journal : Journal
    longest_wait : float
        Seconds after which a study comes first.
    destinations : collection of str, optional
        Names in the configuration; if not given, none counts as removed.
    """
    oldest = journal.value(f"SELECT min(received) FROM instances WHERE {WAITING}")
    last = journal.value("SELECT max(received) FROM instances")
    deliveries = _deliveries(journal)
    return NodeStatus(
        running=read_running(journal),
        instances=_counts(journal, "instances"),
        results=_counts(journal, "results"),
        deliveries=deliveries,
        oldest_seconds=_since(oldest),
        last_received_seconds=_since(last),
        worklist=_worklist(journal, longest_wait),
        parked=_instances(journal, "parked"),
        conflicts=_instances(journal, "conflict"),
        unreportable=_instances(journal, "unreportable"),
        failed=_failed(journal),
        dead=_dead(journal),
        removed={} if destinations is None else _unsent_to_others(deliveries, destinations),
        left_out=_events(journal, "left out", "instance", "caller", "why"),
        split=_events(journal, "split", "study", "why"),
    )


def _deliveries(journal: Journal) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row in journal.rows(
        "SELECT destination, state, count(*) FROM deliveries GROUP BY 1, 2 ORDER BY 1, 2"
    ):
        found.setdefault(row[0], {})[row[1]] = row[2]
    return found


def _unsent_to_others(deliveries: dict[str, dict[str, int]], destinations: Collection[str]) -> dict[str, int]:
    return {
        name: unsent
        for name, states in deliveries.items()
        if name not in destinations
        if (unsent := sum(states.get(state, 0) for state in UNSENT_STATES))
    }


def _failed(journal: Journal) -> list[dict[str, Any]]:
    rows = journal.rows(
        "SELECT study_uid, detail FROM results WHERE state = 'failed' ORDER BY id DESC LIMIT ?",
        (MOST_LISTED,),
    )
    return [{"study": row["study_uid"], "why": row["detail"]} for row in rows]


def _dead(journal: Journal) -> list[dict[str, Any]]:
    rows = journal.rows(
        "SELECT o.sop_instance, d.destination, d.detail FROM deliveries d JOIN objects o"
        " ON o.id = d.object WHERE d.state = 'dead' ORDER BY d.id DESC LIMIT ?",
        (MOST_LISTED,),
    )
    return [{"object": row[0], "destination": row[1], "why": row[2]} for row in rows]


def _events(journal: Journal, event: str, *names: str) -> list[dict[str, Any]]:
    """Return the latest audit entries of a kind, with the time and these values of each."""
    rows = journal.rows(
        "SELECT at, detail FROM audit WHERE event = ? ORDER BY seq DESC LIMIT ?", (event, MOST_LISTED)
    )
    found = [(row["at"], json.loads(row["detail"])) for row in rows]
    return [{"at": at, **{name: detail.get(name, "") for name in names}} for at, detail in found]


def _counts(journal: Journal, table: str) -> dict[str, int]:
    return {
        row[0]: row[1] for row in journal.rows(f"SELECT state, count(*) FROM {table} GROUP BY 1 ORDER BY 1")
    }


def _instances(journal: Journal, state: str) -> list[dict[str, Any]]:
    rows = journal.rows(
        "SELECT sop_instance, detail, file FROM instances WHERE state = ? ORDER BY id DESC LIMIT ?",
        (state, MOST_LISTED),
    )
    return [
        {"instance": row["sop_instance"], "log": uid_hash(row["sop_instance"])[:12], "why": row["detail"],
         "file": row["file"]}
        for row in rows
    ]  # fmt: skip


def _worklist(journal: Journal, longest_wait: float) -> list[dict[str, Any]]:
    late = now() - longest_wait
    rows = journal.rows(
        "SELECT study_uid, max(priority) AS priority, max(coalesce(positive, 0)) AS positive,"
        f" min(received) AS received FROM instances WHERE state != 'received' AND {WAITING} OR id IN ("
        "SELECT ri.instance FROM result_images ri JOIN objects o ON o.result = ri.result JOIN deliveries d"
        " ON d.object = o.id WHERE d.state IN ('pending', 'sending')) GROUP BY study_uid"
        " ORDER BY (min(received) < ?) DESC, CASE WHEN min(received) < ? THEN 0 ELSE max(priority) END DESC,"
        " min(received) LIMIT ?",
        (late, late, MOST_LISTED),
    )
    return [
        {
            "study": row["study_uid"],
            "priority": priority_name(row["priority"]),
            "positive": bool(row["positive"]),
            "minutes": round(max(0.0, now() - row["received"]) / 60, 1),
        }
        for row in rows
    ]


def _since(moment: float | None) -> float | None:
    return None if moment is None else round(max(0.0, now() - moment), 1)
