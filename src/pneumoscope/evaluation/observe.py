"""One pass over labelled images: what calibrators, thresholds and backgrounds are fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pneumoscope.data.labels import possible_classes
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.errors import DataError
from pneumoscope.evaluation.scores import BoolArray, FloatArray, IntArray
from pneumoscope.evaluation.shift import mild_views
from pneumoscope.predict.predictor import Output, Predictor

__all__ = ["Collector", "MeanFeatures", "Observed", "observe"]


class Collector(Protocol):
    """Takes what it needs of each image as it passes by, and lets go of the rest."""

    def add(self, record: Record, outputs: Sequence[Output]) -> None:
        """Take a image that was evaluated: first as it is, then its disturbed views, as far as evaluated."""
        ...


@dataclass(frozen=True, eq=False)
class Observed:
    """Logits of N labelled images and of their disturbed views, M rows in all.

    Parameters
    ----------
    logits : ndarray of float64, shape (M, K)
        Raw outputs of the network.
    findings : tuple of str, length K
        Class names in the order of the logits; the first is ``normal``.
    possible : ndarray of bool, shape (M, K)
        The classes that the label leaves open: several where it says pneumonia, but not which kind.
    images : ndarray of int64, shape (M,)
        Number of the image in 0..N-1; its first row is the image as it is.
    records : tuple of Record, length N
        The images that were evaluated.
    not_evaluated : int
        Images that were unreadable or rejected.
    """

    logits: FloatArray
    findings: tuple[str, ...]
    possible: BoolArray
    images: IntArray
    records: tuple[Record, ...]
    not_evaluated: int = 0

    @property
    def weights(self) -> FloatArray:
        """Of each row, shape (M,): all rows of one image weigh as one image."""
        weights: FloatArray = 1 / np.bincount(self.images)[self.images]
        return weights

    @property
    def patients(self) -> IntArray:
        """Number of each row's patient, shape (M,)."""
        # A image of an unknown patient stands for itself.
        names = [record.patient_id for record in self.records]
        _, index = np.unique(np.array(names, dtype=np.str_), return_inverse=True)
        return index.astype(np.int64)[self.images]

    @property
    def is_pneumonia(self) -> BoolArray:
        """Whether the label is any subtype of pneumonia, shape (M,)."""
        truth: BoolArray = ~self.possible[:, 0]
        return truth

    @property
    def as_it_is(self) -> BoolArray:
        """Whether a row is a image as it is and no view, shape (M,)."""
        first: BoolArray = np.r_[True, self.images[1:] != self.images[:-1]]
        return first

    def of_images(self, chosen: npt.NDArray[np.intp]) -> Observed:
        """Return the rows of the images with these numbers, ascending, numbered anew."""
        rows = np.isin(self.images, chosen)
        records = tuple(self.records[number] for number in chosen)
        images = np.searchsorted(chosen, self.images[rows]).astype(np.int64)
        return Observed(self.logits[rows], self.findings, self.possible[rows], images, records)


class MeanFeatures:
    """Mean feature maps of the normal images: what heat maps are drawn against."""

    def __init__(self) -> None:
        self._total: FloatArray | None = None
        self._count = 0

    def add(self, record: Record, outputs: Sequence[Output]) -> None:
        """Take the features of a normal image as it is."""
        features = outputs[0].features
        if record.label != "normal" or features is None:
            return
        exact = features.astype(np.float64)
        self._total = exact if self._total is None else self._total + exact
        self._count += 1

    @property
    def mean_(self) -> npt.NDArray[np.float32] | None:
        """Shape (D, h, w); None where no normal image came by."""
        return None if self._total is None else (self._total / self._count).astype(np.float32)


def observe(
    predictor: Predictor,
    manifest: Manifest,
    *,
    views: int = 0,
    seed: int = 0,
    collectors: Sequence[Collector] = (),
) -> Observed:
    """Run labelled images through gate and network, once each.

    Parameters
    ----------
    views : int
        Mildly disturbed copies of each image that are evaluated as well; those that the gate rejects drop out.
    seed : int
        Of the disturbances.
    collectors : sequence of Collector
        Are shown each image that is evaluated; memory stays flat as far as they let go of it.

    Raises
    ------
    DataError
        If a label is none of the bundle's findings, or no image could be evaluated.
    """
    findings = predictor.bundle.manifest.findings
    possible_of = [possible_classes(record.label, findings, record.path) for record in manifest.records]
    disturb = partial(mild_views, count=views, seed=seed) if views else None
    logits: list[npt.NDArray[np.float32] | None] = []
    possible: list[BoolArray] = []
    images: list[int] = []
    kept: list[Record] = []
    paths = [manifest.resolve(record) for record in manifest.records]
    passing = zip(predictor.outputs_iter(paths, views=disturb), manifest.records, possible_of, strict=True)
    for outputs, record, classes in passing:
        evaluated = [one for one in outputs if one.score.logits is not None]
        if outputs[0].score.logits is None:
            continue
        for collector in collectors:
            collector.add(record, evaluated)
        logits += [one.score.logits for one in evaluated]
        possible += [np.isin(np.arange(len(findings)), classes)] * len(evaluated)
        images += [len(kept)] * len(evaluated)
        kept.append(record)
    if not kept:
        raise DataError(f"{manifest.root}: none of its images could be evaluated; see 'pneumoscope predict'")
    return Observed(
        np.stack([row for row in logits if row is not None]).astype(np.float64),
        findings,
        np.stack(possible),
        np.array(images, dtype=np.int64),
        tuple(kept),
        len(manifest) - len(kept),
    )
