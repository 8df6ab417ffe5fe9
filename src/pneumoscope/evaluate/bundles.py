"""Judging and calibrating a bundle: what is measured is what ships."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.data.labels import TWO_CLASSES, class_index
from pneumoscope.data.manifest import Manifest
from pneumoscope.domain import DataError, Prediction
from pneumoscope.evaluate.calibrate import (
    choose_operating_points,
    conformal_thresholds,
    fit_temperature,
    fit_vector,
)
from pneumoscope.evaluate.card import write_card
from pneumoscope.evaluate.localisation import MapTruth, localise
from pneumoscope.evaluate.metrics import evaluate_scores
from pneumoscope.evaluate.report import write_report
from pneumoscope.evaluate.scores import ScoredSet, scored_set
from pneumoscope.model.bundle import HEAD_FILE, Bundle, Calibrator, write_bundle
from pneumoscope.predict.calibration import calibrate
from pneumoscope.predict.predictor import Predictor

__all__ = ["Judgement", "calibrate_bundle", "judge_bundle"]

CONFORMAL_ALPHA = 0.1


@dataclass(frozen=True, eq=False)
class Judgement:
    """What a bundle did on a labelled set.

    Parameters
    ----------
    metrics : dict
        Content of ``metrics.json``.
    report : Path
        The page that shows it.
    scored : ScoredSet
        The pictures that were judged.
    not_judged : sequence of Prediction
        The pictures that were unreadable or rejected.
    """

    metrics: dict[str, Any]
    report: Path
    scored: ScoredSet
    not_judged: Sequence[Prediction]


def calibrate_bundle(bundle: Bundle, manifest: Manifest, *, method: str, described_as: str) -> Bundle:
    """Fit calibrator, operating points, prediction sets and the background of heat maps; write them.

    Parameters
    ----------
    bundle : Bundle
        Its own calibrator is replaced.
    manifest : Manifest
        Pictures that the network was not trained on and that it will not be judged on.
    method : {"none", "temperature", "vector"}
        How the logits are scaled.
    described_as : str
        What the pictures are, for the record.

    Raises
    ------
    DataError
        If no picture could be judged.
    """
    logits, labels = _logits(bundle, manifest)
    calibrator = _fit_calibrator(logits, labels, method, described_as)
    probabilities = calibrate(logits, calibrator)
    points = choose_operating_points(1 - probabilities[:, 0], labels != 0)
    update = {
        "calibrator": calibrator,
        "operating_points": points,
        "default_operating_point": "balanced",
        "conformal": conformal_thresholds(probabilities, labels, CONFORMAL_ALPHA),
        "conformal_alpha": CONFORMAL_ALPHA,
    }
    head = _head_with_background(bundle, manifest)
    return write_bundle(bundle.path, bundle.manifest.model_copy(update=update), {HEAD_FILE: head})


def _head_with_background(bundle: Bundle, manifest: Manifest) -> bytes:
    """Return ``head.npz`` with the mean features of the normal pictures, to draw heat maps against."""
    normal = [manifest.resolve(record) for record in manifest.records if record.label == "normal"]
    background = Predictor.load(bundle.path).mean_features(normal)
    with np.load(bundle.path / HEAD_FILE, allow_pickle=False) as stored:
        head = {name: stored[name] for name in ("weight", "bias")}
    if background is not None:
        head["background"] = background
    buffer = io.BytesIO()
    np.savez(buffer, **head)
    return buffer.getvalue()


def _logits(bundle: Bundle, manifest: Manifest) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    predictor = Predictor.load(bundle.path)
    paths = [manifest.resolve(record) for record in manifest.records]
    rows, labels = [], []
    for score, record in zip(predictor.scores_iter(paths), manifest.records, strict=True):
        if score.logits is not None:
            rows.append(score.logits)
            labels.append(class_index(record.label, bundle.manifest.findings, record.path))
    if not rows:
        raise DataError(f"{manifest.root}: none of its pictures could be judged; see 'pneumoscope predict'")
    return np.stack(rows).astype(np.float64), np.array(labels, dtype=np.int64)


def _fit_calibrator(
    logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], method: str, fitted_on: str
) -> Calibrator:
    classes = logits.shape[1]
    if method == "temperature":
        scale = (1 / fit_temperature(logits, labels),) * classes
        return Calibrator(method="temperature", scale=scale, bias=(0.0,) * classes, fitted_on=fitted_on)
    if method == "vector":
        fitted_scale, fitted_bias = fit_vector(logits, labels)
        return Calibrator(
            method="vector",
            scale=tuple(fitted_scale.tolist()),
            bias=tuple(fitted_bias.tolist()),
            fitted_on=fitted_on,
        )
    return Calibrator()


def judge_bundle(
    bundle: Bundle,
    manifest: Manifest,
    out: Path,
    *,
    speaks_of: str,
    about: Mapping[str, str],
    history: Path | None = None,
    n_boot: int = 1000,
    maps: MapTruth | None = None,
) -> Judgement:
    """Run a bundle on labelled pictures and write ``metrics.json``, the plots and ``report.html``.

    Parameters
    ----------
    manifest : Manifest
        With labels that the bundle knows.
    out : Path
        Folder for what is written; made if absent.
    speaks_of : str
        What the pictures are: the sentence under every figure.
    about : mapping
        Further facts for the report, name to value.
    history : Path, optional
        Training history to plot.
    n_boot : int
        Resamples for the intervals.
    maps : MapTruth, optional
        What heat maps are held against; they are not measured if not given.

    Raises
    ------
    DataError
        If a label is none of the bundle's findings, no picture could be judged, or no mask or box belongs to
        a picture.
    """
    predictor = Predictor.load(bundle.path)
    predictions = list(predictor.predict_iter([manifest.resolve(record) for record in manifest.records]))
    classes = _judged_classes(bundle.manifest.findings, manifest)
    scored, not_judged = scored_set(predictions, manifest.records, classes)
    metrics = evaluate_scores(scored, threshold=predictor.operating_point.threshold, n_boot=n_boot)
    if maps:
        metrics["localisation"] = localise(predictor, manifest, maps, n_boot=n_boot)
    facts = {"Bundle": bundle.identity, "Operating point": predictor.operating_point.name, **about}
    report = write_report(
        out,
        scored,
        rejected=not_judged,
        metrics=metrics,
        root=manifest.root,
        title=f"{bundle.manifest.name}: how well it reads",
        about=facts,
        history=history,
        speaks_of=speaks_of,
    )
    return Judgement(metrics, report, scored, not_judged)


def _judged_classes(findings: tuple[str, ...], manifest: Manifest) -> tuple[str, ...]:
    """Judge on normal against pneumonia where the labels do not tell its kind."""
    return TWO_CLASSES if "pneumonia" in manifest.labels() else findings


def sign_bundle(bundle: Bundle, metrics: Mapping[str, Any], speaks_of: str) -> Bundle:
    """Write measured results and the model card into a bundle."""
    kept = {name: fact for name, fact in bundle.manifest.results.items() if name == "speed"}
    results = {"speaks_of": speaks_of, **metrics, **kept}
    manifest = bundle.manifest.model_copy(update={"results": results})
    card = write_card(manifest.model_dump(mode="json"), metrics)
    return write_bundle(bundle.path, manifest, {"card.md": card.encode()})
