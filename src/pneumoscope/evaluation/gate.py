"""Fits the part of the gate that knows chest radiographs: statistics of them, and a classifier.

The statistics and the limit on novelty need chest radiographs alone. The limit comes from patients that the
statistics have not seen, source by source, so that a small source (adults beside many children) is not
rejected for being small. The classifier (`pneumoscope.evaluation.chest`) needs images of other kinds as well;
novelty is then only the check on what resembles nothing known at all.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import require_extra
from pneumoscope.evaluation.chest import FittedChest, drawn, fit_chest, two_folds
from pneumoscope.model.bundle import Bundle
from pneumoscope.model.limits import GateLimits
from pneumoscope.model.lungs import LUNGS_FILE
from pneumoscope.model.manifest import MODEL_FILE
from pneumoscope.model.results import GateMeasures
from pneumoscope.parallel import Progress, available_cpus, in_order
from pneumoscope.predict.cache import ImageCache
from pneumoscope.predict.chest import ChestClassifier
from pneumoscope.predict.inputs import InputItem
from pneumoscope.predict.novelty import DIMENSIONS, Novelty, describe
from pneumoscope.predict.pipeline import Pipeline
from pneumoscope.predict.prepared import Prepared

__all__ = ["LEAST_IMAGES", "Described", "FittedGate", "FittedNovelty", "fit_gate", "fit_novelty"]

Floats = npt.NDArray[np.float32]

# More images of one source than this change nothing but the time it takes.
MOST_IMAGES = 2000
# Fewer do not show what a rare chest looks like: a limit at the 99.5th percentile needs the rare ones.
LEAST_IMAGES = 400
HELD_OUT_QUANTILE = 0.995
# Other hospitals lie further out than held-out patients of the same one.
SLACK = 1.1
# Beside a classifier, which rejects by what the image shows, novelty rejects only what is this many times
# further out: at the limit itself it rejected one adult in forty of hospitals that it was not fitted on.
SLACK_BESIDE_CLASSIFIER = 5.0
# With statistics of known chests, the segmenter need not be as certain by itself.
LUNG_CERTAINTY = 0.88


@dataclass(frozen=True, eq=False)
class Described:
    """Chest radiographs of one source.

    Parameters
    ----------
    descriptions : ndarray of float32, shape (N, D)
        From `pneumoscope.predict.novelty.describe`.
    patients : sequence of str
        N; images of one patient stay together.
    """

    descriptions: Floats
    patients: Sequence[str]


@dataclass(frozen=True, eq=False)
class FittedNovelty:
    """Statistics, and the limit that goes with them.

    Parameters
    ----------
    novelty : Novelty
        Fitted on everything.
    max_novelty : float
        The limit.
    held_out : tuple of float
        For each source the share of held-out images beyond the limit, in [0, 1].
    """

    novelty: Novelty
    max_novelty: float
    held_out: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class FittedGate:
    """A gate that was fitted for a bundle and not written yet.

    Parameters
    ----------
    limits : GateLimits
        With the limit on novelty, and the one of the classifier.
    novelty : Novelty
        The statistics.
    content : bytes
        Of ``gate.npz``.
    classifier : ChestClassifier or None
        None where no images of other kinds were given.
    measures : dict of str to GateMeasures
        Errors of the classifier by source of chests and kind of other images.
    """

    limits: GateLimits
    novelty: Novelty
    content: bytes
    classifier: ChestClassifier | None = None
    measures: dict[str, GateMeasures] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle, fitted: FittedNovelty, chest: FittedChest | None = None) -> FittedGate:
        """Return the gate of a bundle, whose networks made the features, with what was fitted on them."""
        content = bundle.manifest
        arrays: dict[str, npt.NDArray[Any]] = {
            "mean": fitted.novelty.mean,
            "whitener": fitted.novelty.whitener,
        }
        arrays["lungs"] = np.array(content.files[LUNGS_FILE])
        changed = {"max_novelty": fitted.max_novelty, "min_lung_certainty": LUNG_CERTAINTY, "min_chest": None}
        if chest is not None:
            classifier = chest.classifier
            arrays |= {
                "chest_mean": classifier.mean,
                "chest_scale": classifier.scale,
                "chest_weight": classifier.weight,
                "chest_bias": np.array(classifier.bias, np.float32),
            }
            arrays["chest_network"] = np.array(content.files[MODEL_FILE])
            changed["max_novelty"] = fitted.max_novelty * SLACK_BESIDE_CLASSIFIER
            changed["min_chest"] = chest.min_chest
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        limits: GateLimits = content.gate.model_copy(update=changed)
        written = buffer.getvalue()
        if chest is None:
            return cls(limits, fitted.novelty, written)
        return cls(limits, fitted.novelty, written, chest.classifier, chest.measures)


def fit_gate(
    bundle: Bundle,
    manifests: Mapping[str, Manifest],
    *,
    others: Path | None = None,
    cache: ImageCache | None = None,
    progress: Progress | None = None,
) -> FittedGate | None:
    """Fit the gate on chest radiographs, and on images of other kinds where there are any; write nothing.

    Parameters
    ----------
    bundle : Bundle
        Its pipeline prepares the images.
    manifests : mapping of str to Manifest
        By source; each counts the same. All populations that shall pass must be among them: fitted on
        children alone the gate rejects some adults. Labels are not read.
    others : Path, optional
        Folder of images that are no frontal chest radiographs; see `pneumoscope.evaluation.chest.fit_chest`.
    cache : ImageCache, optional
        Where standardised images are kept.
    progress : Progress, optional
        Receives the number of images done.

    Returns
    -------
    FittedGate or None
        None, and the gate stays, where the bundle has no lung segmenter or there are fewer than 400 images.
    """
    if bundle.lungs_path is None:
        return None
    progress = progress or Progress()
    pipeline = Pipeline.of_bundle(bundle, cache=cache)
    sources = [_described(pipeline, manifest, progress) for manifest in manifests.values()]
    if sum(len(source.patients) for source in sources) < LEAST_IMAGES:
        return None
    chest = fit_chest(bundle, manifests, others, progress=progress) if others is not None else None
    return FittedGate.of(bundle, fit_novelty([source for source in sources if len(source.patients)]), chest)


def fit_novelty(sources: Sequence[Described]) -> FittedNovelty:
    """Fit mean and covariance, and choose the limit on patients held out, in two folds.

    The covariance is shrunk as in Ledoit and Wolf, *A well-conditioned estimator for large-dimensional
    covariance matrices*, Journal of Multivariate Analysis 2004.

    Parameters
    ----------
    sources : sequence of Described
        At least one; each counts the same, whatever its size.
    """
    folds = [two_folds(source.patients) for source in sources]
    held_out: list[list[float]] = [[] for _ in sources]
    for fold in (0, 1):
        seen = [source.descriptions[of != fold] for source, of in zip(sources, folds, strict=True)]
        novelty = _statistics([part for part in seen if len(part)])
        for distances, source, of in zip(held_out, sources, folds, strict=True):
            distances += [novelty(one) for one in source.descriptions[of == fold]]
    limit = SLACK * max(float(np.quantile(distances, HELD_OUT_QUANTILE)) for distances in held_out)
    beyond = tuple(float(np.mean(np.asarray(distances) > limit)) for distances in held_out)
    return FittedNovelty(_statistics([source.descriptions for source in sources]), limit, beyond)


def _statistics(parts: Sequence[Floats]) -> Novelty:
    with require_extra("evaluate", "Fitting the gate"):
        from sklearn.covariance import empirical_covariance, ledoit_wolf_shrinkage, shrunk_covariance

    largest = max(map(len, parts))
    rows = np.concatenate([np.repeat(part, round(largest / len(part)), axis=0) for part in parts])
    mean, spread = rows.mean(axis=0), rows.std(axis=0) + 1e-3
    # Of each image once: repeated rows would pass for independent ones, and be shrunk too little.
    shrinkage = ledoit_wolf_shrinkage((np.concatenate(parts) - mean) / spread)
    covariance = shrunk_covariance(empirical_covariance((rows - mean) / spread), shrinkage)
    whitener = np.linalg.cholesky(np.linalg.inv(covariance)).T / spread
    return Novelty(mean.astype(np.float32), whitener.astype(np.float32))


def _described(pipeline: Pipeline, manifest: Manifest, progress: Progress) -> Described:
    """Describe the images of one manifest that pass the gate as it is before the fit."""
    progress.step("fitting the gate: lung fields")
    records = drawn(manifest.records, MOST_IMAGES)

    def describe_all(items: Sequence[InputItem]) -> list[Floats | None]:
        return [_description(one) for one in pipeline.read(items)]

    items = (InputItem(str(manifest.resolve(record))) for record in records)
    found = progress.collect(in_order(items, describe_all, workers=available_cpus()), len(records))
    kept = [(one, record) for one, record in zip(found, records, strict=True) if one is not None]
    descriptions = np.array([one for one, _ in kept], np.float32).reshape(len(kept), DIMENSIONS)
    return Described(descriptions, [record.patient_id for _, record in kept])


def _description(prepared: Prepared) -> Floats | None:
    lungs = prepared.input.lungs if prepared.input is not None else None
    return None if lungs is None else describe(lungs)
