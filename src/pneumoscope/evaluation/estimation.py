"""Fits the classifiers that estimate the population and the view of an image where they are not stated."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.domain import Population, ViewPosition
from pneumoscope.errors import require_extra
from pneumoscope.evaluation.chest import drawn, other_images, two_folds
from pneumoscope.model.bundle import Bundle
from pneumoscope.model.manifest import MODEL_FILE
from pneumoscope.model.results import EstimateMeasures
from pneumoscope.parallel import Progress, available_cpus
from pneumoscope.predict.estimates import FRONTAL, FeatureClassifier, feature_moments
from pneumoscope.predict.predictor import Predictor

__all__ = ["Estimators", "FittedClassifier", "fit_populations", "fit_views"]

Floats = npt.NDArray[np.float32]

# Images of one source and population or view: more change nothing but the time it takes.
MOST_IMAGES = 500
# Inverse strengths of the ridge penalty, chosen on validation images.
POPULATION_PENALTY, VIEW_PENALTY = 0.01, 0.3
LATERAL_KIND = "lateral"
"""What the kind of lateral views is called in a folder of images that are no frontal chests."""


@dataclass(frozen=True, eq=False)
class FittedClassifier:
    """A classifier of populations or views that is not written yet.

    Parameters
    ----------
    classifier : FeatureClassifier
    content : bytes
        Of ``populations.npz`` or ``views.npz``.
    measures : dict of str to EstimateMeasures
        By population or view, on held-out images.
    """

    classifier: FeatureClassifier
    content: bytes
    measures: dict[str, EstimateMeasures]


@dataclass(frozen=True, eq=False)
class Estimators:
    """What estimates the facts that an image does not state; None for what is not estimated."""

    populations: FittedClassifier | None = None
    views: FittedClassifier | None = None


@dataclass(frozen=True, eq=False)
class _Rows:
    """Feature moments of N images with their names; the groups, such as sources, of a name count the same."""

    features: Floats
    names: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]

    def __add__(self, other: _Rows) -> _Rows:
        if not len(self.names) or not len(other.names):
            return self if len(self.names) else other
        pairs = zip(
            (self.features, self.names, self.groups),
            (other.features, other.names, other.groups),
            strict=True,
        )
        return _Rows(*(np.concatenate(pair) for pair in pairs))

    def part(self, chosen: npt.NDArray[np.bool_]) -> _Rows:
        return _Rows(self.features[chosen], self.names[chosen], self.groups[chosen])

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """Of each row: the groups of a name count the same, and so do the names; the mean is 1."""
        weights = np.zeros(len(self.names))
        for name in np.unique(self.names):
            own = np.unique(self.groups[self.names == name])
            for group in own:
                rows = (self.names == name) & (self.groups == group)
                weights[rows] = 1 / (len(own) * rows.sum())
        weights *= len(weights) / weights.sum()
        return weights


def fit_populations(
    bundle: Bundle,
    training: Manifest,
    held_out: Manifest,
    populations: Sequence[Population],
    *,
    progress: Progress | None = None,
) -> FittedClassifier | None:
    """Fit on training images whose population is known, and measure on held-out ones.

    Every source of a population counts the same, whatever its size.

    Parameters
    ----------
    bundle : Bundle
        Its network gives the features, also of images that its gate would reject.
    training, held_out : Manifest
        With ages, or views, where they are known.
    populations : sequence of Population
        That the bundle is calibrated for.
    progress : Progress, optional
        Receives the number of images done.

    Returns
    -------
    FittedClassifier or None
        None where fewer than two of the populations have training images.
    """
    progress, predictor = progress or Progress(), Predictor(bundle, workers=available_cpus(), force=True)

    def named(record: Record) -> str:
        known = (one.name for one in populations if one.is_known_to_include(record.age, record.view))
        return next(known, "")

    rows = _of_manifest(predictor, training, named, progress)
    if len(set(rows.names)) < 2:
        return None
    classifier = _fit(rows, POPULATION_PENALTY)
    tested = _of_manifest(predictor, held_out, named, progress)
    return FittedClassifier(classifier, _content(classifier, bundle), _measures([(classifier, tested)]))


def fit_views(
    bundle: Bundle,
    training: Manifest,
    held_out: Manifest,
    others: Path | None = None,
    *,
    progress: Progress | None = None,
) -> FittedClassifier | None:
    """Fit on training images whose view is known, and measure on held-out ones.

    Images of a folder that are no frontal chests are fitted on as well, lateral views by their name and the
    rest as ``other``; they are measured by classifiers that were fitted on the other half of them.

    Parameters
    ----------
    bundle, training, held_out, progress
        As for `fit_populations`.
    others : Path, optional
        As for `fit_chest`; a kind whose name begins with ``lateral`` shows lateral views.

    Returns
    -------
    FittedClassifier or None
        None where fewer than two views have training images.
    """
    progress, predictor = progress or Progress(), Predictor(bundle, workers=available_cpus(), force=True)

    def named(record: Record) -> str:
        return record.view

    rows = _of_manifest(predictor, training, named, progress)
    beside, folds = _of_folder(predictor, others, progress) if others else (_none(), np.zeros(0, np.int64))
    if len({*rows.names, *beside.names} - {ViewPosition.OTHER}) < 2:
        return None
    classifier = _fit(rows + beside, VIEW_PENALTY)
    tested = [(classifier, _of_manifest(predictor, held_out, named, progress))]
    tested += [
        (_fit(rows + beside.part(folds != fold), VIEW_PENALTY), beside.part(folds == fold))
        for fold in np.unique(folds)
    ]
    return FittedClassifier(classifier, _content(classifier, bundle), _measures(tested))


def _of_manifest(
    predictor: Predictor, manifest: Manifest, named: Callable[[Record], str], progress: Progress
) -> _Rows:
    """Return the images whose name is known, not more than enough of a source; their group is the source."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in manifest.records:
        if name := named(record):
            groups[name, record.source].append(record)
    images = {
        manifest.resolve(record): key for key, own in groups.items() for record in drawn(own, MOST_IMAGES)
    }
    return _rows(predictor, images, progress)


def _of_folder(predictor: Predictor, folder: Path, progress: Progress) -> tuple[_Rows, npt.NDArray[np.int64]]:
    """Return the images of a folder, their group being the kind, with the fold of each."""
    images = {
        path: (ViewPosition.LATERAL if kind.startswith(LATERAL_KIND) else ViewPosition.OTHER, kind)
        for path, kind in other_images(folder).items()
    }
    rows = _rows(predictor, images, progress)
    folds = np.zeros(len(rows.names), np.int64)
    for group in np.unique(rows.groups):  # each kind is in both
        own = np.flatnonzero(rows.groups == group)
        folds[own] = two_folds([str(number) for number in own])
    return rows, folds


def _rows(predictor: Predictor, images: Mapping[Path, tuple[str, str]], progress: Progress) -> _Rows:
    outputs = progress.collect((one for one, *_ in predictor.outputs_iter(list(images))), len(images))
    kept = [
        (feature_moments(output.features), *key)
        for output, key in zip(outputs, images.values(), strict=True)
        if output.features is not None
    ]
    if not kept:
        return _none()
    features, names, groups = zip(*kept, strict=True)
    return _Rows(np.array(features, np.float32), np.array(names, np.str_), np.array(groups, np.str_))


def _none() -> _Rows:
    return _Rows(np.zeros((0, 0), np.float32), np.zeros(0, np.str_), np.zeros(0, np.str_))


def _measures(tested: Sequence[tuple[FeatureClassifier, _Rows]]) -> dict[str, EstimateMeasures]:
    right: dict[str, list[bool]] = defaultdict(list)
    for classifier, rows in tested:
        for features, name in zip(rows.features, rows.names, strict=True):
            among = FRONTAL if name in FRONTAL else None  # as `Pipeline` calls it
            right[str(name)].append(classifier(features, among=among) == name)
    return {
        name: EstimateMeasures(images=len(each), correct=sum(each) / len(each))
        for name, each in right.items()
    }


def _fit(rows: _Rows, penalty: float) -> FeatureClassifier:
    with require_extra("evaluate", "Fitting the classifiers of population and view"):
        from sklearn.linear_model import LogisticRegression
    mean, scale = rows.features.mean(axis=0), rows.features.std(axis=0) + 1e-6
    model = LogisticRegression(C=penalty, max_iter=5000)
    model.fit((rows.features - mean) / scale, rows.names, sample_weight=rows.weights)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one row, of the second class against the first
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    known = tuple(str(name) for name in model.classes_)
    return FeatureClassifier(known, mean, scale, weight.astype(np.float32), bias.astype(np.float32))


def _content(classifier: FeatureClassifier, bundle: Bundle) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        names=np.array(classifier.names),
        network=np.array(bundle.manifest.files[MODEL_FILE]),
        mean=classifier.mean,
        scale=classifier.scale,
        weight=classifier.weight,
        bias=classifier.bias,
    )
    return buffer.getvalue()
