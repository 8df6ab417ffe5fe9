"""Predictions with their labels: what every measure and every plot is computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pneumoscope.data.labels import class_index
from pneumoscope.domain import Prediction, Target, age_band
from pneumoscope.errors import DataError
from pneumoscope.predict.calibration import target_probability

if TYPE_CHECKING:
    from pneumoscope.data.manifest import Record

__all__ = [
    "BoolArray",
    "FloatArray",
    "IntArray",
    "Mistake",
    "ScoredSet",
    "Threshold",
    "scored_set",
    "worst_mistakes",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Threshold = float | FloatArray
"""One for all images, or one for each, shape (N,)."""


@dataclass(frozen=True, eq=False)
class ScoredSet:
    """N evaluated images with their labels.

    Parameters
    ----------
    classes : tuple of str, length K
        Class names in the order of the columns of `probabilities`.
    labels : ndarray of int64, shape (N,)
        Index into `classes`.
    probabilities : ndarray of float64, shape (N, K)
        Calibrated, in [0, 1].
    patients : tuple of str, length N
        Images that share one are never taken for independent.
    paths : tuple of str, length N
        As the manifest has them.
    sources : tuple of str, length N
        Hospital, series or data set each image comes from.
    attributes : mapping of str to tuple of str of length N
        ``view``, ``age`` (a band of `pneumoscope.domain.AGE_BANDS`), ``sex`` and ``population`` (whose
        calibration was used) of each image; empty where unknown.
    target : Target
        The finding that is evaluated; some of the classes count as it, not all.

    Raises
    ------
    DataError
        If the lengths disagree, a label is out of range, a probability is outside [0, 1], or no class, or
        every class, counts as the target.
    """

    classes: tuple[str, ...]
    labels: IntArray
    probabilities: FloatArray
    patients: tuple[str, ...]
    paths: tuple[str, ...]
    sources: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    target: Target = field(kw_only=True)

    def __post_init__(self) -> None:
        n, k = len(self.labels), len(self.classes)
        if not self.target_mask.any() or self.target_mask.all():
            raise DataError(
                f"some of the classes ({', '.join(self.classes)}), not all, must count as "
                f"{self.target.name}; correct the target's classes"
            )
        if self.probabilities.shape != (n, k):
            raise DataError(
                f"{n} labels of {k} classes need probabilities of shape ({n}, {k}), "
                f"not {self.probabilities.shape}"
            )
        if not len(self.patients) == len(self.paths) == len(self.sources) == n:
            raise DataError(f"{n} labels need as many patients, paths and sources")
        if any(len(values) != n for values in self.attributes.values()):
            raise DataError(f"{n} labels need as many values of each attribute")
        if n and not (self.labels.min() >= 0 and self.labels.max() < k):
            raise DataError(f"labels must lie in 0..{k - 1}")
        # Written so that NaN fails as well.
        if not np.all((self.probabilities >= 0) & (self.probabilities <= 1)):
            raise DataError("probabilities must lie in [0, 1]")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def target_mask(self) -> BoolArray:
        """Which classes count as the target, shape (K,)."""
        return self.target.mask(self.classes)

    @property
    def p_target(self) -> FloatArray:
        """Probability of the target, shape (N,): the sum over its classes."""
        return target_probability(self.probabilities, self.target_mask)

    @property
    def is_positive(self) -> BoolArray:
        """Whether the label counts as the target, shape (N,)."""
        truth: BoolArray = self.target_mask[self.labels]
        return truth

    @property
    def patient_index(self) -> IntArray:
        """Number of each image's patient in 0..P-1, shape (N,)."""
        _, index = np.unique(np.array(self.patients, dtype=np.str_), return_inverse=True)
        return index.astype(np.int64)

    def select(self, mask: BoolArray) -> ScoredSet:
        """Return the images where `mask`, shape (N,), is true."""
        kept = np.flatnonzero(mask)
        return ScoredSet(
            self.classes,
            self.labels[kept],
            self.probabilities[kept],
            tuple(self.patients[i] for i in kept),
            tuple(self.paths[i] for i in kept),
            tuple(self.sources[i] for i in kept),
            {name: tuple(values[i] for i in kept) for name, values in self.attributes.items()},
            target=self.target,
        )


def scored_set(
    predictions: Sequence[Prediction], records: Sequence[Record], classes: tuple[str, ...], target: Target
) -> tuple[ScoredSet, list[Prediction]]:
    """Pair predictions with the records they were made for.

    Parameters
    ----------
    predictions, records : sequence, length M
        Paired by position.
    classes : tuple of str
        Classes to evaluate. Where the target's name is one of them in place of its classes
        (`pneumoscope.data.labels.classes_with_target`), labels of its classes count as it, so that a model of
        several subtypes can be evaluated on a set that does not tell them apart.
    target : Target
        Of the bundle.

    Returns
    -------
    scored : ScoredSet
        The N ≤ M images that were evaluated.
    not_evaluated : list of Prediction
        The other M - N, unreadable or rejected, in order: to be counted and shown, never dropped.

    Raises
    ------
    DataError
        If the two do not pair up, a label is not among `classes`, or the model gives no probability for
        one of them.
    """
    if len(predictions) != len(records):
        raise DataError(f"{len(predictions)} predictions cannot be paired with {len(records)} records")
    labels: list[int] = []
    probabilities: list[list[float]] = []
    populations: list[str] = []
    kept: list[Record] = []
    not_evaluated: list[Prediction] = []
    for prediction, record in zip(predictions, records, strict=True):
        if PurePath(prediction.path).name != PurePath(record.path).name:
            raise DataError(
                f"{prediction.path}: paired with the record of {record.path}; give both in the same order"
            )
        label = class_index(record.label, classes, record.path, target)
        if prediction.status != "ok":
            not_evaluated.append(prediction)
            continue
        labels.append(label)
        probabilities.append([_probability(prediction, name) for name in classes])
        populations.append(prediction.population or "")
        kept.append(record)
    scored = ScoredSet(
        classes,
        np.array(labels, dtype=np.int64),
        np.array(probabilities, dtype=np.float64).reshape(len(kept), len(classes)),
        tuple(record.patient_id for record in kept),
        tuple(record.path for record in kept),
        tuple(record.source for record in kept),
        {
            "view": tuple(record.view for record in kept),
            "age": tuple("" if record.age is None else age_band(record.age) for record in kept),
            "sex": tuple(record.sex for record in kept),
            "population": tuple(populations),
        },
        target=target,
    )
    return scored, not_evaluated


def _probability(prediction: Prediction, name: str) -> float:
    value = prediction.probabilities.get(name)
    if value is None and name == prediction.target:
        value = prediction.p_target
    if value is None:
        raise DataError(
            f"{prediction.path}: the model gives no probability for class {name!r}; "
            "evaluate it on the classes it knows"
        )
    return min(value, 1.0)


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image on the wrong side of the threshold.

    Parameters
    ----------
    path : str
        As the manifest has it.
    label : str
        The true class.
    p_target : float
        Predicted probability of the target, in [0, 1].
    missed : bool
        True for a missed target finding, False for a false alarm.
    """

    path: str
    label: str
    p_target: float
    missed: bool


def worst_mistakes(scored: ScoredSet, threshold: Threshold, count: int = 8) -> tuple[Mistake, ...]:
    """Return the most confident mistakes: up to `count` missed, then up to `count` false alarms.

    Parameters
    ----------
    scored : ScoredSet
        Evaluated images.
    threshold : float or ndarray of float64, shape (N,)
        On the probability of the target, in [0, 1].
    count : int
        Most images of each sort; the most confident come first.
    """
    p, truth = scored.p_target, scored.is_positive
    missed = np.flatnonzero(truth & (p < threshold))
    alarms = np.flatnonzero(~truth & (p >= threshold))
    chosen = [
        *missed[np.argsort(p[missed], kind="stable")][:count],
        *alarms[np.argsort(-p[alarms], kind="stable")][:count],
    ]
    return tuple(
        Mistake(scored.paths[i], scored.classes[scored.labels[i]], float(p[i]), bool(truth[i]))
        for i in chosen
    )
