"""Teachers of other folds: each predicts the training images that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pneumoscope.data.audit import inspect
from pneumoscope.data.split import folds
from pneumoscope.experiment.images import named_by_source
from pneumoscope.experiment.preparation import Prepared
from pneumoscope.model.manifest import Calibrator
from pneumoscope.parallel import Progress
from pneumoscope.predict.calibration import calibrate
from pneumoscope.training.cross_fit import cross_fit
from pneumoscope.training.dataset import check_held_out
from pneumoscope.training.networks import build_recipe_network, check_size
from pneumoscope.training.processes import shared
from pneumoscope.training.recipe import Recipe
from pneumoscope.training.sections import CrossFitted

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["cross_fitted_probabilities", "mean_of_teachers", "names_of"]

CROSS_FITTED_FOLDER = "cross-fitted"


def cross_fitted_probabilities(
    prepared: Prepared, teachers: CrossFitted, fabric: Fabric, progress: Progress
) -> npt.NDArray[np.float32]:
    """Train the teachers and return the mean of their probabilities for the training images, shape (N, K).

    Every training is a run of its own below the run folder, and continues where it was interrupted.

    Raises
    ------
    RecipeError
        If one of the networks cannot be built, before the first is trained.
    DataError
        If there are fewer patients than folds, or a fold has images with the target only, or without it.
    """
    experiment, train_set = prepared.origin.experiment, prepared.train_set
    student, out = experiment.recipe, experiment.out / CROSS_FITTED_FOLDER
    epochs = min(teachers.epochs, experiment.teacher_epochs or teachers.epochs)
    recipes = [_with_network(student, name).with_epochs(epochs) for name in teachers.networks]
    weights = [experiment.weights if name == student.network.name else None for name in teachers.networks]
    shared(fabric, lambda: _check_networks(recipes, weights))
    parts = shared(fabric, lambda: _parts(prepared, teachers.folds, progress))
    rows = np.zeros((len(recipes), len(train_set), len(student.output_classes)), np.float32)
    for number, recipe in enumerate(recipes):
        name = recipe.network.name
        named = {f"{part} (teacher {name})": positions for part, positions in parts.items()}
        found = cross_fit(
            recipe, train_set, named, out / name, fabric=fabric, weights=weights[number], progress=progress
        )
        for positions, logits in zip(parts.values(), found, strict=True):
            rows[number, positions] = calibrate(logits, Calibrator(), recipe.target_mask)
    mean: npt.NDArray[np.float32] = rows.mean(axis=0)
    return mean


def names_of(teachers: CrossFitted) -> tuple[str, ...]:
    """Return what the provenance of the student says of its teachers."""
    return tuple(f"{name}, cross-fitted in {teachers.folds} folds" for name in teachers.networks)


def mean_of_teachers(
    first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return the mean of two teachers, of shape (N, K); where one has a row of 0, the row of the other."""
    known = [rows.sum(axis=1, keepdims=True) > 0 for rows in (first, second)]
    both = np.maximum(np.add(*known, dtype=np.int64), 1)
    mean: npt.NDArray[np.float32] = ((first + second) / both).astype(np.float32)
    return mean


def _parts(prepared: Prepared, count: int, progress: Progress) -> dict[str, npt.NDArray[np.intp]]:
    """Return folds of the packed training images; a patient, and copies of an image, are in one."""
    added = prepared.origin.added
    # Additional records are named by source already; a patient of theirs may be in the data set as well.
    images = prepared.images.with_records(
        record
        if added is None or record.patient_id.startswith(f"{record.source}/")
        else named_by_source(record)
        for record in prepared.train_set.records
    )
    copies = inspect(images, progress=progress).groups
    recipe = prepared.origin.experiment.recipe
    found = folds(images, count, recipe.split.seed, duplicates=copies)
    parts = {f"fold {number} of {count}": part for number, part in enumerate(found, start=1)}
    check_held_out(images.name, recipe.target_mask[prepared.train_set.labels], parts)
    return parts


def _with_network(student: Recipe, name: str) -> Recipe:
    """Return the recipe with another network; options, and weights from a file, stay with their backbone."""
    if name == student.network.name:
        return student
    network = student.network.model_copy(update={"name": name, "options": {}})
    other = student.model_copy(update={"network": network})
    return other if network.pretrained else other.from_scratch()


def _check_networks(recipes: Sequence[Recipe], weights: Sequence[Path | None]) -> None:
    """Build each network once, so that one that cannot be built is known before the first is trained."""
    for recipe, own in zip(recipes, weights, strict=True):
        check_size(build_recipe_network(recipe, weights=own), recipe.input.size)
