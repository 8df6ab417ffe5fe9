"""Evaluating and calibrating a bundle: what is measured is what ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumoscope.data.labels import TWO_CLASSES
from pneumoscope.data.manifest import Manifest
from pneumoscope.domain import Prediction
from pneumoscope.evaluation.calibration import Method, fit_calibration
from pneumoscope.evaluation.card import write_card
from pneumoscope.evaluation.elsewhere import still_true
from pneumoscope.evaluation.localisation import MapTruth, localise
from pneumoscope.evaluation.metrics import evaluate_scores
from pneumoscope.evaluation.observe import MeanFeatures, observe
from pneumoscope.evaluation.report import write_report
from pneumoscope.evaluation.robustness import CorruptionPlan, measure_robustness
from pneumoscope.evaluation.scores import ScoredSet, scored_set
from pneumoscope.evaluation.tables import not_evaluated_counts
from pneumoscope.model.bundle import HEAD_FILE, Bundle, head_bytes, write_bundle
from pneumoscope.predict.predictor import Predictor

__all__ = ["Evaluation", "calibrate_bundle", "evaluate_bundle", "sign_bundle"]


KEPT_RESULTS = ("speed", "recalibration", "parent")
"""Results that another evaluation does not replace."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a bundle did on a labelled set.

    Parameters
    ----------
    metrics : dict
        Content of ``metrics.json``.
    report : Path
        The page that shows it.
    scored : ScoredSet
        The images that were evaluated.
    not_evaluated : sequence of Prediction
        The images that were unreadable or rejected.
    """

    metrics: dict[str, Any]
    report: Path
    scored: ScoredSet
    not_evaluated: Sequence[Prediction]


def calibrate_bundle(
    bundle: Bundle, manifest: Manifest, *, method: Method, described_as: str, views: int = 0, seed: int = 0
) -> Bundle:
    """Fit calibrator, operating points, prediction sets and the background of heat maps; write them.

    Parameters
    ----------
    bundle : Bundle
        Its own calibrator is replaced.
    manifest : Manifest
        Images that the network was not trained on and that it will not be evaluated on.
    method : {"none", "temperature", "vector"}
        How the logits are scaled.
    described_as : str
        What the images are, for the record.
    views : int
        Mildly disturbed copies of each image that are fitted on as well (`mild_views`), a image and its
        copies weighing as one: thresholds chosen on clean images alone do not survive another device.
    seed : int
        Of the disturbances.

    Raises
    ------
    DataError
        If no image could be evaluated.
    """
    background = MeanFeatures()
    predictor = Predictor.load(bundle.path)
    observed = observe(predictor, manifest, views=views, seed=seed, collectors=(background,))
    fitted_on = f"{described_as}, each with {views} disturbed views" if views else described_as
    calibration = fit_calibration(observed, method, fitted_on=fitted_on)
    head = head_bytes(bundle.head_weight, bundle.head_bias, background.mean_)
    return write_bundle(bundle.path, calibration.written_into(bundle.manifest), {HEAD_FILE: head})


def evaluate_bundle(
    bundle: Bundle,
    manifest: Manifest,
    out: Path,
    *,
    evaluated_on: str,
    about: Mapping[str, str],
    history: Path | None = None,
    n_boot: int = 1000,
    maps: MapTruth | None = None,
    corruptions: CorruptionPlan | None = None,
) -> Evaluation:
    """Run a bundle on labelled images and write ``metrics.json``, the plots and ``report.html``.

    Parameters
    ----------
    manifest : Manifest
        With labels that the bundle knows.
    out : Path
        Folder for what is written; made if absent.
    evaluated_on : str
        What the images are: the sentence under every figure.
    about : mapping
        Further facts for the report, name to value.
    history : Path, optional
        Training history to plot.
    n_boot : int
        Resamples for the intervals.
    maps : MapTruth, optional
        What heat maps are held against; they are not measured if not given.
    corruptions : CorruptionPlan, optional
        How robustness is measured; it is not if not given.

    Raises
    ------
    DataError
        If a label is none of the bundle's findings, no image could be evaluated, or no mask or box belongs to
        a image.
    """
    predictor = Predictor.load(bundle.path)
    predictions = list(predictor.predict_iter([manifest.resolve(record) for record in manifest.records]))
    classes = _evaluated_classes(bundle.manifest.findings, manifest)
    scored, not_evaluated = scored_set(predictions, manifest.records, classes)
    points = {point.name: point.threshold for point in bundle.manifest.operating_points}
    threshold = predictor.operating_point.threshold
    metrics = evaluate_scores(scored, threshold=threshold, n_boot=n_boot, points=points)
    metrics["not_evaluated"] = not_evaluated_counts(not_evaluated)
    if maps:
        metrics["localisation"] = localise(predictor, manifest, maps, n_boot=n_boot)
    if corruptions:
        metrics["robustness"] = measure_robustness(predictor, manifest, corruptions, n_boot=n_boot)
    facts = {"Bundle": bundle.identity, "Operating point": predictor.operating_point.name, **about}
    report = write_report(
        out,
        scored,
        rejected=not_evaluated,
        metrics=metrics,
        root=manifest.root,
        title=f"{bundle.manifest.name}: how well it reads",
        about=facts,
        history=history,
        evaluated_on=evaluated_on,
    )
    return Evaluation(metrics, report, scored, not_evaluated)


def _evaluated_classes(findings: tuple[str, ...], manifest: Manifest) -> tuple[str, ...]:
    """Evaluate on normal against pneumonia where the labels do not tell its kind."""
    return TWO_CLASSES if "pneumonia" in manifest.labels() else findings


def sign_bundle(
    bundle: Bundle, metrics: Mapping[str, Any], evaluated_on: str, *, speed: Mapping[str, str] | None = None
) -> Bundle:
    """Write measured results and the model card into a bundle; without `speed` what it says of it stays."""
    kept = {name: fact for name, fact in bundle.manifest.results.items() if name in KEPT_RESULTS}
    if speed is not None:
        kept["speed"] = dict(speed)
    others = still_true(bundle.manifest)
    results = {"evaluated_on": evaluated_on, **metrics, **kept, **({"elsewhere": others} if others else {})}
    manifest = bundle.manifest.model_copy(update={"results": results})
    card = write_card(manifest.model_dump(mode="json"), metrics)
    return write_bundle(bundle.path, manifest, {"card.md": card.encode()})
