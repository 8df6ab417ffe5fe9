"""Cross-validation of a recipe: by patient, or by leaving one source out."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.data.audit import inspect
from pneumoscope.data.drafts import replacing
from pneumoscope.data.folder import load
from pneumoscope.data.labels import classes_with_target
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.split import folds, group_records
from pneumoscope.errors import DataError
from pneumoscope.evaluation.calibration import Method, fit_calibration
from pneumoscope.evaluation.metrics import evaluate_scores
from pneumoscope.evaluation.observe import Observed
from pneumoscope.evaluation.scores import ScoredSet
from pneumoscope.evaluation.weighted import ranking
from pneumoscope.experiment.images import limited, lung_segmenter, pack_images
from pneumoscope.experiment.plan import RECIPE_FILE, Experiment, is_of_another_recipe, resolved
from pneumoscope.experiment.run_folder import INPUTS_FILE, SEARCH_FILE, write_left_out
from pneumoscope.model.manifest import Calibrator
from pneumoscope.model.results import Evaluation
from pneumoscope.parallel import Progress
from pneumoscope.predict.calibration import calibrate, target_probability
from pneumoscope.training.cross_fit import cross_fit
from pneumoscope.training.dataset import LeftOut, Packed, check_classes, check_held_out, check_packed
from pneumoscope.training.networks import build_network, check_size
from pneumoscope.training.processes import end_together, make_fabric, shared
from pneumoscope.training.recipe import Recipe

__all__ = ["METRICS_FILE", "CrossValidation", "cross_validate"]

METRICS_FILE, SCORES_FILE = "cross-validation.json", "out-of-fold.csv"

Positions = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Result of a cross-validation.

    Parameters
    ----------
    metrics : Evaluation or None
        Over all held-out images; None where sources were left out.
    decided : dict
        Accuracy, sensitivity and specificity over all images, at the thresholds of the other folds.
    parts : dict
        Measures of each part, by name.
    left_out : tuple of LeftOut
        Images that were unreadable or rejected.
    """

    metrics: Evaluation | None
    decided: dict[str, float | None]
    parts: dict[str, dict[str, Any]]
    left_out: tuple[LeftOut, ...] = ()


@end_together()
def cross_validate(
    experiment: Experiment,
    *,
    count: int = 5,
    sources: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> CrossValidation:
    """Predict every image with a network that was trained without its patient, or without its source.

    Calibrator and threshold of each part are fitted on the other parts, so that nothing is evaluated on
    images that it was chosen on.

    Parameters
    ----------
    experiment : Experiment
        Its `out` gets the runs, ``out-of-fold.csv``, ``left-out.csv`` and ``cross-validation.json``.
    count : int
        Folds; where sources are given, one of that many is held out with each of them.
    sources : tuple of str
        Sources to leave out in turn, as the manifest names them; other images are only trained on.
    progress : Progress, optional

    Raises
    ------
    DataError
        If there is no such source, or too few patients for the folds.
    """
    progress = progress or Progress()
    fabric = make_fabric()
    if not fabric.is_global_zero:
        progress = Progress()  # the first process shows the progress of all
    recipe, packed, parts, others = shared(fabric, lambda: _prepared(experiment, count, sources, progress))
    out = experiment.out
    logits = cross_fit(
        recipe, packed, parts, out, fabric=fabric, weights=experiment.weights, progress=progress
    )
    progress.step("evaluating")
    held_out = _HeldOut(packed, recipe, parts, [part.astype(np.float64) for part in logits])
    result = held_out.by_source(others) if sources else held_out.by_fold()
    if fabric.is_global_zero:
        content = {
            "recipe": recipe.name,
            "seed": recipe.seed,
            "metrics": result.metrics.model_dump(mode="json") if result.metrics else {},
            "at_thresholds_of_the_other_folds": result.decided,
            "parts": result.parts,
        }
        (out / METRICS_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        held_out.write(out / SCORES_FILE)
    return replace(result, left_out=packed.left_out)


def _prepared(
    experiment: Experiment, count: int, sources: tuple[str, ...], progress: Progress
) -> tuple[Recipe, Packed, dict[str, Positions], dict[str, Positions]]:
    """Return the recipe with classes and target, the images, and what `_parts` returns."""
    manifest = load(experiment.data, progress=progress)
    experiment = resolved(experiment, manifest)
    recipe, out = experiment.recipe, experiment.out
    check_classes(manifest, recipe.output_classes, recipe.output_target)
    if experiment.limit is not None:
        manifest = limited(manifest, experiment.limit, recipe.seed)
    lungs = lung_segmenter(experiment)
    check_size(build_network(recipe.network, len(recipe.output_classes), pretrained=False), recipe.input.size)
    _begin(out, recipe)
    progress.step("reading images")
    packed = pack_images(manifest, recipe, lungs, experiment.open_cache(), progress)
    unlisted = tuple(
        LeftOut(one.path, "unreadable", one.reason.value, one.detail) for one in manifest.left_out
    )
    left_out = packed.left_out + unlisted
    write_left_out(out, left_out)
    check_packed(manifest.name, recipe.output_classes, all=packed)
    manifest = manifest.with_records(packed.records)
    parts, others = _parts(manifest, count, sources, recipe.split.seed, progress)
    truth, whole = recipe.target_mask[packed.labels], _whole(packed, recipe)
    others = _only(whole, others)
    check_held_out(manifest.name, truth, parts if sources else _only(whole, parts))
    _check_thresholds(manifest.name, truth, others)
    for source in recipe.lungs_only.keys() & set(sources):
        _check_lungs_only(manifest, source, truth)
    return recipe, replace(packed, left_out=left_out), parts, others


def _begin(out: Path, recipe: Recipe) -> None:
    """Make the folder, or check that its runs are of the same recipe."""
    if any((out / name).exists() for name in (INPUTS_FILE, SEARCH_FILE)):
        raise DataError(f"{out}: holds a run or a search; use another --out")
    if is_of_another_recipe(out, recipe):
        raise DataError(f"{out}: holds runs of another recipe; use the same options, or another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: the folder cannot be written ({error.strerror})") from error
    with replacing(out / RECIPE_FILE) as file:
        file.write(recipe.to_yaml())


def _parts(
    manifest: Manifest, count: int, sources: tuple[str, ...], seed: int, progress: Progress
) -> tuple[dict[str, Positions], dict[str, Positions]]:
    """Return the parts to hold out in turn: folds of patients, or a source with a fold of the others.

    Where sources are left out, also the images of that fold that are not related to the source, by source:
    calibrator and threshold are fitted on these.
    """
    groups = inspect(manifest, progress=progress).groups
    parts = folds(manifest, count, seed, duplicates=groups)
    if not sources:
        return {f"fold {number} of {count}": part for number, part in enumerate(parts, start=1)}, {}
    found = np.array([record.source for record in manifest.records])
    if unknown := set(sources) - set(found.tolist()):
        known = ", ".join(sorted(set(found.tolist())))
        raise DataError(f"{manifest.name}: no image is from {', '.join(sorted(unknown))}; there are {known}")
    related = {source: _with_related(manifest, found == source, groups) for source in sources}
    held_out = {source: np.union1d(np.flatnonzero(own), parts[0]) for source, own in related.items()}
    return held_out, {source: parts[0][~own[parts[0]]] for source, own in related.items()}


def _check_thresholds(data: str, truth: Bools, others: dict[str, Positions]) -> None:
    """Check that the images held out with a source, on which its threshold is chosen, are of both kinds."""
    for source, chosen in others.items():
        if truth[chosen].all() or not truth[chosen].any():
            raise DataError(
                f"{data}: {source}: the images held out with it, for its threshold, have the target "
                "only, or lack it; use fewer folds, or leave out another source"
            )


def _check_lungs_only(manifest: Manifest, source: str, truth: Bools) -> None:
    """Check that a source of lungs alone has both kinds: whole images of the other are no comparison."""
    own = truth[[record.source == source for record in manifest]]
    if own.all() or not own.any():
        raise DataError(
            f"{manifest.name}: {source}: its images, of lungs only, have the target only, or lack it, so "
            "that nothing can be evaluated; leave out another source"
        )


def _with_related(manifest: Manifest, own: Bools, groups: list[list[int]]) -> Bools:
    """Add the other images of the same patients, and copies of the images, also in a chain."""
    related = own.copy()
    for group in group_records(manifest, groups):
        related[group] = own[group].any()
    return related


def _whole(packed: Packed, recipe: Recipe) -> Bools:
    """Return which images are whole radiographs; those of `lungs_only` sources are trained on alone."""
    return np.array([record.source not in recipe.lungs_only for record in packed.records])


def _only(chosen: Bools, parts: dict[str, Positions]) -> dict[str, Positions]:
    return {name: part[chosen[part]] for name, part in parts.items()}


class _HeldOut:
    """The images with the logits of the networks that were trained without them.

    Of a `lungs_only` source nothing is evaluated, unless it is the one that is left out.
    """

    def __init__(
        self, packed: Packed, recipe: Recipe, parts: dict[str, Positions], logits: list[Floats]
    ) -> None:
        self.packed, self.parts, self.logits = packed, parts, logits
        self.classes, self.target, self.mask = (
            recipe.output_classes,
            recipe.output_target,
            recipe.target_mask,
        )
        self.truth: Bools = self.mask[packed.labels]
        self.whole = _whole(packed, recipe)
        self.method: Method = recipe.calibration

    def by_fold(self) -> CrossValidation:
        """Evaluate all images together, and each fold."""
        count = len(self.packed)
        scores = np.zeros((count, len(self.classes)))
        for own, part in zip(self.parts.values(), self.logits, strict=True):
            scores[own] = part
        probabilities, decided = np.zeros_like(scores), np.zeros(count, dtype=np.bool_)
        found: dict[str, dict[str, Any]] = {}
        for name, own in _only(self.whole, self.parts).items():
            rest = np.setdiff1d(np.flatnonzero(self.whole), own)
            calibrator, threshold = self._fitted(rest, scores[rest])
            probabilities[own] = calibrate(scores[own], calibrator, self.mask)
            p = target_probability(probabilities[own], self.mask)
            decided[own] = p >= threshold
            truth = self.truth[own]
            found[name] = {"images": len(own), **_measures(truth, decided[own]), "auroc": _auroc(p, truth)}
        metrics = evaluate_scores(self._scored(probabilities).select(self.whole), threshold=0.5)
        return CrossValidation(metrics, _measures(self.truth[self.whole], decided[self.whole]), found)

    def by_source(self, others: dict[str, Positions]) -> CrossValidation:
        """Evaluate each source that was left out, beside the others of the fold that was held out with it.

        A source may have images with the target only, or without it only; its AUROC is then against the
        opposite images of the held-out fold.
        """
        found: dict[str, dict[str, Any]] = {}
        source_of = np.array([record.source for record in self.packed.records])
        for (source, part), scores in zip(self.parts.items(), self.logits, strict=True):
            truth, own = self.truth[part], source_of[part] == source
            rest = np.isin(part, others[source])
            calibrator, threshold = self._fitted(part[rest], scores[rest])
            p = target_probability(calibrate(scores, calibrator, self.mask), self.mask)
            opposite = rest & (truth != truth[own][0]) if len(set(truth[own].tolist())) == 1 else own
            among = own | opposite
            found[source] = {
                "images": int(own.sum()),
                **_measures(truth[own], p[own] >= threshold),
                "auroc": _auroc(p[among], truth[among]),
                # No decisions: threshold and calibrator were chosen on these images.
                "others": {"images": int(rest.sum()), "auroc": _auroc(p[rest], truth[rest])},
            }
        return CrossValidation(None, {}, found)

    def write(self, path: Path) -> None:
        """Write the logits of every image as CSV; bytes of a name that are no text become escapes."""
        columns = ("path", "label", "patient_id", "source", "part", *(f"logit_{c}" for c in self.classes))
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            for (name, own), scores in zip(self.parts.items(), self.logits, strict=True):
                for position, values in zip(own, scores, strict=True):
                    record = self.packed.records[position]
                    row = (record.path, record.label, record.patient_id, record.source, name)
                    writer.writerow((*row, *(f"{value:.5g}" for value in values)))

    def _fitted(self, chosen: Positions, logits: Floats) -> tuple[Calibrator, float]:
        """Return the recipe's calibrator and the balanced threshold, fitted on some of the images."""
        records = tuple(self.packed.records[position] for position in chosen)
        images = np.arange(len(chosen))
        possible = self.packed.possible[chosen]
        estimated = (None,) * len(records)
        observed = Observed(logits, self.classes, self.target, possible, images, records, estimated)
        fitted = fit_calibration(observed, self.method, fitted_on="the other parts", n_boot=0)
        balanced = next(point for point in fitted.operating_points if point.name == "balanced")
        return fitted.calibrator, balanced.threshold

    def _scored(self, probabilities: Floats) -> ScoredSet:
        """Pair labels and probabilities; the target is one class where some labels leave its subtype open."""
        records, classes, labels = self.packed.records, self.classes, self.packed.labels
        if (self.packed.possible.sum(axis=1) > 1).any():
            classes = classes_with_target(self.classes, self.target)
            labels = np.where(self.mask, len(classes) - 1, np.cumsum(~self.mask) - 1)[labels]
            probabilities = np.column_stack(
                [probabilities[:, ~self.mask], target_probability(probabilities, self.mask)]
            )
        return ScoredSet(
            classes,
            labels,
            probabilities,
            tuple(record.patient_id for record in records),
            tuple(record.path for record in records),
            tuple(record.source for record in records),
            target=self.target,
        )


def _auroc(p: Floats, truth: Bools) -> float:
    return float(ranking(p, truth, np.ones((1, len(p))))[0][0])


def _measures(truth: Bools, decided: Bools) -> dict[str, float | None]:
    return {
        "accuracy": float((truth == decided).mean()),
        "sensitivity": float(decided[truth].mean()) if truth.any() else None,
        "specificity": float((~decided[~truth]).mean()) if not truth.all() else None,
    }
