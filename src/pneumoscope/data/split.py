"""Splits and folds in which no patient, and no copy of an image, is in two parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import SPLITS, Manifest
from pneumoscope.errors import DataError, require_extra

__all__ = ["Groups", "check_fractions", "connected", "folds", "group_records", "split"]

Groups = Sequence[Sequence[int]]
"""Positions of records that must stay together."""


def split(
    manifest: Manifest,
    *,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    method: Literal["patient", "random"] = "patient",
    duplicates: Groups | None = None,
) -> Manifest:
    """Assign every record to train, val or test.

    Parameters
    ----------
    manifest : Manifest
        An existing split is replaced.
    fractions : tuple of float
        Shares of train, val and test; not negative, summing to 1.
    seed : int
        The same seed on the same records gives the same split, whatever their order.
    method : {"patient", "random"}
        ``patient`` keeps the images of a patient, identical files and `duplicates` together and
        stratifies by label. ``random`` divides image by image, as many published scripts do; its test
        results are too good, because images of one patient are in both train and test.
    duplicates : sequence of sequence of int, optional
        Positions of records that are copies of one image, such as the near duplicates of an audit.

    Returns
    -------
    Manifest
        The same records in the same order, each with a split.

    Raises
    ------
    DataError
        If the fractions are wrong, or there are too few patients to fill every part.
    """
    check_fractions(fractions)
    shares = np.asarray(fractions, dtype=np.float64)
    if method == "random":
        groups = [[i] for i in range(len(manifest))]
        sides = _random_sides(manifest, shares, seed)
    elif method == "patient":
        groups = group_records(manifest, duplicates)
        sides = _balanced_sides(manifest, groups, shares, seed)
    else:
        raise DataError(f"split method '{method}': choose patient or random")
    for side, name in enumerate(SPLITS):
        if shares[side] > 0 and side not in sides:
            raise DataError(
                f"{manifest.name}: {len(groups)} independent patients are too few to fill '{name}'; "
                "give more images or other fractions"
            )
    return manifest.with_records(
        replace(record, split=SPLITS[side]) for record, side in zip(manifest.records, sides, strict=True)
    )


def check_fractions(fractions: tuple[float, float, float]) -> None:
    """Check the shares of training, validation and test, before any image is read.

    Raises
    ------
    DataError
        If they are not three, one is negative, or they do not sum to 1.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.shape != (3,) or not np.all(shares >= 0) or not np.isclose(shares.sum(), 1.0, atol=1e-6):
        raise DataError(f"fractions {tuple(fractions)}: give three shares, none negative, that sum to 1")


def folds(
    manifest: Manifest, k: int, seed: int = 0, *, duplicates: Groups | None = None
) -> list[npt.NDArray[np.intp]]:
    """Divide a data set into `k` parts for cross-validation, by patient and stratified by label.

    With scikit-learn's StratifiedGroupKFold; the same seed gives the same folds, whatever the order of the
    records.

    Returns
    -------
    list of ndarray of intp
        Ascending positions of the records held out in each fold; together they are every record once.

    Raises
    ------
    DataError
        If `k` is below 2 or above the number of independent patients.
    MissingExtraError
        If scikit-learn is not installed.
    """
    groups = group_records(manifest, duplicates)
    if not 2 <= k <= len(groups):
        raise DataError(f"{k} folds: choose 2 to {len(groups)}, the number of independent patients")
    with require_extra("data", "cross-validation"):
        from sklearn.model_selection import StratifiedGroupKFold
    # Records and groups by path, so that the order of the records does not matter.
    order = sorted(range(len(manifest)), key=lambda i: manifest.records[i].path)
    group_of = {i: g for g, group in enumerate(groups) for i in group}
    number: dict[int, int] = {}
    members = [number.setdefault(group_of[i], len(number)) for i in order]
    strata = _strata([manifest.records[i].label for i in order], k)
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed % 2**32)  # it takes no larger one
    parts = splitter.split(np.zeros(len(order)), strata, members)
    return [np.sort(np.asarray(order, dtype=np.intp)[held_out]) for _, held_out in parts]


def _strata(labels: list[str], k: int) -> list[str]:
    """Return labels to stratify by; those with fewer than `k` images cannot be in every fold: joined."""
    counts = Counter(labels)
    rare = {label for label, count in counts.items() if count < k}
    if sum(counts[label] for label in rare) < k:
        # Too few even together: they count with the most frequent label.
        (common, _), *_ = counts.most_common(1)
        return [common if label in rare else label for label in labels]
    return ["" if label in rare else label for label in labels]


def group_records(manifest: Manifest, duplicates: Groups | None = None) -> list[list[int]]:
    """Group records that share a patient, identical bytes or a group of duplicates, also in a chain.

    Returns
    -------
    list of list of int
        Positions of the records, every record in one group.
    """
    links = [(group[0], i) for group in duplicates or () for i in group[1:]]
    first: dict[tuple[str, str], int] = {}
    for i, record in enumerate(manifest.records):
        keys = (("patient", record.patient_id), ("sha256", record.sha256))
        links += [(first.setdefault(key, i), i) for key in keys if key[1]]
    return connected(len(manifest), links)


def connected(count: int, links: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Group the positions 0 to `count` - 1 that links join, also in a chain.

    Returns
    -------
    list of list of int
        Every position in one group; groups by their first position, positions ascending.
    """
    with require_extra("data", "grouping the images of a patient"):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
    pairs = np.asarray(list(links), dtype=np.intp).reshape(-1, 2)
    ones = np.ones(len(pairs), dtype=np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    component = connected_components(graph, directed=False)[1] if count else ()
    groups: dict[int, list[int]] = {}
    for i in range(count):
        groups.setdefault(int(component[i]), []).append(i)
    return list(groups.values())


def _random_sides(manifest: Manifest, shares: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.intp]:
    by_path = sorted(range(len(manifest)), key=lambda i: manifest.records[i].path)
    order = np.asarray(by_path, dtype=np.intp)[np.random.default_rng(seed).permutation(len(manifest))]
    ends = np.rint(np.cumsum(shares) * len(manifest)).astype(int)
    sides = np.empty(len(manifest), dtype=np.intp)
    for side, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        sides[order[start:end]] = side
    return sides


def _balanced_sides(
    manifest: Manifest, groups: list[list[int]], shares: npt.NDArray[np.float64], seed: int
) -> npt.NDArray[np.intp]:
    """Assign whole groups, large ones first, each to the part where the label balance suffers least.

    That is the least growth of the chi-square distance between the label counts of the parts and their
    targets. Among groups of one size the order is random by seed. Published splits depend on this code.
    """
    labels = manifest.labels()
    column = {label: j for j, label in enumerate(labels)}
    counts = np.zeros((len(groups), len(labels)))
    for g, group in enumerate(groups):
        for i in group:
            counts[g, column[manifest.records[i].label]] += 1
    open_sides = np.flatnonzero(shares > 0)
    target = shares[open_sides, None] * counts.sum(axis=0)
    have = np.zeros_like(target)
    # By path first, so that the order of the records does not matter; then shuffled; then by size.
    names = [min(manifest.records[i].path for i in group) for group in groups]
    order = np.asarray(sorted(range(len(groups)), key=names.__getitem__), dtype=np.intp)
    order = np.random.default_rng(seed).permutation(order)
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    sides = np.empty(len(manifest), dtype=np.intp)
    for g in order:
        harm = (counts[g] * (2 * (have - target) + counts[g]) / target).sum(axis=1)
        best = int(np.argmin(harm))
        have[best] += counts[g]
        sides[groups[g]] = open_sides[best]
    return sides
