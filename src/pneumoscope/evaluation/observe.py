"""One pass over labelled images: what calibrators, thresholds and backgrounds are fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pneumoscope.data.labels import check_labels, possible_classes
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.domain import Target, ViewPosition
from pneumoscope.errors import DataError
from pneumoscope.evaluation.copies import augmented_copies
from pneumoscope.evaluation.scores import BoolArray, FloatArray, IntArray
from pneumoscope.parallel import Progress
from pneumoscope.predict.inputs import input_items
from pneumoscope.predict.predictor import Output, Predictor, RawScore

__all__ = ["Collector", "MeanFeatures", "Observed", "observe", "with_header"]


class Collector(Protocol):
    """Takes what it needs of each image and keeps nothing else."""

    def add(self, record: Record, outputs: Sequence[Output]) -> None:
        """Take an image that was evaluated: its own output first, then those of its augmented copies."""
        ...


@dataclass(frozen=True, eq=False)
class Observed:
    """Logits of N labelled images and of their augmented copies, M rows in all.

    Parameters
    ----------
    logits : ndarray of float64, shape (M, K)
        Raw outputs of the network.
    classes : tuple of str, length K
        Class names in the order of the logits.
    target : Target
        The finding that the bundle decides on.
    possible : ndarray of bool, shape (M, K)
        The classes that the label leaves open: several where it is only the target's name.
    images : ndarray of int64, shape (M,)
        Number of the image in 0..N-1; its first row is the image itself, the others are copies.
    records : tuple of Record, length N
        The images that were evaluated.
    estimated : tuple of str or None, length N
        Population of each by the bundle's own classifier; None where it has none.
    not_evaluated : int
        Images that were unreadable or rejected.
    estimated_views : tuple of str, length N or 0
        View of each by the bundle's own classifier, ``unknown`` where it is stated or there is none; empty
        where no view is estimated.
    """

    logits: FloatArray
    classes: tuple[str, ...]
    target: Target
    possible: BoolArray
    images: IntArray
    records: tuple[Record, ...]
    estimated: tuple[str | None, ...]
    not_evaluated: int = 0
    estimated_views: tuple[str, ...] = ()

    @property
    def views(self) -> tuple[str, ...]:
        """View of each image that its population is chosen by: the stated one, else the estimated one.

        The records keep what is stated, since a bundle is validated on that alone.
        """
        estimates = self.estimated_views or (ViewPosition.UNKNOWN,) * len(self.records)
        return tuple(
            record.view or estimate for record, estimate in zip(self.records, estimates, strict=True)
        )

    @property
    def target_mask(self) -> BoolArray:
        """Which classes count as the target, shape (K,)."""
        return self.target.mask(self.classes)

    @property
    def weights(self) -> FloatArray:
        """Of each row, shape (M,): all rows of one image weigh as one image."""
        weights: FloatArray = 1 / np.bincount(self.images)[self.images]
        return weights

    @property
    def patients(self) -> IntArray:
        """Number of each row's patient, shape (M,)."""
        names = [record.patient_id for record in self.records]
        _, index = np.unique(np.array(names, dtype=np.str_), return_inverse=True)
        return index.astype(np.int64)[self.images]

    @property
    def is_positive(self) -> BoolArray:
        """Whether the label counts as the target, shape (M,)."""
        other = np.asarray(self.possible[:, ~self.target_mask].any(axis=1))
        return ~other

    @property
    def prevalence(self) -> float:
        """Share of the images with the target, each with its copies as one."""
        return float(np.average(self.is_positive, weights=self.weights))

    @property
    def is_original(self) -> BoolArray:
        """Whether a row is an image itself and no copy, shape (M,)."""
        return np.concatenate([[True], self.images[1:] != self.images[:-1]]).astype(np.bool_)

    def of_images(self, chosen: npt.NDArray[np.intp]) -> Observed:
        """Return the rows of the images with these numbers, ascending, numbered anew."""
        rows = np.isin(self.images, chosen)
        return replace(
            self,
            logits=self.logits[rows],
            possible=self.possible[rows],
            images=np.searchsorted(chosen, self.images[rows]).astype(np.int64),
            records=tuple(self.records[number] for number in chosen),
            estimated=tuple(self.estimated[number] for number in chosen),
            not_evaluated=0,
            estimated_views=tuple(self.estimated_views[number] for number in chosen if self.estimated_views),
        )


class MeanFeatures:
    """Mean feature maps of the images without the target: what heat maps are drawn against."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._total: FloatArray | None = None
        self._count = 0

    def add(self, record: Record, outputs: Sequence[Output]) -> None:
        """Take the features of an image without the target, not those of its copies."""
        features = outputs[0].features
        if self._target.includes(record.label) or features is None:
            return
        exact = features.astype(np.float64)
        self._total = exact if self._total is None else self._total + exact
        self._count += 1

    @property
    def mean_(self) -> npt.NDArray[np.float32] | None:
        """Shape (D, h, w); None where there was no such image."""
        return None if self._total is None else (self._total / self._count).astype(np.float32)


def with_header(record: Record, score: RawScore) -> Record:
    """Return a record with the age and view that its image was predicted with.

    What a DICOM header states goes before the manifest, as in prediction.
    """
    view = "" if score.view in {ViewPosition.UNKNOWN, ViewPosition.OTHER} else str(score.view)
    return replace(record, age=score.age, view=view)


def observe(
    predictor: Predictor,
    manifest: Manifest,
    *,
    described_as: str = "",
    copies: int = 0,
    seed: int = 0,
    collectors: Sequence[Collector] = (),
    progress: Progress | None = None,
) -> Observed:
    """Run labelled images through pipeline and network, once each.

    Parameters
    ----------
    described_as : str
        What errors call the images; the name of the manifest if not given.
    copies : int
        Augmented copies of each image that are evaluated as well; those that the gate rejects are left out.
    seed : int
        Of the copies.
    collectors : sequence of Collector
        Receive each image that is evaluated; memory stays flat as far as they keep none.
    progress : Progress, optional
        Receives the number of images done.

    Raises
    ------
    DataError
        If a label is none of the bundle's classes, or no image could be evaluated.
    """
    progress = progress or Progress()
    bundle = predictor.bundle.manifest
    classes, target = bundle.classes, bundle.target
    where = described_as or manifest.name
    check_labels((record.label for record in manifest.records), classes, where, target)
    open_classes = [
        possible_classes(record.label, classes, record.path, target) for record in manifest.records
    ]
    make_copies = partial(augmented_copies, count=copies, seed=seed) if copies else None
    logits: list[npt.NDArray[np.float32] | None] = []
    possible: list[BoolArray] = []
    images: list[int] = []
    kept: list[Record] = []
    estimated: list[str | None] = []
    estimated_views: list[str] = []
    found = predictor.outputs_iter(input_items(manifest), copies=make_copies)
    rows = zip(found, manifest.records, open_classes, strict=True)
    for done, (outputs, record, indices) in enumerate(rows, start=1):
        progress.update(done, len(manifest))
        evaluated = [one for one in outputs if one.score.logits is not None]
        if outputs[0].score.logits is None:
            continue
        for collector in collectors:
            collector.add(record, evaluated)
        logits += [one.score.logits for one in evaluated]
        possible += [np.isin(np.arange(len(classes)), indices)] * len(evaluated)
        images += [len(kept)] * len(evaluated)
        score = outputs[0].score
        kept.append(with_header(record, score))
        estimated.append(score.estimated)
        estimated_views.append(score.estimated_view)
    if not kept:
        raise DataError(f"{where}: none of its images could be evaluated; see 'pneumoscope predict'")
    return Observed(
        np.stack([row for row in logits if row is not None]).astype(np.float64),
        classes,
        target,
        np.stack(possible),
        np.array(images, dtype=np.int64),
        tuple(kept),
        tuple(estimated),
        len(manifest) - len(kept),
        tuple(estimated_views),
    )
