"""One experiment from end to end: data → split → train → export → calibrate → evaluate.

The network is trained on split ``train``; its epoch, calibrator and thresholds are chosen on ``val``; what is
reported is ``test``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError, MissingExtraError, Reason, RecipeError, UnreadableImageError
from pneumoscope.evaluation.bundles import Evaluation, calibrate_bundle, evaluate_bundle, sign_bundle
from pneumoscope.evaluation.novelty import fit_gate
from pneumoscope.experiment.images import (
    are_of,
    by_data_set,
    images_to_add,
    lung_segmenter,
    pack_images,
    prepare_manifest,
    with_more,
)
from pneumoscope.experiment.origin import Origin
from pneumoscope.experiment.plan import RECIPE_FILE, Experiment, Progress, Result
from pneumoscope.experiment.run_folder import (
    SPLIT_FILE,
    check_inputs,
    resumes,
    write_inputs,
    write_unreadable,
)
from pneumoscope.model.bundle import BUNDLE_FOLDER, Bundle, load_bundle
from pneumoscope.model.manifest import Provenance
from pneumoscope.training.dataset import Packed, check_packed
from pneumoscope.training.distil import ask, check_teacher
from pneumoscope.training.export import export_bundle
from pneumoscope.training.fit import fit, make_fabric
from pneumoscope.training.history import HISTORY_FILE
from pneumoscope.training.networks import Network, build_network, check_size, load_weights, save_weights
from pneumoscope.training.pretrain import pretrain
from pneumoscope.training.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["export_run_to_keras", "run_experiment"]

log = logging.getLogger(__name__)

TEACHER_FOLDER = "teacher"
WEIGHTS_FILE, KERAS_FILE = "model.safetensors", "model.h5"


def run_experiment(experiment: Experiment, progress: Progress | None = None) -> Result | None:
    """Train, export, calibrate and evaluate one network.

    Returns
    -------
    Result or None
        None on every process but the first where ``torchrun`` started several.

    Raises
    ------
    DataError, RecipeError
        For data that no network can learn from, before any epoch.
    """
    progress = progress or Progress()
    recipe, out = experiment.recipe, experiment.out
    if experiment.teachers and recipe.distillation is None:
        raise RecipeError(f"{recipe.name}: learns from no teacher; leave --teacher out, or give distillation")
    begun = resumes(experiment)
    if experiment.keras and importlib.util.find_spec("keras") is None:
        raise MissingExtraError("Writing model.h5", "keras")
    origin = _origin(experiment, resumes=begun)
    manifest = origin.manifest
    lungs = lung_segmenter(experiment)
    if begun:
        check_inputs(origin, lungs)
    network = build_network(recipe.network, len(recipe.classes), weights=experiment.weights, seed=recipe.seed)
    check_size(network, recipe.input.size)
    fabric = make_fabric()
    if not fabric.is_global_zero:
        progress = Progress()  # one process speaks for all
    elif not begun:
        write_inputs(origin, lungs)
    progress.on_step("reading images")
    learnt = with_more(manifest.subset("train"), origin.added)
    train, val = (pack_images(part, recipe, lungs, progress) for part in (learnt, manifest.subset("val")))
    unreadable = train.unreadable + val.unreadable
    if fabric.is_global_zero:
        write_unreadable(out, unreadable)
    check_packed(manifest.root, recipe.classes, train=train, val=val)
    network, taught_by = _learn(experiment, network, manifest, train, val, lungs, fabric, progress)
    if not fabric.is_global_zero:
        return None
    progress.on_step("exporting")
    bundle = _export(experiment, network, train, lungs, origin.provenance(taught_by))
    bundle = _made_fit_for_use(origin, bundle, learnt, progress)
    progress.on_step("evaluating on test patients")
    evaluation = _evaluate(origin, bundle, fabric)
    unreadable += _not_read(evaluation)
    write_unreadable(out, unreadable)
    bundle = sign_bundle(bundle, evaluation.metrics, origin.evaluated_on("test"))
    return Result(bundle, evaluation, unreadable)


def _learn(
    experiment: Experiment,
    network: Network,
    manifest: Manifest,
    train: Packed,
    val: Packed,
    lungs: Path | None,
    fabric: Fabric,
    progress: Progress,
) -> tuple[Network, tuple[str, ...]]:
    """Train the network, after a teacher and without labels where the recipe asks for it.

    Returns
    -------
    network : Network
        With the weights to keep.
    taught_by : tuple of str
        The teachers' identities.
    """
    recipe = experiment.recipe
    teacher: npt.NDArray[np.float32] | None = None
    taught_by: tuple[str, ...] = ()
    if recipe.distillation:
        teachers = _teachers(experiment, lungs, progress)
        fabric.barrier()  # one process alone writes the teacher's bundle
        progress.on_step("asking the teacher")
        teacher, taught_by = _ask(teachers, recipe, manifest, train)
    if recipe.pretraining:
        progress.on_step("pretraining without labels")
        network = pretrain(recipe, network, train.images, experiment.out, fabric=fabric)
    progress.on_step("training")
    network = fit(
        recipe,
        network,
        train,
        val,
        experiment.out,
        fabric=fabric,
        teacher=teacher,
        resume=experiment.resume,
        on_epoch=lambda row: progress.on_epoch(row, recipe.epochs),
    )
    return network, taught_by


def _made_fit_for_use(origin: Origin, bundle: Bundle, learnt: Manifest, progress: Progress) -> Bundle:
    """Fit the gate on what was learnt from, and calibrator and thresholds on the validation images."""
    recipe, manifest = origin.experiment.recipe, origin.manifest
    progress.on_step("fitting the gate on training patients")
    bundle = fit_gate(bundle, by_data_set(learnt, manifest))
    progress.on_step("calibrating on validation patients")
    return calibrate_bundle(
        bundle,
        manifest.subset("val"),
        method=recipe.calibration,
        views=recipe.calibration_views,
        seed=recipe.seed,
        described_as=origin.evaluated_on("val"),
    )


def _origin(experiment: Experiment, *, resumes: bool) -> Origin:
    """Read the data, and divide them where they are not."""
    listed = load(experiment.data)
    brings_split = listed.has_split
    if brings_split and experiment.divides:
        raise DataError(f"{experiment.data}: has a split of its own; leave --split out, or that column")
    manifest = _manifest(experiment, listed, resumes=resumes)
    added = images_to_add(experiment.also, manifest) if experiment.also else None
    return Origin(experiment, manifest, added, brings_split)


def _manifest(experiment: Experiment, manifest: Manifest, *, resumes: bool) -> Manifest:
    if not resumes:
        return prepare_manifest(manifest, experiment.recipe, limit=experiment.limit)
    path = experiment.out / SPLIT_FILE
    begun = Manifest.read(path)
    now = {record.path: record for record in manifest.records}
    for record in begun.records:
        found = now.get(record.path)
        if found is None or (found.label, found.sha256) != (record.label, record.sha256):
            raise DataError(
                f"{record.path}: has changed since the run began (see {path}); "
                "put it back, or start anew with another --out"
            )
    return manifest.with_records(begun.records)


def _teachers(experiment: Experiment, lungs: Path | None, progress: Progress) -> tuple[Path, ...]:
    """Return the teachers that were given, or train the recipe's own."""
    distillation = experiment.recipe.distillation
    if experiment.teachers or distillation is None:
        return experiment.teachers
    student = experiment.recipe
    recipe = load_recipe(distillation.teacher).model_copy(
        update={"split": student.split, "seed": student.seed}
    )
    teacher = replace(
        experiment,
        recipe=recipe if experiment.teacher_epochs is None else recipe.with_epochs(experiment.teacher_epochs),
        out=experiment.out / TEACHER_FOLDER,
        lungs=lungs,
        keras=False,
        resume=True,
    )
    run_experiment(teacher, progress)
    return (teacher.out,)


def _ask(
    paths: tuple[Path, ...], recipe: Recipe, manifest: Manifest, train: Packed
) -> tuple[npt.NDArray[np.float32], tuple[str, ...]]:
    """Return what teachers say of the training images, shape (N, K), and who they are.

    Rows of images that were added to the data set are 0: a teacher of children knows nothing of adults.
    """
    teachers = [load_bundle(path) for path in paths]
    for teacher in teachers:
        check_teacher(teacher, recipe, manifest)
    own = np.flatnonzero(are_of(train.records, manifest))
    images = [manifest.resolve(train.records[row]) for row in own]
    said = np.zeros((len(train), len(recipe.classes)), np.float32)
    said[own] = np.mean([ask(teacher, images) for teacher in teachers], axis=0)
    return said, tuple(teacher.identity for teacher in teachers)


def _not_read(evaluation: Evaluation) -> tuple[UnreadableImageError, ...]:
    return tuple(
        UnreadableImageError(row.path, Reason(row.reasons[0]), row.message)
        for row in evaluation.not_evaluated
        if row.status == "unreadable"
    )


def _export(
    experiment: Experiment, network: Network, train: Packed, lungs: Path | None, provenance: Provenance
) -> Bundle:
    recipe, out = experiment.recipe, experiment.out
    save_weights(network, out / WEIGHTS_FILE)
    bundle = export_bundle(
        network, recipe, out / BUNDLE_FOLDER, provenance=provenance, lungs=lungs, seen=train.images
    )
    if experiment.keras:
        from pneumoscope.training.keras_export import export_keras

        export_keras(network, out / KERAS_FILE, size=recipe.input.size)
    return bundle


def _evaluate(origin: Origin, bundle: Bundle, fabric: Fabric) -> Evaluation:
    recipe, out = origin.experiment.recipe, origin.experiment.out
    about = {
        "Recipe": f"{recipe.name} ({recipe.sha256[:12]})",
        "Data": f"{origin.name}, {len(origin.manifest)} images",
        "Learnt from besides": bundle.manifest.provenance.also_description,
        "Split": origin.division,
        "Epochs": str(recipe.epochs),
        "Trained on": str(fabric.device.type).upper(),
    }
    return evaluate_bundle(
        bundle,
        origin.manifest.subset("test"),
        out,
        evaluated_on=origin.evaluated_on("test"),
        about={name: fact for name, fact in about.items() if fact},
        history=out / HISTORY_FILE,
    )


def export_run_to_keras(run: Path, out: Path) -> float:
    """Write a finished run's network as a Keras file; return the largest difference between the two.

    Raises
    ------
    RecipeError
        If the folder is no run, or its weights do not fit its recipe.
    """
    from pneumoscope.training.keras_export import export_keras

    recipe = load_recipe(str(run / RECIPE_FILE))
    network = build_network(recipe.network, len(recipe.classes), pretrained=False)
    return export_keras(load_weights(network, run / WEIGHTS_FILE), out, size=recipe.input.size)
