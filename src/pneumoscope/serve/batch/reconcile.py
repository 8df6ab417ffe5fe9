"""The end of a run: every part is read again, and each entry of the manifest must have exactly one row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from pneumoscope.errors import DataError
from pneumoscope.parallel import Progress, in_order
from pneumoscope.serve.batch.parts import PARTS, part_name
from pneumoscope.serve.batch.plan import Plan
from pneumoscope.serve.batch.store import Store, first_line

__all__ = ["SUMMARY", "Summary", "reconcile"]

SUMMARY = "summary.json"
READERS = 8  # threads; object stores respond slowly, not seldom


@dataclass(frozen=True)
class Summary:
    """Content of ``summary.json``.

    Parameters
    ----------
    entries : int
        Images of the manifest.
    rows : int
        Rows in all parts.
    ok, rejected, unreadable : int
        Rows by status.
    reasons : dict of str to int
        Rows by reason, cautions included.
    missing, repeated, foreign : int
        Entries without a row; rows beyond the first of an entry; rows of no entry.
    foreign_parts : list of str
        Files in the folder of results that are no part of this run.
    same_content : int
        Images whose content is that of another one before them.
    bundle, operating_point, population
        As the run was started.
    images_predicted, seconds : int and float
        By the last start of the command alone, and how long that took, without starting Ray.
    """

    entries: int
    rows: int
    ok: int
    rejected: int
    unreadable: int
    reasons: dict[str, int]
    missing: int
    repeated: int
    foreign: int
    same_content: int
    bundle: str
    operating_point: str | None = None
    population: str | None = None
    foreign_parts: list[str] = field(default_factory=list)
    images_predicted: int = 0
    seconds: float = 0.0

    @property
    def adds_up(self) -> bool:
        """Whether inputs = result rows + error rows, each exactly once."""
        return self.entries == self.rows == self.ok + self.rejected + self.unreadable and not (
            self.missing or self.repeated or self.foreign or self.foreign_parts
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fields, and ``adds_up``."""
        speed = round(self.images_predicted / self.seconds, 1) if self.seconds else None
        return {"adds_up": self.adds_up, **asdict(self), "images_per_second": speed}


def reconcile(
    store: Store,
    plan: Plan,
    *,
    images_predicted: int = 0,
    seconds: float = 0.0,
    progress: Progress | None = None,
) -> Summary:
    """Count what is in the parts; memory is nine bytes an entry.

    Parameters
    ----------
    store : Store
        OUTPUT.
    plan : Plan
        Of the run.
    images_predicted, seconds
        For the summary.
    progress : Progress, optional
        Counts the parts.
    """
    shown = progress or Progress()
    shown.step("checking the results")
    expected = {part_name(part).removeprefix(f"{PARTS}/") for part in range(plan.parts)}
    present = store.names(PARTS)
    seen = np.zeros(plan.entries, np.uint8)
    contents = np.zeros(plan.entries, np.uint64)
    hashed = rows = foreign = repeated = 0
    statuses: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    names = [name for name in present if name in expected]
    tables = in_order(names, lambda some: [_read(store, name) for name in some], workers=READERS, chunk=1)
    for done, table in enumerate(tables, start=1):
        shown.update(done, len(names))
        ids = table["id"].to_numpy()
        known = ids[(ids >= 0) & (ids < plan.entries)]
        rows, foreign = rows + len(ids), foreign + len(ids) - len(known)
        places, counts = np.unique(known, return_counts=True)
        repeated += int((counts - 1).sum() + np.count_nonzero(seen[places]))
        seen[places] = 1
        statuses.update(_counts(table["status"]))
        reasons.update(_counts(compute.list_flatten(table["reasons"])))
        digests = [int(one[:16], 16) for one in table["sha256"].to_pylist() if one]
        digests = digests[: plan.entries - hashed]
        contents[hashed : hashed + len(digests)] = digests
        hashed += len(digests)
    return Summary(
        entries=plan.entries,
        rows=rows,
        ok=statuses["ok"],
        rejected=statuses["rejected"],
        unreadable=statuses["unreadable"],
        reasons=dict(reasons.most_common()),
        missing=int(plan.entries - np.count_nonzero(seen)),
        repeated=repeated,
        foreign=foreign,
        foreign_parts=[name for name in present if name not in expected],
        same_content=hashed - len(np.unique(contents[:hashed])),
        bundle=plan.bundle,
        operating_point=plan.operating_point,
        population=plan.population,
        images_predicted=images_predicted,
        seconds=round(seconds, 2),
    )


def _read(store: Store, name: str) -> pa.Table:
    path = f"{PARTS}/{name}"
    try:
        with store.open(path) as file:
            return parquet.read_table(file, columns=["id", "status", "reasons", "sha256"])
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{store.location}/{path}: damaged ({first_line(error)}); remove it and start again"
        ) from error


def _counts(values: Sequence[Any]) -> dict[str, int]:
    return {one["values"]: one["counts"] for one in compute.value_counts(values).to_pylist()}
