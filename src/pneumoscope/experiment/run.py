"""One experiment from end to end: data → split → train → export → calibrate → evaluate.

The network is trained on split ``train``; its epoch, calibrator and thresholds are chosen on ``val``; the
reported metrics are those of ``test``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import Manifest
from pneumoscope.domain import Target
from pneumoscope.experiment.bundling import calibrated, evaluated, exported, not_evaluated
from pneumoscope.experiment.cross_fitted import cross_fitted_probabilities, mean_of_teachers, names_of
from pneumoscope.experiment.images import are_of, whole_radiographs
from pneumoscope.experiment.plan import Experiment, Result, changed_recipe
from pneumoscope.experiment.preparation import Prepared, list_images, prepare
from pneumoscope.experiment.run_folder import write_left_out
from pneumoscope.experiment.tracking import Tracker, open_tracker, tracked
from pneumoscope.model.bundle import Bundle, load_bundle
from pneumoscope.parallel import Progress
from pneumoscope.predict.cache import ImageCache, default_cache_folder
from pneumoscope.training.dataset import Packed
from pneumoscope.training.distil import (
    check_teacher,
    rooted_at_its_images,
    taught_images,
    teacher_probabilities,
)
from pneumoscope.training.fit import fit
from pneumoscope.training.networks import Network, build_recipe_network, check_size
from pneumoscope.training.pretrain import pretrain
from pneumoscope.training.processes import end_together, make_fabric, shared, shared_network
from pneumoscope.training.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["run_experiment", "train"]

TEACHER_FOLDER, TEACHER_DATA = "teacher", "teacher-images.csv"


@end_together()
def train(
    recipe: str | Path | Recipe,
    data: str | Path,
    out: str | Path,
    *,
    target: Target | str | None = None,
    epochs: int | None = None,
    patience: int | None = None,
    additional: str | Path | None = None,
    not_chest: str | Path | None = None,
    teachers: tuple[Path, ...] = (),
    limit: int | None = None,
    size: int | None = None,
    pretrained: bool | None = None,
    weights: Path | None = None,
    lungs: Path | None = None,
    split: str | None = None,
    seed: int | None = None,
    keras: bool = False,
    resume: bool = False,
    cache: Path | None = None,
    use_cache: bool = True,
    track: str | None = None,
    progress: Progress | None = None,
) -> Result | None:
    """Train a network by a recipe, then calibrate, evaluate and write it as a bundle.

    Parameters
    ----------
    recipe : str, Path or Recipe
        Name of a shipped recipe, a ``.yaml`` file, or a recipe.
    data : path-like
        A folder with one subfolder per class, a manifest, or a MedMNIST file.
    out : path-like
        The run folder; it gets the bundle, the report and everything needed to reproduce the run.
    target : Target or str, optional
        The finding that the model decides on, or ``NAME=CLASS[,CLASS...]``; the classes are then the labels
        of the data. If not given, the recipe states it.
    epochs, patience, size, split, seed, pretrained, weights
        In place of the values of the recipe; see `pneumoscope.experiment.plan.changed_recipe`.
    additional, not_chest, teachers, limit, lungs, keras, resume, track
        As in `Experiment`.
    cache : Path, optional
        Folder of prepared images; `default_cache_folder` if not given.
    use_cache : bool
        False for no cache.
    progress : Progress, optional

    Returns
    -------
    Result or None
        None on every process but the first where ``torchrun`` started several.

    Raises
    ------
    DataError, RecipeError
        For data that no network can be trained on, or a recipe that does not fit them, before any epoch.
    """
    given = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe))
    chosen = changed_recipe(
        given,
        target=target,
        epochs=epochs,
        patience=patience,
        size=size,
        split=split,
        seed=seed,
        pretrained=pretrained,
        weights=weights,
    )
    experiment = Experiment(
        chosen,
        Path(data),
        Path(out),
        weights=weights,
        lungs=lungs,
        additional=Path(additional) if additional else None,
        not_chest=Path(not_chest) if not_chest else None,
        teachers=tuple(teachers),
        teacher_epochs=epochs,
        limit=limit,
        keras=keras,
        resume=resume,
        divides=split is not None,
        cache=(cache or default_cache_folder()) if use_cache else None,
        track=track,
    )
    return run_experiment(experiment, progress)


def run_experiment(experiment: Experiment, progress: Progress | None = None) -> Result | None:
    """Train, export, calibrate and evaluate one network.

    Returns
    -------
    Result or None
        None on every process but the first where ``torchrun`` started several.

    Raises
    ------
    DataError, RecipeError
        For data that no network can be trained on, before any epoch.
    """
    progress = progress or Progress()
    fabric = make_fabric()
    if not fabric.is_global_zero:
        progress = Progress()  # the first process shows the progress of all, and tracks them
    tracker = open_tracker(experiment.track) if fabric.is_global_zero else Tracker()
    experiment, listed, begun = shared(fabric, lambda: list_images(experiment, fabric, progress))
    progress.step("building the network")
    network = _built(experiment, fabric)
    prepared = shared(fabric, lambda: prepare(experiment, listed, progress, resumes=begun))
    with tracked(tracker, experiment):
        network, teachers = _trained(prepared, network, fabric, tracker, progress)
        if not fabric.is_global_zero:
            return None
        result = _finished(prepared, network, teachers, fabric, progress)
        tracker.finish(result)
    return result


def _built(experiment: Experiment, fabric: Fabric) -> Network:
    """Build the network; only the first process reads pretrained weights."""
    recipe = experiment.recipe

    def build(weights: Path | None, pretrained: bool | None = None) -> Network:
        network = build_recipe_network(recipe, pretrained=pretrained, weights=weights)
        check_size(network, recipe.input.size)
        return network

    def build_checked() -> Network:
        network = build(experiment.weights)
        if experiment.keras:  # rather than at the end of the training
            from pneumoscope.training.keras_export import check_keras

            trains_expert = any(phase.expert for phase in recipe.phases)
            check_keras(network, size=recipe.input.size, trains_expert=trains_expert)
        return network

    return shared_network(fabric, build_checked, lambda: build(None, pretrained=False))


def _finished(
    prepared: Prepared, network: Network, teachers: tuple[str, ...], fabric: Fabric, progress: Progress
) -> Result:
    """Export, calibrate and evaluate the network."""
    origin, train_set, lungs = prepared.origin, prepared.train_set, prepared.lungs
    cache = origin.experiment.open_cache()
    progress.step("exporting")
    bundle = exported(origin, network, train_set, lungs, teachers)
    bundle = calibrated(origin, bundle, prepared.images, cache, progress)
    progress.step("evaluating on test patients")
    bundle, evaluation = evaluated(origin, bundle, fabric, progress)
    # Files that could not be listed are among those that were not evaluated.
    left_out = train_set.left_out + prepared.val_set.left_out + not_evaluated(evaluation)
    write_left_out(origin.experiment.out, left_out)
    return Result(bundle, evaluation, left_out)


def _trained(
    prepared: Prepared, network: Network, fabric: Fabric, tracker: Tracker, progress: Progress
) -> tuple[Network, tuple[str, ...]]:
    """Train the network, after its teacher and the pretraining where the recipe has them.

    Returns
    -------
    network : Network
        With the weights to keep.
    teachers : tuple of str
        Identities of the teachers.
    """
    experiment, train_set = prepared.origin.experiment, prepared.train_set
    recipe, out = experiment.recipe, experiment.out
    teachers, probabilities = _predicted_by_teachers(prepared, fabric, progress)
    if recipe.pretraining:
        progress.step("pretraining without labels")
        network = pretrain(recipe, network, train_set.images, out, fabric=fabric, progress=progress)
    progress.step("training")
    network = fit(
        recipe,
        network,
        train_set,
        prepared.val_set,
        out,
        fabric=fabric,
        teacher=probabilities,
        resume=experiment.resume,
        after_epoch=tracker.epoch,
        progress=progress,
    )
    return network, teachers


def _predicted_by_teachers(
    prepared: Prepared, fabric: Fabric, progress: Progress
) -> tuple[tuple[str, ...], npt.NDArray[np.float32] | None]:
    """Return the teachers of the recipe and what they predict for the training images, if it has any."""
    distillation = prepared.origin.experiment.recipe.distillation
    if distillation is None:
        return (), None
    names, rows = _predicted_by_bundles(prepared, fabric, progress)
    if distillation.cross_fitted is None:
        return names, rows
    own = cross_fitted_probabilities(prepared, distillation.cross_fitted, fabric, progress)
    names = (*names, *names_of(distillation.cross_fitted))
    return names, own if rows is None else mean_of_teachers(rows, own)


def _predicted_by_bundles(
    prepared: Prepared, fabric: Fabric, progress: Progress
) -> tuple[tuple[str, ...], npt.NDArray[np.float32] | None]:
    """Return the bundles that are teachers and what they predict for the training images, if any."""
    experiment, manifest = prepared.origin.experiment, prepared.origin.manifest
    recipe = experiment.recipe
    if recipe.distillation is None or not (recipe.distillation.teacher or experiment.teachers):
        return (), None
    taught = taught_images(recipe, manifest)
    if not taught.records:
        sources = ", ".join(recipe.distillation.sources)
        progress.message(f"no image is of the teacher's sources ({sources}): training without this teacher")
        return (), None
    paths = _teachers(experiment, taught, fabric, progress)

    def predicted() -> tuple[tuple[str, ...], npt.NDArray[np.float32]]:
        progress.step("predicting with the teacher")
        teachers = tuple(load_bundle(path) for path in paths)
        for teacher in teachers:
            check_teacher(teacher, recipe, manifest)
        rows = _teacher_rows(teachers, recipe, taught, prepared.train_set, experiment.open_cache(), progress)
        return tuple(teacher.identity for teacher in teachers), rows

    return shared(fabric, predicted)


def _teachers(
    experiment: Experiment, taught: Manifest, fabric: Fabric, progress: Progress
) -> tuple[Path, ...]:
    """Return the given teachers, or train the one of the recipe, where it has sources of its own on these."""
    student, distillation = experiment.recipe, experiment.recipe.distillation
    if experiment.teachers or distillation is None:
        return experiment.teachers
    inherited: tuple[str, ...] = ("classes", "target", "split", "seed")
    alike = experiment
    if distillation.sources:
        inherited = ("split", "seed")
        data = experiment.out / TEACHER_DATA
        if fabric.is_global_zero:
            rooted_at_its_images(taught).write(data)
        alike = replace(experiment, data=data, additional=None, divides=False)
    recipe = load_recipe(distillation.teacher).model_copy(
        update={name: getattr(student, name) for name in inherited}
    )
    teacher = replace(
        alike,
        recipe=changed_recipe(recipe, epochs=experiment.teacher_epochs),
        out=experiment.out / TEACHER_FOLDER,
        weights=None,  # they are of the student's network
        keras=False,
        track=None,
        resume=True,
    )
    run_experiment(teacher, progress)
    return (teacher.out,)


def _teacher_rows(
    teachers: tuple[Bundle, ...],
    recipe: Recipe,
    taught: Manifest,
    train_set: Packed,
    cache: ImageCache | None,
    progress: Progress,
) -> npt.NDArray[np.float32]:
    """Return the mean probabilities of teachers for the training images, shape (N, K).

    Rows of additional images, and of sources that the recipe does not name for the teacher, are 0, since it
    was not trained on their population; and so are those of `lungs_only` sources, which it would read as they
    are.
    """
    own = np.flatnonzero(are_of(train_set.records, whole_radiographs(taught, recipe)))
    images = taught.with_records(train_set.records[row] for row in own)
    rows = np.zeros((len(train_set), len(recipe.output_classes)), np.float32)
    rows[own] = np.mean(
        [
            teacher_probabilities(teacher, images, recipe.output_classes, cache=cache, progress=progress)
            for teacher in teachers
        ],
        axis=0,
    )
    return rows
