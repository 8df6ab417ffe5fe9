"""Cross-fitting: what a calibration decides for images that it was not fitted on, and how two compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import Manifest
from pneumoscope.data.split import folds
from pneumoscope.evaluation import weighted
from pneumoscope.evaluation.observe import Observed
from pneumoscope.evaluation.scores import BoolArray, FloatArray
from pneumoscope.model.manifest import Calibration
from pneumoscope.model.results import RecalibrationSide
from pneumoscope.predict.calibration import calibrate, target_probability, without_shift

__all__ = ["FOLDS", "Decisions", "compare", "cross_fitted", "decisions_of", "joined"]

FOLDS = 5


@dataclass(frozen=True, eq=False)
class Decisions:
    """What a calibration decides for N images; a part of shape (N,), or (N, K) for the sets.

    `positive` tells for each operating point whether the decision is for the target, `kept` which classes the
    prediction sets hold; it is None where the bundle makes no sets.
    """

    p_target: FloatArray
    positive: dict[str, BoolArray]
    kept: BoolArray | None


def decisions_of(observed: Observed, fitted: Calibration, rows: npt.NDArray[np.intp]) -> Decisions:
    """Return what a calibration decides for some rows."""
    probabilities = calibrate(observed.logits[rows], fitted.calibrator, observed.target_mask)
    p = target_probability(probabilities, observed.target_mask)
    positive = {point.name: p >= point.threshold for point in fitted.operating_points}
    if fitted.conformal is None:
        return Decisions(p, positive, None)
    as_fitted = calibrate(observed.logits[rows], without_shift(fitted.calibrator), observed.target_mask)
    return Decisions(p, positive, as_fitted >= np.array(fitted.conformal))


def cross_fitted(
    observed: Observed, manifest: Manifest, fit: Callable[[Observed], Calibration], seed: int
) -> Decisions:
    """Evaluate each image, without copies, with what was fitted on the other patients.

    Parameters
    ----------
    observed : Observed
    manifest : Manifest
        Of the same images, with their patients.
    fit : callable
        Fits a calibration on a part of the images.
    seed : int
        Of the folds.
    """
    count, originals = len(observed.records), np.flatnonzero(observed.is_original)
    parts, places = {}, np.empty(count, np.int64)
    for number, held_out in enumerate(folds(manifest.with_records(observed.records), FOLDS, seed)):
        fitted = fit(observed.of_images(np.setdiff1d(np.arange(count), held_out)))
        parts[number] = decisions_of(observed, fitted, originals[held_out])
        places[held_out] = number
    return joined(parts, places)


def joined(parts: Mapping[Any, Decisions], places: npt.NDArray[Any]) -> Decisions:
    """Put the decisions for parts of the images together.

    Parameters
    ----------
    parts : mapping of key to Decisions
        Each for the images of one key, in their order. What not all have is left out: operating points,
        prediction sets.
    places : ndarray, shape (N,)
        The key of each image.
    """
    count, all_parts = len(places), list(parts.values())
    p = np.empty(count)
    shared = [name for name in all_parts[0].positive if all(name in part.positive for part in all_parts)]
    positive = {name: np.empty(count, np.bool_) for name in shared}
    sets = [part.kept for part in all_parts if part.kept is not None]
    kept = np.empty((count, sets[0].shape[1]), np.bool_) if len(sets) == len(all_parts) else None
    for key, part in parts.items():
        rows = places == key
        p[rows] = part.p_target
        for name, decided in positive.items():
            decided[rows] = part.positive[name]
        if kept is not None and part.kept is not None:
            kept[rows] = part.kept
    return Decisions(p, positive, kept)


def compare(
    observed: Observed, sides: dict[str, Decisions], n_boot: int, seed: int
) -> tuple[int, dict[str, RecalibrationSide]]:
    """Measure both sides on the same resamples of patients; return their number and the measures.

    Parameters
    ----------
    observed : Observed
        The images that both sides decided on.
    sides : dict
        Decisions by the name of the side.
    n_boot, seed : int
        Resamples of the patients, and their seed.
    """
    _, patients = np.unique(observed.patients[observed.is_original], return_inverse=True)
    n_patients = int(patients.max()) + 1
    values = weighted.replicates(
        patients.astype(np.int64),
        n_boot,
        seed,
        lambda weights: {
            (side, *key): one
            for side, decisions in sides.items()
            for key, one in _measures(observed, decisions, weights).items()
        },
    )
    trees: dict[str, Any] = {side: {} for side in sides}
    for key, one in values.items():
        place = trees
        for name in key[:-1]:
            place = place.setdefault(name, {})
        place[key[-1]] = weighted.estimate(one, n_patients, reason="no image of this class")
    return n_patients, {side: RecalibrationSide.model_validate(tree) for side, tree in trees.items()}


def _measures(
    observed: Observed, decisions: Decisions, weights: FloatArray
) -> dict[tuple[str, ...], FloatArray]:
    first = observed.is_original
    truth, possible = observed.is_positive[first], observed.possible[first]
    p = decisions.p_target
    out: dict[tuple[str, ...], FloatArray] = {
        ("auroc",): weighted.ranking(p, truth, weights)[0],
        ("ece",): weighted.calibration_error(p, truth, weights),
        ("brier",): weighted.brier(p - truth, weights),
    }
    for name, positive in decisions.positive.items():
        out["operating_points", name, "sensitivity"] = weighted.share(positive, truth, weights)
        out["operating_points", name, "specificity"] = weighted.share(~positive, ~truth, weights)
    if decisions.kept is not None:
        kept, certain = decisions.kept, possible.sum(axis=1) == 1
        for k, name in enumerate(observed.classes):
            own = possible[:, k] & certain
            if own.any():
                out["prediction_sets", "coverage", name] = weighted.share(kept[:, k], own, weights)
        mask = observed.target_mask
        inside, outside = (np.asarray(kept[:, part].any(axis=1)) for part in (mask, ~mask))
        unsure = inside == outside  # both, or none
        out["prediction_sets", "uncertain"] = weighted.share(unsure, np.ones(len(p), np.bool_), weights)
    return out
