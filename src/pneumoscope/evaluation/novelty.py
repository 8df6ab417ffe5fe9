"""Fits the part of the gate that knows chest radiographs: statistics and the limit on novelty.

Only chest radiographs are needed. The limit comes from patients that the statistics have not seen, source by
source, so that a small source (adults beside many children) is not rejected for being small.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import UnreadableImageError
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.standardise import find_lungs
from pneumoscope.model.bundle import GATE_FILE, Bundle, write_bundle
from pneumoscope.model.lungs import LUNGS_FILE, OnnxLungSegmenter
from pneumoscope.model.manifest import GateLimits
from pneumoscope.parallel import available_cpus, in_order
from pneumoscope.predict.novelty import DIMENSIONS, Novelty, describe

__all__ = ["Described", "FittedNovelty", "fit_gate", "fit_novelty", "write_gate"]

Floats = npt.NDArray[np.float32]

# More images of one source than this change nothing but the time it takes.
MOST_IMAGES = 2000
# Fewer do not show what a rare chest looks like: a limit at the 99.5th percentile needs the rare ones.
LEAST_IMAGES = 400
HELD_OUT_QUANTILE = 0.995
# Other hospitals lie further out than held-out patients of the same one.
SLACK = 1.1
# With statistics to lean on, the segmenter need not be as sure alone.
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


def fit_gate(bundle: Bundle, manifests: Iterable[Manifest]) -> Bundle:
    """Fit the gate's statistics and limit on chest radiographs, and write them into the bundle.

    Parameters
    ----------
    bundle : Bundle
        One without a lung segmenter comes back as it is.
    manifests : iterable of Manifest
        One a source; each counts the same. Whatever chest shall pass must be among them: fitted on children
        alone the gate rejects some adults. Labels are not read.

    Returns
    -------
    Bundle
        With ``gate.npz``; without, and with the limits it had, where there are fewer than 400 images.
    """
    if bundle.lungs_path is None:
        return bundle
    sources = [_described(bundle, manifest) for manifest in manifests]
    if sum(len(source.patients) for source in sources) < LEAST_IMAGES:
        return bundle
    fitted = fit_novelty([source for source in sources if len(source.patients)])
    return write_gate(bundle, fitted)


def write_gate(bundle: Bundle, fitted: FittedNovelty) -> Bundle:
    """Write fitted statistics and their limit into a bundle."""
    buffer = io.BytesIO()
    lungs = np.array(bundle.manifest.files[LUNGS_FILE])
    np.savez(buffer, mean=fitted.novelty.mean, whitener=fitted.novelty.whitener, lungs=lungs)
    limits: GateLimits = bundle.manifest.gate.model_copy(
        update={"max_novelty": fitted.max_novelty, "min_lung_certainty": LUNG_CERTAINTY}
    )
    manifest = bundle.manifest.model_copy(update={"gate": limits})
    return write_bundle(bundle.path, manifest, {GATE_FILE: buffer.getvalue()})


def fit_novelty(sources: Sequence[Described]) -> FittedNovelty:
    """Fit mean and covariance, and choose the limit on patients held out, in two folds.

    The covariance is shrunk as in Ledoit and Wolf, *A well-conditioned estimator for large-dimensional
    covariance matrices*, Journal of Multivariate Analysis 2004.

    Parameters
    ----------
    sources : sequence of Described
        At least one; each counts the same, whatever its size.
    """
    folds = [_folds(source.patients) for source in sources]
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
    from sklearn.covariance import ledoit_wolf

    largest = max(map(len, parts))
    rows = np.concatenate([np.repeat(part, round(largest / len(part)), axis=0) for part in parts])
    mean, spread = rows.mean(axis=0), rows.std(axis=0) + 1e-3
    covariance, _ = ledoit_wolf((rows - mean) / spread)
    whitener = np.linalg.cholesky(np.linalg.inv(covariance)).T / spread
    return Novelty(mean.astype(np.float32), whitener.astype(np.float32))


def _folds(patients: Sequence[str]) -> npt.NDArray[np.int64]:
    """Share patients out to two folds, fixed by their order of names."""
    known = {patient: number for number, patient in enumerate(sorted(set(patients)))}
    sides = np.random.default_rng(0).permutation(len(known)) % 2
    return np.array([sides[known[patient]] for patient in patients], np.int64)


def _described(bundle: Bundle, manifest: Manifest) -> Described:
    """Describe the images of one manifest; what cannot be read or shows no lungs is passed over."""
    segment = OnnxLungSegmenter(bundle.path / LUNGS_FILE)
    side = bundle.manifest.input.decode_side
    records = list(manifest.records)
    if len(records) > MOST_IMAGES:
        chosen = np.random.default_rng(0).choice(len(records), MOST_IMAGES, replace=False)
        records = [records[index] for index in sorted(chosen)]

    def describe_all(paths: Sequence[str]) -> list[Floats | None]:
        return [_describe_file(path, segment, side) for path in paths]

    paths: Iterator[str] = (str(manifest.resolve(record)) for record in records)
    found = list(in_order(paths, describe_all, workers=available_cpus()))
    kept = [(one, record) for one, record in zip(found, records, strict=True) if one is not None]
    descriptions = np.array([one for one, _ in kept], np.float32).reshape(len(kept), DIMENSIONS)
    return Described(descriptions, [record.patient_id for _, record in kept])


def _describe_file(path: str, segment: OnnxLungSegmenter, side: int) -> Floats | None:
    try:
        radiograph = read_radiograph(path, min_side=side)
    except UnreadableImageError:
        return None
    lungs = find_lungs(radiograph, segment)
    return describe(lungs) if lungs.plausible else None
