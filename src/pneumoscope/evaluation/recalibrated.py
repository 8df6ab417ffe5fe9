"""Before and after a recalibration: the figures, with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.evaluation import weighted
from pneumoscope.evaluation.calibration import Calibration
from pneumoscope.evaluation.metrics import LEVEL, figure
from pneumoscope.evaluation.observe import Observed
from pneumoscope.evaluation.scores import BoolArray, FloatArray
from pneumoscope.predict.calibration import calibrate

__all__ = ["Answers", "answers_of", "compare"]

# Weights of one block of resamples: 4 million float64 are 32 MB.
_BLOCK = 4_000_000


@dataclass(frozen=True, eq=False)
class Answers:
    """What a calibration answers for N images.

    Parameters
    ----------
    p_pneumonia : ndarray of float64, shape (N,)
    called : dict of str to ndarray of bool, shape (N,)
        By operating point, whether pneumonia is called.
    kept : ndarray of bool, shape (N, K), or None
        Which classes the prediction set holds; None where the bundle makes no sets.
    """

    p_pneumonia: FloatArray
    called: dict[str, BoolArray]
    kept: BoolArray | None

    @classmethod
    def joined(cls, parts: Sequence[tuple[npt.NDArray[np.intp], Answers]]) -> Answers:
        """Put answers for parts of the images together; each part comes with its positions."""
        order = np.argsort(np.concatenate([positions for positions, _ in parts]))
        answers = [one for _, one in parts]

        def whole(of: Callable[[Answers], npt.NDArray[Any]]) -> npt.NDArray[Any]:
            return np.concatenate([of(one) for one in answers])[order]

        kept = None if answers[0].kept is None else whole(lambda one: np.asarray(one.kept))
        called = {name: whole(lambda one, name=name: one.called[name]) for name in answers[0].called}  # type: ignore[misc]
        return cls(whole(lambda one: one.p_pneumonia), called, kept)


def answers_of(observed: Observed, fitted: Calibration, rows: npt.NDArray[np.intp]) -> Answers:
    """Return what a calibration answers for some rows."""
    probabilities = calibrate(observed.logits[rows], fitted.calibrator)
    p = probabilities[:, 1:].sum(axis=1)
    called = {point.name: p >= point.threshold for point in fitted.operating_points}
    kept = None if fitted.conformal is None else probabilities >= np.array(fitted.conformal)
    return Answers(p, called, kept)


def compare(
    observed: Observed, parent: Answers, recalibrated: Answers, *, n_boot: int, seed: int
) -> dict[str, Any]:
    """Measure both on the images as they are, with 95% intervals over resampled patients.

    Returns
    -------
    dict
        ``intervals``, ``patients``; ``parent`` and ``recalibrated``, each with ``auroc``, ``ece`` and
        ``brier`` (of the probability of pneumonia), ``operating_points`` (sensitivity and specificity by
        name) and ``prediction_sets`` (``holds_CLASS``, the share of each class's images whose set holds
        it, and ``uncertain``).
    """
    first = observed.as_it_is
    _, patients = np.unique(observed.patients[first], return_inverse=True)
    n_patients = int(patients.max()) + 1
    rng = np.random.default_rng(seed)
    sides = {"parent": parent, "recalibrated": recalibrated}
    block = max(1, _BLOCK // len(patients))
    sizes = [min(block, n_boot - start) for start in range(0, n_boot, block)]
    parts: list[dict[tuple[str, ...], FloatArray]] = []
    for size in (None, *sizes):
        weights = (
            np.ones((1, len(patients))) if size is None else weighted.patient_weights(patients, size, rng)
        )
        # Both sides on the same resamples, so that they can be told apart.
        parts.append(
            {
                (side, *key): values
                for side, answers in sides.items()
                for key, values in _measures(observed, answers, weights).items()
            }
        )
    tree: dict[str, Any] = {side: {} for side in sides}
    for key in parts[0]:
        place = tree
        for name in key[:-1]:
            place = place.setdefault(name, {})
        values = np.concatenate([part[key] for part in parts])
        place[key[-1]] = figure(values, n_patients, reason="no image of this kind")
    method = "percentile bootstrap, patients resampled with replacement"
    how = {"level": LEVEL, "method": method, "resamples": n_boot, "seed": seed}
    return {"patients": n_patients, "intervals": how, **tree}


def _measures(observed: Observed, answers: Answers, weights: FloatArray) -> dict[tuple[str, ...], FloatArray]:
    first = observed.as_it_is
    truth, possible = observed.is_pneumonia[first], observed.possible[first]
    p = answers.p_pneumonia
    out: dict[tuple[str, ...], FloatArray] = {
        ("auroc",): weighted.ranking(p, truth, weights)[0],
        ("ece",): weighted.calibration_error(p, truth, weights),
        ("brier",): weighted.brier(p - truth, weights),
    }
    for name, called in answers.called.items():
        out["operating_points", name, "sensitivity"] = _share(called, truth, weights)
        out["operating_points", name, "specificity"] = _share(~called, ~truth, weights)
    if answers.kept is not None:
        kept, certain = answers.kept, possible.sum(axis=1) == 1
        for k in range(possible.shape[1]):
            own = possible[:, k] & certain
            if own.any():
                out["prediction_sets", f"holds_{observed.findings[k]}"] = _share(kept[:, k], own, weights)
        unsure = (kept[:, 0] & kept[:, 1:].any(axis=1)) | ~kept.any(axis=1)
        out["prediction_sets", "uncertain"] = _share(unsure, np.ones(len(p), np.bool_), weights)
    return out


def _share(hit: BoolArray, among: BoolArray, weights: FloatArray) -> FloatArray:
    return weighted.ratio(weights @ (hit & among), weights @ among.astype(np.float64))
