"""The monthly report, from the journal: volumes, rejections, positives by scanner and view, drift, verdicts.

Drift is measured by the population stability index: the sum over bins of (share now - share before) times the
logarithm of their ratio. Below 0.1 is usually called stable, above 0.25 changed.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from pneumoscope.data.tables import read_rows, require_columns
from pneumoscope.errors import DataError
from pneumoscope.evaluation.weighted import wilson
from pneumoscope.model.bundle import Bundle
from pneumoscope.serve.dicom.inputs import INPUT_MEASURES, input_reference
from pneumoscope.serve.dicom.journal import Journal

__all__ = ["Drift", "MonthlyReport", "Share", "monthly_report", "stability_index"]

STABLE, CHANGED = 0.1, 0.25
FEWEST = 50  # images below which a stability index says nothing
BINS = 10
LEAST_SHARE = 1e-4

TRUE = frozenset({"1", "yes", "true", "positive", "pos", "present"})
FALSE = frozenset({"0", "no", "false", "negative", "neg", "absent"})


@dataclass(frozen=True, slots=True)
class Share:
    """A count out of a total, with the 95% Wilson interval of the share."""

    count: int
    total: int

    @property
    def value(self) -> float | None:
        """The share; None of nothing."""
        return self.count / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its 95% interval; None of nothing."""
        if not self.total:
            return None
        low, high = wilson(self.count, self.total)
        return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Drift:
    """How far a distribution has moved.

    Parameters
    ----------
    name : str
        What was measured.
    against : str
        The reference.
    images : int
    index : float or None
        Population stability index; None where there are too few images.
    warning : str
        In a sentence; empty where there is nothing to say.
    """

    name: str
    against: str
    images: int
    index: float | None
    warning: str = ""


@dataclass(frozen=True, slots=True)
class MonthlyReport:
    """What happened in a month.

    Parameters
    ----------
    month : str
        Such as ``2026-11``.
    bundle : str
        Identity of the present bundle.
    images, studies, results : int
        Images received; studies with a result, and all their results: a study has several where its images
        arrived apart, or a result was made again.
    callers, states, statuses, reasons : dict of str to int
        Images by sender, state, status of the prediction, and reason of rejection.
    positives : dict of str to dict of str to Share
        By ``scanner``, ``view`` and ``site``.
    seconds : dict of str to float
        From the last image of a result to its stored objects: median and 95th percentile.
    drift : list of Drift
    verdicts : dict of str to dict of str to Share
        Sensitivity and specificity by site, where a table of verdicts was given.
    unmatched : int
        Verdicts without a prediction of that month.
    other_bundles : int
        Predictions of that month by other bundles; they are not in `positives`, `drift` and `verdicts`.
    """

    month: str
    bundle: str
    images: int
    studies: int
    results: int
    callers: dict[str, int]
    states: dict[str, int]
    statuses: dict[str, int]
    reasons: dict[str, int]
    positives: dict[str, dict[str, Share]]
    seconds: dict[str, float]
    drift: list[Drift]
    verdicts: dict[str, dict[str, Share]] = field(default_factory=dict)
    unmatched: int = 0
    other_bundles: int = 0

    @property
    def warnings(self) -> list[str]:
        """What a person should look at."""
        return [one.warning for one in self.drift if one.warning]


def monthly_report(
    journal: Journal,
    bundle: Bundle,
    month: str,
    *,
    baseline: str | None = None,
    verdicts: Path | None = None,
) -> MonthlyReport:
    """Make the report of a month.

    Parameters
    ----------
    journal : Journal
    bundle : Bundle
        Its reference distributions are compared with.
    month : str
        Such as ``2026-11``, in local time.
    baseline : str, optional
        A month of this node to compare inputs and scores with, in place of the bundle's reference.
    verdicts : Path, optional
        Table with a column ``study_uid`` or ``sop_instance``, a column ``verdict``, and optionally ``site``.

    Raises
    ------
    DataError
        If a month or the table cannot be read.
    """
    rows = _images(journal, month)
    predicted = [row for row in rows if row["status"] == "ok"]
    done = [row for row in predicted if row["bundle"] == bundle.identity]
    built = journal.rows(
        "SELECT study_uid, built - last_received AS seconds FROM results WHERE built IS NOT NULL"
        " AND last_received >= ? AND last_received < ?",
        _bounds(month),
    )
    seconds = [max(0.0, row["seconds"]) for row in built]
    table, unmatched = _verdicts(verdicts, done) if verdicts is not None else ({}, 0)
    return MonthlyReport(
        month=month,
        bundle=bundle.identity,
        images=len(rows),
        studies=len({row["study_uid"] for row in built}),
        results=len(built),
        callers=_counted(row["caller"] for row in rows),
        states=_counted(row["state"] for row in rows),
        statuses=_counted(row["status"] or "none" for row in rows),
        reasons=_counted(
            reason for row in rows if row["status"] != "ok" for reason in json.loads(row["reasons"] or "[]")
        ),
        positives={name: _positives(done, name) for name in ("scanner", "view", "site")},
        seconds={
            "median": round(float(np.median(seconds)), 2),
            "95th percentile": round(float(np.quantile(seconds, 0.95)), 2),
        }
        if seconds
        else {},
        drift=_drift(done, bundle, None if baseline is None else _images(journal, baseline), baseline),
        verdicts=table,
        unmatched=unmatched,
        other_bundles=len(predicted) - len(done),
    )


def stability_index(shares: Sequence[float], reference: Sequence[float]) -> float:
    """Return the population stability index of two distributions over the same bins, 0 or more."""
    now, before = (
        np.maximum(np.asarray(one, np.float64) / max(float(np.sum(one)), 1e-12), LEAST_SHARE)
        for one in (shares, reference)
    )
    return float(((now - before) * np.log(now / before)).sum())


def _bounds(month: str) -> tuple[float, float]:
    try:
        first = datetime.datetime.strptime(month, "%Y-%m").astimezone()
        after = datetime.datetime(first.year + first.month // 12, first.month % 12 + 1, 1).astimezone()
    except (ValueError, OverflowError) as error:
        raise DataError(f"{month!r} is no month; give it as 2026-11") from error
    return first.timestamp(), after.timestamp()


def _images(journal: Journal, month: str) -> list[Mapping[str, Any]]:
    rows = journal.rows(
        "SELECT sop_instance, study_uid, caller, state, status, reasons, positive, p_target, scanner, view,"
        " site, inputs, bundle FROM instances WHERE received >= ? AND received < ?",
        _bounds(month),
    )
    return [dict(row) for row in rows]


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _positives(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, Share]:
    groups: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        groups[row[name] or "not stated"].append(bool(row["positive"]))
    return {group: Share(sum(values), len(values)) for group, values in sorted(groups.items())}


def _drift(
    rows: Sequence[Mapping[str, Any]],
    bundle: Bundle,
    before: Sequence[Mapping[str, Any]] | None,
    baseline: str | None,
) -> list[Drift]:
    if before is not None:
        before = [row for row in before if row["status"] == "ok" and row["bundle"] == bundle.identity]
    found = [_score_drift(rows, bundle, before, baseline)]
    measured = [json.loads(row["inputs"] or "{}") for row in rows]
    reference = input_reference(bundle)
    earlier = [json.loads(row["inputs"] or "{}") for row in before or ()]
    for name, meaning in INPUT_MEASURES.items():
        values = [one[name] for one in measured if name in one]
        if before is not None:
            known = [one[name] for one in earlier if name in one]
            if len(known) >= FEWEST:
                edges = np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1])
                expected = _counts(edges, known, BINS)
                found.append(_one_drift(meaning, f"{baseline} at this node", values, edges, expected))
        elif name in reference:
            mean, spread = reference[name]
            normal = NormalDist(mean, spread)
            edges = np.array([normal.inv_cdf(share) for share in np.linspace(0, 1, BINS + 1)[1:-1]])
            against = (
                "a normal distribution with mean and deviation of the images that the gate was fitted on"
            )
            found.append(_one_drift(meaning, against, values, edges, [1.0] * BINS))
    return found


def _score_drift(
    rows: Sequence[Mapping[str, Any]],
    bundle: Bundle,
    before: Sequence[Mapping[str, Any]] | None,
    baseline: str | None,
) -> Drift:
    name = f"probability of {bundle.manifest.target.name}"
    scores = [row["p_target"] for row in rows if row["p_target"] is not None]
    evaluation = bundle.manifest.results.evaluation
    if before is not None:
        edges = np.linspace(0, 1, BINS + 1)[1:-1]
        known = [row["p_target"] for row in before if row["p_target"] is not None]
        against = f"{baseline} at this node"
        if len(known) < FEWEST:
            return Drift(name, against, len(scores), None)
        return _one_drift(name, against, scores, edges, _counts(edges, known, BINS))
    if evaluation is None or not evaluation.reliability:
        return Drift(name, "the bundle, which has no reference", len(scores), None)
    bins = sorted(evaluation.reliability, key=lambda one: one.low)
    edges = np.array([one.low for one in bins[1:]])
    against = f"the bundle's own evaluation on {evaluation.evaluated_on}"
    return _one_drift(name, against, scores, edges, [one.images for one in bins])


def _counts(edges: Any, values: Sequence[float], bins: int) -> list[int]:
    """Return how many values are in each bin; one on an edge is in the upper bin."""
    counts: list[int] = np.bincount(np.searchsorted(edges, values, side="right"), minlength=bins).tolist()
    return counts


def _one_drift(
    name: str, against: str, values: Sequence[float], edges: Any, expected: Sequence[float]
) -> Drift:
    if len(values) < FEWEST:
        return Drift(name, against, len(values), None)
    index = round(stability_index(_counts(edges, values, len(expected)), expected), 3)
    warning = ""
    if index >= CHANGED:
        warning = (
            f"The distribution of the {name} has changed (index {index:.2f}, {CHANGED} or more) against "
            f"{against}: find out whether patients, devices or processing have changed before relying on "
            "the results."
        )
    elif index >= STABLE:
        warning = f"The distribution of the {name} has moved (index {index:.2f}) against {against}: watch it."
    return Drift(name, against, len(values), index, warning)


def _verdicts(path: Path, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, dict[str, Share]], int]:
    """Compare predictions with radiologists' verdicts; a study is positive if any of its images is."""
    columns, given = read_rows(path)
    key = "sop_instance" if "sop_instance" in columns else "study_uid"
    require_columns(path, columns, (key, "verdict"))
    predicted: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        predicted[row[key]].append(row)
    counts: dict[str, Counter[tuple[bool, bool]]] = defaultdict(Counter)
    unmatched = 0
    for one in given:
        found = predicted.get(str(one[key]).strip())
        verdict = _verdict(path, str(one["verdict"]))
        if not found:
            unmatched += 1
            continue
        site = str(one.get("site") or "").strip() or found[0]["site"] or "not stated"
        positive = any(row["positive"] for row in found)
        for group in (site, "all sites"):
            counts[group][verdict, positive] += 1
    return {
        site: {
            "sensitivity": Share(pairs[True, True], pairs[True, True] + pairs[True, False]),
            "specificity": Share(pairs[False, False], pairs[False, False] + pairs[False, True]),
        }
        for site, pairs in sorted(counts.items(), key=lambda item: (item[0] == "all sites", item[0]))
    }, unmatched


def _verdict(path: Path, text: str) -> bool:
    word = text.strip().lower()
    if word not in TRUE | FALSE:
        raise DataError(f"{path}: the verdict {text!r} is neither yes nor no; write 'yes' or 'no'")
    return word in TRUE
