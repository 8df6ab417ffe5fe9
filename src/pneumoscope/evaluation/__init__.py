"""Evaluating a model: measures with intervals, plots, report, model card; and what is fitted after training.

Measures need numpy alone; calibrators, plots and reports need the extra ``evaluate``.
"""

from __future__ import annotations

from pneumoscope.evaluation.bundles import BundleEvaluation, evaluate, evaluate_bundle
from pneumoscope.evaluation.calibration import fit_temperature, fit_vector
from pneumoscope.evaluation.estimation import Estimators, fit_populations, fit_views
from pneumoscope.evaluation.gate import fit_gate
from pneumoscope.evaluation.metrics import evaluate_scores
from pneumoscope.evaluation.recalibration import Recalibration, recalibrate, recalibrate_bundle
from pneumoscope.evaluation.scores import Mistake, ScoredSet, scored_set, worst_mistakes
from pneumoscope.evaluation.steps import add_external_validation, calibrate_bundle, sign_bundle
from pneumoscope.evaluation.thresholds import choose_operating_points, conformal_thresholds

__all__ = [
    "BundleEvaluation",
    "Estimators",
    "Mistake",
    "Recalibration",
    "ScoredSet",
    "add_external_validation",
    "calibrate_bundle",
    "choose_operating_points",
    "conformal_thresholds",
    "evaluate",
    "evaluate_bundle",
    "evaluate_scores",
    "fit_gate",
    "fit_populations",
    "fit_temperature",
    "fit_vector",
    "fit_views",
    "recalibrate",
    "recalibrate_bundle",
    "scored_set",
    "sign_bundle",
    "worst_mistakes",
]
