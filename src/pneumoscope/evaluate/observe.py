"""One pass over labelled pictures: what calibrators, thresholds and backgrounds are fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pneumoscope.data.labels import possible_classes
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.domain import DataError
from pneumoscope.evaluate.scores import BoolArray, FloatArray, IntArray
from pneumoscope.evaluate.shift import mild_views
from pneumoscope.predict.predictor import Output, Predictor

__all__ = ["Collector", "MeanFeatures", "Observed", "observe"]


class Collector(Protocol):
    """Takes what it needs of each picture as it passes by, and lets go of the rest."""

    def add(self, record: Record, outputs: Sequence[Output]) -> None:
        """Take a picture that was judged: first as it is, then its disturbed views, as far as judged."""
        ...


@dataclass(frozen=True, eq=False)
class Observed:
    """Logits of N labelled pictures and of their disturbed views, M rows in all.

    Parameters
    ----------
    logits : ndarray of float64, shape (M, K)
        Raw outputs of the network.
    findings : tuple of str, length K
        Class names in the order of the logits; the first is ``normal``.
    possible : ndarray of bool, shape (M, K)
        The classes that the label leaves open: several where it says pneumonia, but not which kind.
    pictures : ndarray of int64, shape (M,)
        Number of the picture in 0..N-1; its first row is the picture as it is.
    records : tuple of Record, length N
        The pictures that were judged.
    not_judged : int
        Pictures that were unreadable or rejected.
    """

    logits: FloatArray
    findings: tuple[str, ...]
    possible: BoolArray
    pictures: IntArray
    records: tuple[Record, ...]
    not_judged: int = 0

    @property
    def weights(self) -> FloatArray:
        """Of each row, shape (M,): all rows of one picture weigh as one picture."""
        weights: FloatArray = 1 / np.bincount(self.pictures)[self.pictures]
        return weights

    @property
    def patients(self) -> IntArray:
        """Number of each row's patient, shape (M,)."""
        # A picture of an unknown patient stands for itself.
        names = [record.patient_id for record in self.records]
        _, index = np.unique(np.array(names, dtype=np.str_), return_inverse=True)
        return index.astype(np.int64)[self.pictures]

    @property
    def is_pneumonia(self) -> BoolArray:
        """Whether the label is any kind of pneumonia, shape (M,)."""
        truth: BoolArray = ~self.possible[:, 0]
        return truth

    @property
    def as_it_is(self) -> BoolArray:
        """Whether a row is a picture as it is and no view, shape (M,)."""
        first: BoolArray = np.r_[True, self.pictures[1:] != self.pictures[:-1]]
        return first

    def of_pictures(self, chosen: npt.NDArray[np.intp]) -> Observed:
        """Return the rows of the pictures with these numbers, ascending, numbered anew."""
        rows = np.isin(self.pictures, chosen)
        records = tuple(self.records[number] for number in chosen)
        pictures = np.searchsorted(chosen, self.pictures[rows]).astype(np.int64)
        return Observed(self.logits[rows], self.findings, self.possible[rows], pictures, records)


class MeanFeatures:
    """Mean feature maps of the normal pictures: what heat maps are drawn against."""

    def __init__(self) -> None:
        self._total: FloatArray | None = None
        self._count = 0

    def add(self, record: Record, outputs: Sequence[Output]) -> None:
        """Take the features of a normal picture as it is."""
        features = outputs[0].features
        if record.label != "normal" or features is None:
            return
        exact = features.astype(np.float64)
        self._total = exact if self._total is None else self._total + exact
        self._count += 1

    @property
    def mean_(self) -> npt.NDArray[np.float32] | None:
        """Shape (D, h, w); None where no normal picture came by."""
        return None if self._total is None else (self._total / self._count).astype(np.float32)


def observe(
    predictor: Predictor,
    manifest: Manifest,
    *,
    views: int = 0,
    seed: int = 0,
    collectors: Sequence[Collector] = (),
) -> Observed:
    """Run labelled pictures through gate and network, once each.

    Parameters
    ----------
    views : int
        Mildly disturbed copies of each picture that are judged as well; those that the gate rejects drop out.
    seed : int
        Of the disturbances.
    collectors : sequence of Collector
        Are shown each picture that is judged; memory stays flat as far as they let go of it.

    Raises
    ------
    DataError
        If a label is none of the bundle's findings, or no picture could be judged.
    """
    findings = predictor.bundle.manifest.findings
    possible_of = [possible_classes(record.label, findings, record.path) for record in manifest.records]
    disturb = partial(mild_views, count=views, seed=seed) if views else None
    logits: list[npt.NDArray[np.float32] | None] = []
    possible: list[BoolArray] = []
    pictures: list[int] = []
    kept: list[Record] = []
    paths = [manifest.resolve(record) for record in manifest.records]
    passing = zip(predictor.outputs_iter(paths, views=disturb), manifest.records, possible_of, strict=True)
    for outputs, record, classes in passing:
        judged = [one for one in outputs if one.score.logits is not None]
        if outputs[0].score.logits is None:
            continue
        for collector in collectors:
            collector.add(record, judged)
        logits += [one.score.logits for one in judged]
        possible += [np.isin(np.arange(len(findings)), classes)] * len(judged)
        pictures += [len(kept)] * len(judged)
        kept.append(record)
    if not kept:
        raise DataError(f"{manifest.root}: none of its pictures could be judged; see 'pneumoscope predict'")
    return Observed(
        np.stack([row for row in logits if row is not None]).astype(np.float64),
        findings,
        np.stack(possible),
        np.array(pictures, dtype=np.int64),
        tuple(kept),
        len(manifest) - len(kept),
    )
