"""Evaluating a bundle: what is measured is what ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from pneumoscope.data.folder import load
from pneumoscope.data.labels import check_labels, class_index, classes_with_target
from pneumoscope.data.manifest import Manifest
from pneumoscope.domain import Prediction, Target
from pneumoscope.errors import DataError, MissingExtraError, UnreadableImageError
from pneumoscope.evaluation.boxes import match_boxes, read_boxes
from pneumoscope.evaluation.localisation import CURVE_IMAGES, MapTruth, check_masks, localise
from pneumoscope.evaluation.metrics import evaluate_scores
from pneumoscope.evaluation.observe import with_header
from pneumoscope.evaluation.populations import measured_population
from pneumoscope.evaluation.report import write_report
from pneumoscope.evaluation.robustness import CorruptionPlan, measure_robustness
from pneumoscope.evaluation.scores import ScoredSet, Threshold, scored_set
from pneumoscope.evaluation.steps import add_external_validation, measure_speed, sign_bundle
from pneumoscope.evaluation.tables import count_not_evaluated
from pneumoscope.model.bundle import Bundle, load_bundle
from pneumoscope.model.lungs import LungsOnBlack
from pneumoscope.model.manifest import BundleManifest
from pneumoscope.model.results import Evaluation
from pneumoscope.parallel import Progress, available_cpus
from pneumoscope.predict.inputs import input_items
from pneumoscope.predict.pipeline import Pipeline
from pneumoscope.predict.predictor import Predictor

__all__ = ["BundleEvaluation", "evaluate", "evaluate_bundle"]

Levels = Literal["positive", "inverted"]


@dataclass(frozen=True, eq=False)
class BundleEvaluation:
    """An evaluation of a bundle on labelled images.

    Parameters
    ----------
    metrics : Evaluation
        The measures; ``metrics.json`` holds their JSON.
    report : Path
        The page that shows them.
    scored : ScoredSet
        The images that were evaluated.
    not_evaluated : sequence of Prediction
        The images that were unreadable or rejected.
    warnings : tuple of str
        Lines for people.
    """

    metrics: Evaluation
    report: Path
    scored: ScoredSet
    not_evaluated: Sequence[Prediction]
    warnings: tuple[str, ...] = ()


def evaluate(
    data: Path | str,
    out: Path | str,
    *,
    bundle: Path | str | None = None,
    split: Literal["train", "val", "test"] | None = None,
    masks: Path | None = None,
    boxes: Path | None = None,
    curves: int | None = None,
    robustness: bool = False,
    images: int | None = None,
    lungs_only: Levels | None = None,
    sign: bool = False,
    add_to_card: str | None = None,
    n_boot: int = 1000,
    progress: Progress | None = None,
) -> BundleEvaluation:
    """Evaluate a bundle on labelled images, as ``pneumoscope evaluate`` does.

    Parameters
    ----------
    data : path-like
        Labelled folder, manifest or MedMNIST ``.npz``.
    out : path-like
        Folder for ``metrics.json``, plots and ``report.html``.
    bundle : path-like, optional
        Bundle or run folder; the bundle that ships with the package if not given.
    split : {"train", "val", "test"}, optional
        Evaluate this split of the manifest only.
    masks, boxes : Path, optional
        Lung masks and radiologists' boxes that heat maps are compared with; see `MapTruth`.
    curves : int, optional
        Images for insertion and deletion curves; 100 if masks or boxes are given, else none.
    robustness : bool
        Evaluate every image under corruptions, harmless handling and shortcuts too.
    images : int, optional
        Most images for `robustness`; all if not given.
    lungs_only : {"positive", "inverted"}, optional
        The images show the lungs on black and nothing else, so that the gate is overridden; and whether their
        grey levels are inverted.
    sign : bool
        Write results, validated population and model card into the bundle.
    add_to_card : str, optional
        Add the results to the bundle's card as an external validation of this name.
    n_boot : int
        Bootstrap resamples for the 95% intervals.
    progress : Progress, optional
        Receives the progress.

    Raises
    ------
    BundleError, DataError
        If the bundle or the data cannot be used, or the bundle was trained on the images of `sign` or
        `add_to_card`.
    ValueError
        If options contradict each other.
    """
    if sign and add_to_card is not None:
        raise ValueError("a set is the bundle's own or an external one: give sign or add_to_card")
    if bundle is None and (sign or add_to_card is not None):
        raise ValueError("name the bundle to write into; the one that ships with the package is not changed")
    if images is not None and not robustness:
        raise ValueError("images goes with robustness")
    if lungs_only and sign:
        raise ValueError("the gate is overridden for lungs_only, so that such results are no bundle's own")
    progress = progress or Progress()
    drawn = None if boxes is None else read_boxes(boxes)  # a wrong table is found before any image is read
    loaded = load_bundle(bundle, allow_draft=False)
    manifest, evaluated_on, warnings = _images_of(Path(data), split, loaded.manifest, progress)
    if warnings and (sign or add_to_card is not None):
        raise DataError(f"{warnings[0]}; nothing is written into the bundle")
    if lungs_only:
        evaluated_on += f"; lungs only ({lungs_only}), the gate overridden"
    if curves is None:
        curves = CURVE_IMAGES if masks or boxes else 0
    evaluated = evaluate_bundle(
        loaded,
        manifest,
        Path(out),
        evaluated_on=evaluated_on,
        about={"Data": evaluated_on} | ({"Warning": "; ".join(warnings)} if warnings else {}),
        n_boot=n_boot,
        maps=MapTruth(masks, drawn, curves),
        corruptions=CorruptionPlan(images) if robustness else None,
        lungs_only=lungs_only,
        progress=progress,
    )
    if sign:
        progress.step("measuring the speed")
        # What was not evaluated, such as a missing file, has no size and takes another time.
        done = set(evaluated.scored.paths)
        paths = [manifest.resolve(record) for record in manifest.records if record.path in done]
        sign_bundle(loaded, evaluated.metrics, speed=measure_speed(loaded, paths))
    if add_to_card is not None:
        add_external_validation(loaded, add_to_card, evaluated.metrics)
    return replace(evaluated, warnings=warnings)


def _images_of(
    data: Path, split: str | None, content: BundleManifest, progress: Progress
) -> tuple[Manifest, str, tuple[str, ...]]:
    """Load what is to be evaluated, describe it, and warn of images that the bundle was trained on."""
    manifest = load(data, progress=progress)
    warnings: tuple[str, ...] = ()
    if split != "test" and content.was_trained_on(manifest.fingerprint()):
        warnings = (
            f"{data}: the bundle was trained on this data set, so that results on "
            f"{f'its split {split}' if split else 'all of it'} are optimistic; evaluate split.csv of the run "
            "with --split test",
        )
    if split is not None:
        manifest = manifest.subset(split)
    if not len(manifest):
        raise DataError(f"{data}: no images to evaluate" + (f" in split {split!r}" if split else ""))
    which = f"{split} split" if split else f"all {len(manifest)} images"
    return manifest, f"{data.resolve().name}, {which}", warnings


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
    lungs_only: Levels | None = None,
    progress: Progress | None = None,
) -> BundleEvaluation:
    """Run a bundle on labelled images and write ``metrics.json``, the plots and ``report.html``.

    Nothing is written into the bundle; `sign_bundle` does that.

    Parameters
    ----------
    manifest : Manifest
        With labels that the bundle knows. A set that is labelled with the target's name only is evaluated on
        the classes outside the target, and the target as one class.
    out : Path
        Folder for what is written; made if absent.
    evaluated_on : str
        What the images are.
    about : mapping
        Further facts for the report, name to value.
    history : Path, optional
        Training history to plot.
    n_boot : int
        Resamples for the intervals.
    maps : MapTruth, optional
        What heat maps are compared with; they are not measured if not given.
    corruptions : CorruptionPlan, optional
        How robustness is measured; it is not if not given.
    lungs_only : {"positive", "inverted"}, optional
        As for `evaluate`.
    progress : Progress, optional
        Receives the progress of each step.

    Raises
    ------
    DataError
        If a label is none of the bundle's classes, no image could be evaluated, no mask or box belongs to an
        image, or a mask shows no lung.
    """
    progress = progress or Progress()
    content = bundle.manifest
    classes = _evaluated_classes(content, manifest)
    _check_before_reading(manifest, classes, content.target, maps, evaluated_on)
    predictor = _predictor(bundle, lungs_only)
    progress.step("predicting")
    scores = progress.collect(predictor.scores_iter(input_items(manifest)), len(manifest))
    predictions = [predictor.prediction_of(score) for score in scores]
    stated = [with_header(record, score) for record, score in zip(manifest, scores, strict=True)]
    scored, not_evaluated = scored_set(predictions, stated, classes, content.target)
    not_evaluated = [*not_evaluated, *(_unreadable(error, bundle) for error in manifest.left_out)]
    progress.step("computing metrics and intervals")
    points = _thresholds(content, [one for one in predictions if one.status == "ok"])
    metrics = evaluate_scores(
        scored, threshold=points[content.default_operating_point], n_boot=n_boot, points=points
    )
    kept = set(scored.paths)
    records = [record for record in stated if record.path in kept]
    parts: dict[str, object] = {
        "evaluated_on": evaluated_on,
        "population": measured_population(manifest, records, evaluated_on),
        "decisions": content.decision_sha256,
        "not_evaluated": count_not_evaluated(not_evaluated),
    }
    if maps:
        progress.step("measuring heat maps")
        parts["localisation"] = localise(predictor, manifest, maps, n_boot=n_boot, progress=progress)
    if corruptions:
        progress.step("corruptions")
        parts["robustness"] = measure_robustness(
            predictor, manifest, corruptions, n_boot=n_boot, progress=progress
        )
    metrics = metrics.model_copy(update=parts)
    progress.step("writing the report")
    report = write_report(
        out,
        scored,
        metrics=metrics,
        not_evaluated=not_evaluated,
        threshold=points[content.default_operating_point],
        points=points,
        root=manifest.root,
        title=f"{content.name}: evaluation",
        about={"Bundle": bundle.identity, "Operating point": content.default_operating_point, **about},
        history=history,
    )
    return BundleEvaluation(metrics, report, scored, not_evaluated)


def _predictor(bundle: Bundle, lungs_only: Levels | None) -> Predictor:
    if lungs_only is None:
        return Predictor(bundle, workers=available_cpus())
    lungs = LungsOnBlack(inverted=lungs_only == "inverted")
    pipeline = Pipeline.of_bundle(bundle, segmenter=lungs, force=True)
    return Predictor(bundle, workers=available_cpus(), force=True, pipeline=pipeline)


def _check_before_reading(
    manifest: Manifest, classes: tuple[str, ...], target: Target, maps: MapTruth | None, described_as: str
) -> None:
    """Find wrong labels, masks, boxes and a missing package before any image is read."""
    check_labels((record.label for record in manifest.records), classes, described_as, target)
    for record in manifest.records:
        class_index(record.label, classes, record.path, target)
    if maps and maps.masks:
        check_masks(maps.masks, manifest, target)
    if maps and maps.boxes is not None:
        match_boxes(maps.boxes, manifest.records)
    if find_spec("matplotlib") is None:
        raise MissingExtraError("Writing a report", "evaluate")


def _evaluated_classes(content: BundleManifest, manifest: Manifest) -> tuple[str, ...]:
    """Return the bundle's classes, or the target as one class where labels have only its name."""
    target = content.target
    if target.name in manifest.labels() and target.name not in content.classes:
        return classes_with_target(content.classes, target)
    return content.classes


def _unreadable(error: UnreadableImageError, bundle: Bundle) -> Prediction:
    """Return the row of a file that could not be listed in the data set."""
    reasons, target = (error.reason.value,), bundle.manifest.target.name
    return Prediction(
        error.path, "unreadable", reasons, target=target, bundle=bundle.identity, message=error.detail
    )


def _thresholds(content: BundleManifest, predictions: Sequence[Prediction]) -> dict[str, Threshold]:
    """Return the threshold of each operating point; one per image where their populations have several."""
    populations = {one.population for one in predictions}
    found: dict[str, Threshold] = {}
    for name in (point.name for point in content.calibrations[0].operating_points):
        own = {one: content.operating_point(name, one).threshold for one in populations}
        if len(set(own.values())) == 1:
            (found[name],) = set(own.values())
        else:
            found[name] = np.array([own[one.population] for one in predictions])
    return found
