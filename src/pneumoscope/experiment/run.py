"""One experiment from end to end: data → split → train → export → calibrate → evaluate.

The network is trained on split ``train``; its epoch, calibrator and thresholds are chosen on ``val``; the
reported metrics are those of ``test``.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest
from pneumoscope.domain import Target
from pneumoscope.errors import DataError, MissingExtraError, RecipeError
from pneumoscope.experiment.bundling import calibrated, evaluated, exported, not_evaluated
from pneumoscope.experiment.images import (
    additional_images,
    are_of,
    lung_segmenter,
    pack_images,
    prepare_manifest,
    with_additional,
)
from pneumoscope.experiment.plan import Experiment, Result, changed_recipe, resolved
from pneumoscope.experiment.run_folder import (
    SPLIT_FILE,
    Origin,
    check_inputs,
    check_recipe,
    resumes,
    write_inputs,
    write_left_out,
)
from pneumoscope.experiment.tracking import Tracker, open_tracker, tracked
from pneumoscope.model.bundle import Bundle, load_bundle
from pneumoscope.parallel import Progress
from pneumoscope.predict.cache import ImageCache, default_cache_folder
from pneumoscope.training.dataset import Packed, check_packed
from pneumoscope.training.distil import (
    check_teacher,
    rooted_at_its_images,
    taught_images,
    teacher_probabilities,
)
from pneumoscope.training.fit import fit, make_fabric
from pneumoscope.training.networks import Network, build_network, check_size
from pneumoscope.training.pretrain import pretrain
from pneumoscope.training.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["run_experiment", "train"]

TEACHER_FOLDER, TEACHER_DATA = "teacher", "teacher-images.csv"


def train(
    recipe: str | Path | Recipe,
    data: str | Path,
    out: str | Path,
    *,
    target: Target | str | None = None,
    epochs: int | None = None,
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
        A folder with one sub-folder per class, a manifest, or a MedMNIST file.
    out : path-like
        The run folder; it gets the bundle, the report and everything needed to reproduce the run.
    target : Target or str, optional
        The finding that the model decides on, or ``NAME=CLASS[,CLASS...]``; the classes are then the labels
        of the data. If not given, the recipe states it.
    epochs, size, split, seed, pretrained, weights
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
    begun = resumes(experiment)
    _check_options(experiment)
    tracker = open_tracker(experiment.track)
    listed = load(experiment.data, progress=progress)
    experiment = resolved(experiment, listed)
    if begun:
        check_recipe(experiment)
    recipe, out = experiment.recipe, experiment.out
    lungs, cache = lung_segmenter(experiment), experiment.open_cache()
    progress.step("building the network")
    network = build_network(
        recipe.network, len(recipe.output_classes), weights=experiment.weights, seed=recipe.seed
    )
    check_size(network, recipe.input.size)
    fabric = make_fabric()
    if not fabric.is_global_zero:
        progress, tracker = Progress(), Tracker()  # the first process shows and tracks for all
    origin = _origin(experiment, listed, progress, resumes=begun)
    manifest = origin.manifest
    if begun:
        check_inputs(origin, lungs)
    elif fabric.is_global_zero:
        write_inputs(origin, lungs)
    images = with_additional(manifest.subset("train"), origin.added)
    with tracked(tracker, experiment):
        train_set, val_set = _read(origin, images, lungs, cache, fabric, progress)
        network, teachers = _trained(
            experiment, network, manifest, train_set, val_set, cache, fabric, tracker, progress
        )
        if not fabric.is_global_zero:
            return None
        progress.step("exporting")
        bundle = exported(origin, network, train_set, lungs, teachers)
        bundle = calibrated(origin, bundle, images, cache, progress)
        progress.step("evaluating on test patients")
        bundle, evaluation = evaluated(origin, bundle, fabric, progress)
        # Files that could not be listed are among those that were not evaluated.
        left_out = train_set.left_out + val_set.left_out + not_evaluated(evaluation)
        write_left_out(out, left_out)
        result = Result(bundle, evaluation, left_out)
        tracker.finish(result)
    return result


def _check_options(experiment: Experiment) -> None:
    recipe = experiment.recipe
    if experiment.teachers and recipe.distillation is None:
        raise RecipeError(
            f"{recipe.name}: has no distillation; leave --teacher out, or add distillation to the recipe"
        )
    if experiment.not_chest and not experiment.not_chest.is_dir():
        raise DataError(f"{experiment.not_chest}: no folder of images; correct --not-chest")
    if experiment.keras and importlib.util.find_spec("keras") is None:
        raise MissingExtraError("Writing model.h5", "keras")


def _origin(experiment: Experiment, listed: Manifest, progress: Progress, *, resumes: bool) -> Origin:
    """Split the data where they have no split, and read the additional ones."""
    brings_split = listed.has_split
    if brings_split and experiment.divides:
        raise DataError(f"{experiment.data}: has a split already; leave --split out, or that column")
    manifest = _manifest(experiment, listed, progress, resumes=resumes)
    added = None
    if experiment.additional:
        added = additional_images(experiment.additional, manifest, progress)
    return Origin(experiment, manifest, added, brings_split)


def _manifest(experiment: Experiment, manifest: Manifest, progress: Progress, *, resumes: bool) -> Manifest:
    if not resumes:
        return prepare_manifest(manifest, experiment.recipe, limit=experiment.limit, progress=progress)
    path = experiment.out / SPLIT_FILE
    begun = Manifest.read(path)
    now = {record.path: record for record in manifest.records}
    for record in begun.records:
        found = now.get(record.path)
        if found is None or (found.label, found.sha256) != (record.label, record.sha256):
            raise DataError(
                f"{record.path}: has changed since the run began (see {path}); "
                "restore it, or start again with another --out"
            )
    return manifest.with_records(begun.records)


def _read(
    origin: Origin,
    images: Manifest,
    lungs: Path | None,
    cache: ImageCache | None,
    fabric: Fabric,
    progress: Progress,
) -> tuple[Packed, Packed]:
    """Prepare the training and the validation images, and list what is left out."""
    recipe, manifest = origin.experiment.recipe, origin.manifest
    progress.step("reading training images")
    train_set = pack_images(images, recipe, lungs, cache, progress)
    progress.step("reading validation images")
    val_set = pack_images(manifest.subset("val"), recipe, lungs, cache, progress)
    if fabric.is_global_zero:
        write_left_out(origin.experiment.out, train_set.left_out + val_set.left_out)
    check_packed(manifest.root, recipe.output_classes, train=train_set, val=val_set)
    return train_set, val_set


def _trained(
    experiment: Experiment,
    network: Network,
    manifest: Manifest,
    train_set: Packed,
    val_set: Packed,
    cache: ImageCache | None,
    fabric: Fabric,
    tracker: Tracker,
    progress: Progress,
) -> tuple[Network, tuple[str, ...]]:
    """Train the network, after its teacher and the pretraining where the recipe has them.

    Returns
    -------
    network : Network
        With the weights to keep.
    teachers : tuple of str
        Identities of the teachers.
    """
    recipe = experiment.recipe
    teachers, probabilities = _predicted_by_teachers(experiment, manifest, train_set, cache, fabric, progress)
    if recipe.pretraining:
        progress.step("pretraining without labels")
        network = pretrain(
            recipe, network, train_set.images, experiment.out, fabric=fabric, progress=progress
        )
    progress.step("training")
    network = fit(
        recipe,
        network,
        train_set,
        val_set,
        experiment.out,
        fabric=fabric,
        teacher=probabilities,
        resume=experiment.resume,
        after_epoch=tracker.epoch,
        progress=progress,
    )
    return network, tuple(teacher.identity for teacher in teachers)


def _predicted_by_teachers(
    experiment: Experiment,
    manifest: Manifest,
    train_set: Packed,
    cache: ImageCache | None,
    fabric: Fabric,
    progress: Progress,
) -> tuple[tuple[Bundle, ...], npt.NDArray[np.float32] | None]:
    """Return the teachers of the recipe and what they predict for the training images, if it has any."""
    recipe = experiment.recipe
    if recipe.distillation is None:
        return (), None
    taught = taught_images(recipe, manifest)
    if not taught.records:
        sources = ", ".join(recipe.distillation.sources)
        progress.message(f"no image is of the teacher's sources ({sources}): training without a teacher")
        return (), None
    paths = _teachers(experiment, taught, progress)
    fabric.barrier()  # the first process writes the bundle of the teacher
    progress.step("predicting with the teacher")
    teachers = tuple(load_bundle(path) for path in paths)
    for teacher in teachers:
        check_teacher(teacher, recipe, manifest)
    return teachers, _teacher_rows(teachers, recipe, taught, train_set, cache, progress)


def _teachers(experiment: Experiment, taught: Manifest, progress: Progress) -> tuple[Path, ...]:
    """Return the given teachers, or train the one of the recipe, where it has sources of its own on these."""
    student, distillation = experiment.recipe, experiment.recipe.distillation
    if experiment.teachers or distillation is None:
        return experiment.teachers
    shared: tuple[str, ...] = ("classes", "target", "split", "seed")
    alike = experiment
    if distillation.sources:
        shared = ("split", "seed")
        data = experiment.out / TEACHER_DATA
        rooted_at_its_images(taught).write(data)
        alike = replace(experiment, data=data, additional=None, weights=None, divides=False)
    recipe = load_recipe(distillation.teacher).model_copy(
        update={name: getattr(student, name) for name in shared}
    )
    teacher = replace(
        alike,
        recipe=recipe if experiment.teacher_epochs is None else recipe.with_epochs(experiment.teacher_epochs),
        out=experiment.out / TEACHER_FOLDER,
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
    was not trained on their population.
    """
    own = np.flatnonzero(are_of(train_set.records, taught))
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
