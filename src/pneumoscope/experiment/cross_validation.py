"""Cross-validation of a recipe: by patient, or by leaving one source out."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.data.audit import inspect
from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.split import folds
from pneumoscope.errors import DataError
from pneumoscope.evaluation.calibration import fit_calibration
from pneumoscope.evaluation.metrics import evaluate_scores
from pneumoscope.evaluation.observe import Observed
from pneumoscope.evaluation.scores import ScoredSet
from pneumoscope.evaluation.weighted import ranking
from pneumoscope.experiment.images import limited, lung_segmenter, pack_images
from pneumoscope.experiment.plan import RECIPE_FILE, Experiment, Progress, is_of_another_recipe
from pneumoscope.model.manifest import Calibrator
from pneumoscope.predict.calibration import calibrate
from pneumoscope.training.cross_fit import cross_fit
from pneumoscope.training.dataset import Packed, check_classes, check_packed
from pneumoscope.training.fit import make_fabric
from pneumoscope.training.recipe import Recipe

__all__ = ["CrossValidation", "cross_validate"]

METRICS_FILE, SCORES_FILE = "cross-validation.json", "out-of-fold.csv"


Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """What came out: figures over all held-out images, and those of each part."""

    metrics: dict[str, Any]
    parts: dict[str, dict[str, Any]]


def cross_validate(
    experiment: Experiment,
    *,
    count: int = 5,
    sources: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> CrossValidation:
    """Evaluate every image by a network that was trained without its patient, or without its source.

    Calibrator and threshold of each part are fitted on the other parts, so no figure is of images that
    anything was chosen on.

    Parameters
    ----------
    experiment : Experiment
        Its `out` gets the runs, ``out-of-fold.csv`` and ``cross-validation.json``.
    count : int
        Folds, where no sources are given.
    sources : tuple of str
        Sources to leave out in turn, as the manifest names them; other images are only learnt from.

    Raises
    ------
    DataError
        If there is no such source, or too few patients for the folds.
    """
    progress = progress or Progress()
    recipe, out = experiment.recipe, experiment.out
    manifest = load(experiment.data)
    check_classes(manifest, recipe.classes)
    if experiment.limit is not None:
        manifest = limited(manifest, experiment.limit, recipe.seed)
    lungs = lung_segmenter(experiment)
    fabric = make_fabric()
    if not fabric.is_global_zero:
        progress = Progress()
    _begin(out, recipe, writes=fabric.is_global_zero)
    progress.on_step("reading images")
    packed = pack_images(manifest, recipe, lungs, progress)
    check_packed(manifest.root, recipe.classes, all=packed)
    manifest = manifest.with_records(packed.records)
    names, parts = _parts(manifest, count, sources, recipe.split.seed)
    logits = cross_fit(
        recipe,
        packed,
        parts,
        out,
        fabric=fabric,
        weights=experiment.weights,
        on_part=lambda number: progress.on_step(f"training without {names[number - 1]}"),
        on_epoch=lambda row: progress.on_epoch(row, recipe.epochs),
    )
    progress.on_step("evaluating")
    result = (
        _evaluate_sources(packed, recipe.classes, logits, names, parts)
        if sources
        else _evaluate_folds(packed, recipe.classes, logits, names, parts)
    )
    if fabric.is_global_zero:
        content = {
            "recipe": recipe.name,
            "seed": recipe.seed,
            "metrics": result.metrics,
            "parts": result.parts,
        }
        (out / METRICS_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        _write_scores(out / SCORES_FILE, packed, recipe.classes, logits, names, parts)
    return result


def _begin(out: Path, recipe: Recipe, *, writes: bool) -> None:
    """Make the folder, or make sure that it is of the same recipe."""
    if is_of_another_recipe(out, recipe):
        raise DataError(f"{out}: holds runs of another recipe; use the same options, or another --out")
    if not writes:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / RECIPE_FILE).write_text(recipe.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{out}: the folder cannot be written ({error.strerror})") from error


def _parts(
    manifest: Manifest, count: int, sources: tuple[str, ...], seed: int
) -> tuple[list[str], list[npt.NDArray[np.intp]]]:
    """Return what is held out in turn: folds of patients, or a source with a fold of all others."""
    groups = inspect(manifest).groups
    parts = folds(manifest, count, seed, duplicates=groups)
    if not sources:
        return [f"fold {number} of {count}" for number in range(1, count + 1)], parts
    found = np.array([record.source for record in manifest.records])
    if unknown := set(sources) - set(found.tolist()):
        known = ", ".join(sorted(set(found.tolist())))
        raise DataError(f"{manifest.root}: no image is from {', '.join(sorted(unknown))}; there are {known}")
    held_out = [_with_kin(manifest, found == source, groups) for source in sources]
    return list(sources), [np.union1d(np.flatnonzero(own), parts[0]) for own in held_out]


def _with_kin(
    manifest: Manifest, own: npt.NDArray[np.bool_], groups: list[list[int]]
) -> npt.NDArray[np.bool_]:
    """Add the other images of the patients in question, and copies of their images."""
    patients = np.array([record.patient_id for record in manifest.records])
    kin = np.isin(patients, patients[own])
    for group in groups:
        kin[group] |= kin[group].any()
    return kin


def _evaluate_folds(
    packed: Packed,
    classes: tuple[str, ...],
    logits: list[Logits],
    names: list[str],
    parts: list[npt.NDArray[np.intp]],
) -> CrossValidation:
    labels = packed.labels
    scores = np.zeros((len(packed), len(classes)))
    for own, said in zip(parts, logits, strict=True):
        scores[own] = said
    probabilities, decided = np.zeros_like(scores), np.zeros(len(packed), dtype=np.bool_)
    found: dict[str, dict[str, Any]] = {}
    for name, own in zip(names, parts, strict=True):
        rest = np.setdiff1d(np.arange(len(packed)), own)
        calibrator, threshold = _chosen_on(packed, rest, classes, scores[rest])
        probabilities[own] = calibrate(scores[own], calibrator)
        decided[own] = 1 - probabilities[own, 0] >= threshold
        found[name] = {"images": len(own), **_figures(labels[own] != 0, decided[own])}
        found[name]["auroc"] = _auroc(1 - probabilities[own, 0], labels[own] != 0)
    metrics = evaluate_scores(_scored(packed, classes, probabilities), threshold=0.5)
    metrics["at_thresholds_of_the_other_folds"] = _figures(labels != 0, decided)
    return CrossValidation(metrics, found)


def _evaluate_sources(
    packed: Packed,
    classes: tuple[str, ...],
    logits: list[Logits],
    sources: list[str],
    parts: list[npt.NDArray[np.intp]],
) -> CrossValidation:
    """Evaluate each source that was left out beside the fold of the others that was held out with it.

    A source may hold one class only; its AUROC is then against the other class of the held-out fold.
    """
    found: dict[str, dict[str, Any]] = {}
    source_of = np.array([record.source for record in packed.records])
    for source, part, said in zip(sources, parts, logits, strict=True):
        truth, mine = packed.labels[part] != 0, source_of[part] == source
        calibrator, threshold = _chosen_on(packed, part[~mine], classes, said[~mine].astype(np.float64))
        p = 1 - calibrate(said.astype(np.float64), calibrator)[:, 0]
        opposite = ~mine & (truth != truth[mine][0]) if len(set(truth[mine].tolist())) == 1 else mine
        among = mine | opposite
        found[source] = {
            "images": int(mine.sum()),
            **_figures(truth[mine], p[mine] >= threshold),
            "auroc": _auroc(p[among], truth[among]),
            # Threshold and temperature were chosen on these: what they decide would flatter.
            "others": {"images": int((~mine).sum()), "auroc": _auroc(p[~mine], truth[~mine])},
        }
    return CrossValidation({}, found)


def _chosen_on(
    packed: Packed,
    chosen: npt.NDArray[np.intp],
    classes: tuple[str, ...],
    logits: npt.NDArray[np.float64],
) -> tuple[Calibrator, float]:
    """Return a temperature and the balanced threshold, fitted on some of the images."""
    records = tuple(packed.records[position] for position in chosen)
    observed = Observed(logits, classes, packed.possible[chosen], np.arange(len(chosen)), records)
    fitted = fit_calibration(observed, "temperature", fitted_on="the other parts")
    balanced = next(point for point in fitted.operating_points if point.name == "balanced")
    return fitted.calibrator, balanced.threshold


def _auroc(p: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_]) -> float:
    return float(ranking(p, truth, np.ones((1, len(p))))[0][0])


def _figures(truth: npt.NDArray[np.bool_], decided: npt.NDArray[np.bool_]) -> dict[str, float | None]:
    return {
        "accuracy": float((truth == decided).mean()),
        "sensitivity": float(decided[truth].mean()) if truth.any() else None,
        "specificity": float((~decided[~truth]).mean()) if not truth.all() else None,
    }


def _scored(
    packed: Packed,
    classes: tuple[str, ...],
    probabilities: npt.NDArray[np.float64],
) -> ScoredSet:
    records = packed.records
    return ScoredSet(
        classes,
        packed.labels,
        probabilities,
        tuple(record.patient_id for record in records),
        tuple(record.path for record in records),
        tuple(record.source for record in records),
    )


def _write_scores(
    path: Path,
    packed: Packed,
    classes: tuple[str, ...],
    logits: list[Logits],
    names: list[str],
    parts: list[npt.NDArray[np.intp]],
) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label", "patient_id", "source", "part", *(f"logit_{c}" for c in classes)))
        for name, own, said in zip(names, parts, logits, strict=True):
            for position, values in zip(own, said, strict=True):
                record = packed.records[position]
                row = (record.path, record.label, record.patient_id, record.source, name)
                writer.writerow((*row, *(f"{value:.5g}" for value in values)))
