"""From observed images to what a bundle stores: calibrator, operating points, thresholds of sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pneumoscope.domain import OperatingPoint
from pneumoscope.evaluation.calibrate import (
    choose_operating_points,
    conformal_thresholds,
    fit_temperature,
    fit_vector,
)
from pneumoscope.evaluation.observe import Observed
from pneumoscope.model.manifest import BundleManifest, Calibrator
from pneumoscope.predict.calibration import calibrate, calibrated_logits, log_odds

__all__ = ["CONFORMAL_ALPHA", "Calibration", "Method", "fit_calibration", "refit_against_normal"]

Method = Literal["none", "temperature", "vector"]

CONFORMAL_ALPHA = 0.1


@dataclass(frozen=True)
class Calibration:
    """All that turns logits into answers; the fields are those of the bundle's manifest."""

    calibrator: Calibrator
    operating_points: tuple[OperatingPoint, ...]
    conformal: tuple[float, ...] | None
    conformal_alpha: float | None = CONFORMAL_ALPHA

    def written_into(self, manifest: BundleManifest, **fields: Any) -> BundleManifest:
        """Return the manifest with this calibration, and with other `fields` replaced."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        names = [point.name for point in self.operating_points]
        default = "balanced" if "balanced" in names else names[0]
        return manifest.model_copy(update=own | {"default_operating_point": default} | fields)


def fit_calibration(
    observed: Observed, method: Method, *, fitted_on: str, kept: Calibrator | None = None
) -> Calibration:
    """Fit calibrator, operating points and conformal thresholds on the same images.

    Parameters
    ----------
    observed : Observed
        With disturbed views or without; the rows of a image weigh as one.
    method : {"none", "temperature", "vector"}
        How the logits are scaled.
    fitted_on : str
        What the images are, for the record.
    kept : Calibrator, optional
        What method ``none`` leaves in force; the plain softmax if not given.

    Raises
    ------
    DataError
        If there are no images with, or none without, pneumonia.
    """
    calibrator = _calibrator(observed, method, fitted_on) or kept or Calibrator()
    return _with_thresholds(observed, calibrator)


def refit_against_normal(
    observed: Observed, method: Method, *, fitted_on: str, parent: BundleManifest
) -> Calibration:
    """Fit on top of a parent what labels can tell that do not know the subtypes of pneumonia.

    The log-odds of pneumonia are scaled (``temperature``), or scaled and moved (``vector``: Platt, 1999); the
    kinds keep the shares in it that the parent gives them, and the parent's conformal thresholds.

    Parameters
    ----------
    observed, method, fitted_on
        As for `fit_calibration`.
    parent : BundleManifest
        Of the bundle that is recalibrated.
    """
    old = parent.calibrator
    odds = log_odds(calibrated_logits(observed.logits, old))
    two = np.c_[np.zeros(len(odds)), odds]
    truth = observed.is_pneumonia.astype(np.int64)
    scale, bias = 1.0, 0.0
    if method == "temperature":
        scale = 1 / fit_temperature(two, truth, observed.weights)
    elif method == "vector":
        scales, biases = fit_vector(two, truth, observed.weights)
        scale, bias = float(scales[1]), float(biases[1] - biases[0])
    calibrator = old
    if method != "none":
        before = f"; the subtypes of pneumonia as before: {old.fitted_on}" if old.fitted_on else ""
        calibrator = old.model_copy(
            update={
                "method": method if old.method == "none" else old.method,
                "odds_scale": scale * old.odds_scale,
                "odds_bias": scale * old.odds_bias + bias,
                "fitted_on": f"{fitted_on}, pneumonia against normal{before}",
            }
        )
    fitted = _with_thresholds(observed, calibrator, parent.conformal_alpha or CONFORMAL_ALPHA)
    if parent.conformal is None or fitted.conformal is None:
        return Calibration(fitted.calibrator, fitted.operating_points, None, None)
    conformal = (fitted.conformal[0], *parent.conformal[1:])
    return Calibration(fitted.calibrator, fitted.operating_points, conformal, fitted.conformal_alpha)


def _with_thresholds(
    observed: Observed, calibrator: Calibrator, alpha: float = CONFORMAL_ALPHA
) -> Calibration:
    probabilities = calibrate(observed.logits, calibrator)
    return Calibration(
        calibrator,
        choose_operating_points(1 - probabilities[:, 0], observed.is_pneumonia, observed.weights),
        conformal_thresholds(probabilities, observed.possible, alpha, observed.patients),
        alpha,
    )


def _calibrator(observed: Observed, method: Method, fitted_on: str) -> Calibrator | None:
    logits, possible, weights = observed.logits, observed.possible, observed.weights
    classes = logits.shape[1]
    if method == "temperature":
        scale = (1 / fit_temperature(logits, possible, weights),) * classes
        return Calibrator(method="temperature", scale=scale, bias=(0.0,) * classes, fitted_on=fitted_on)
    if method == "vector":
        scales, biases = fit_vector(logits, possible, weights)
        scale, bias = tuple(scales.tolist()), tuple(biases.tolist())
        return Calibrator(method="vector", scale=scale, bias=bias, fitted_on=fitted_on)
    return None
