"""One experiment from end to end: data → split → train → export → calibrate → judge.

The network is trained on split ``train``; its epoch, calibrator and thresholds are chosen on ``val``; what is
reported is ``test``.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
import logging
import platform
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import Manifest, load
from pneumoscope.domain import DataError, MissingExtraError, Reason, UnreadableImageError
from pneumoscope.evaluate.bundles import Judgement, calibrate_bundle, judge_bundle, sign_bundle
from pneumoscope.evaluate.novelty import fit_gate
from pneumoscope.experiment.pictures import (
    are_of,
    by_data_set,
    lung_segmenter,
    pack_pictures,
    prepare_manifest,
    with_more,
)
from pneumoscope.experiment.plan import RECIPE_FILE, Experiment, Progress, Result, is_of_another_recipe
from pneumoscope.model.bundle import Bundle, load_bundle
from pneumoscope.model.manifest import Provenance
from pneumoscope.predict.pipeline import available_cpus
from pneumoscope.train.dataset import Packed, check_packed
from pneumoscope.train.distil import ask, check_teacher
from pneumoscope.train.export import export_bundle
from pneumoscope.train.fit import CHECKPOINT_FILE, fit, make_fabric
from pneumoscope.train.history import HISTORY_FILE
from pneumoscope.train.networks import Network, build_network, check_size, load_weights, save_weights
from pneumoscope.train.pretrain import pretrain
from pneumoscope.train.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["export_run_to_keras", "run_experiment"]

log = logging.getLogger(__name__)

BUNDLE_FOLDER, SPLIT_FILE = "bundle", "split.csv"
ENVIRONMENT_FILE, UNREADABLE_FILE = "environment.json", "unreadable.csv"
TEACHER_FOLDER = "teacher"
WEIGHTS_FILE, KERAS_FILE = "model.safetensors", "model.h5"


def run_experiment(experiment: Experiment, progress: Progress | None = None) -> Result | None:
    """Train, export, calibrate and judge one network.

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
    resumes = _resumes(experiment)
    if experiment.keras and importlib.util.find_spec("keras") is None:
        raise MissingExtraError("Writing model.h5", "keras")
    manifest = _manifest(experiment, resumes=resumes)
    lungs = lung_segmenter(experiment)
    network = build_network(recipe.network, len(recipe.classes), weights=experiment.weights, seed=recipe.seed)
    check_size(network, recipe.input.size)
    fabric = make_fabric()
    if not fabric.is_global_zero:
        progress = Progress()  # one process speaks for all
    elif not resumes:
        _write_inputs(experiment, manifest)
    progress.on_step("reading pictures")
    learnt = with_more(manifest.subset("train"), experiment.also)
    train, val = (pack_pictures(part, recipe, lungs, progress) for part in (learnt, manifest.subset("val")))
    unreadable = train.unreadable + val.unreadable
    if fabric.is_global_zero:
        _write_unreadable(out / UNREADABLE_FILE, unreadable)
    check_packed(manifest.root, recipe.classes, train=train, val=val)
    network, taught_by = _learn(experiment, network, manifest, train, val, lungs, fabric, progress)
    if not fabric.is_global_zero:
        return None
    progress.on_step("exporting")
    bundle = _export(experiment, network, manifest, train, lungs, taught_by)
    bundle = _made_fit_for_use(experiment, bundle, manifest, learnt, progress)
    progress.on_step("judging on test patients")
    judgement = _judge(experiment, bundle, manifest, fabric)
    unreadable += _not_read(judgement)
    _write_unreadable(out / UNREADABLE_FILE, unreadable)
    bundle = sign_bundle(bundle, judgement.metrics, _speaks_of(experiment, "test"))
    return Result(bundle, judgement, unreadable)


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
        network = pretrain(recipe, network, train.pictures, experiment.out, fabric=fabric)
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


def _made_fit_for_use(
    experiment: Experiment, bundle: Bundle, manifest: Manifest, learnt: Manifest, progress: Progress
) -> Bundle:
    """Fit the gate on what was learnt from, and calibrator and thresholds on the validation pictures."""
    recipe = experiment.recipe
    progress.on_step("fitting the gate on training patients")
    bundle = fit_gate(bundle, by_data_set(learnt, manifest))
    progress.on_step("calibrating on validation patients")
    return calibrate_bundle(
        bundle,
        manifest.subset("val"),
        method=recipe.calibration,
        views=recipe.calibration_views,
        seed=recipe.seed,
        described_as=_speaks_of(experiment, "val"),
    )


def _resumes(experiment: Experiment) -> bool:
    """Whether there is a run to go on with; refuse to write over one, or to go on by another recipe."""
    out = experiment.out
    if not (out / CHECKPOINT_FILE).exists():
        return False
    if not experiment.resume:
        raise DataError(f"{out}: holds a run already; use --resume to go on with it, or another --out")
    if is_of_another_recipe(out, experiment.recipe):
        raise DataError(
            f"{out}: is a run of another recipe; resume with the same options, or use another --out"
        )
    return True


def _manifest(experiment: Experiment, *, resumes: bool) -> Manifest:
    manifest = load(experiment.data)
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
    """Return what teachers say of the training pictures, shape (N, K), and who they are.

    Rows of pictures that were added to the data set are 0: a teacher of children knows nothing of adults.
    """
    teachers = [load_bundle(path) for path in paths]
    fingerprint = manifest.fingerprint()
    for teacher in teachers:
        check_teacher(teacher, recipe, fingerprint)
    own = np.flatnonzero(are_of(train.records, manifest))
    pictures = [manifest.resolve(train.records[row]) for row in own]
    said = np.zeros((len(train), len(recipe.classes)), np.float32)
    said[own] = np.mean([ask(teacher, pictures) for teacher in teachers], axis=0)
    return said, tuple(teacher.identity for teacher in teachers)


def _write_inputs(experiment: Experiment, manifest: Manifest) -> None:
    """Leave in the run folder what another person needs to run it again."""
    out = experiment.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: the run folder cannot be made ({error.strerror})") from error
    (out / RECIPE_FILE).write_text(experiment.recipe.to_yaml(), encoding="utf-8")
    manifest.write(out / SPLIT_FILE)
    packages = ("pneumoscope", "torch", "timm", "lightning", "numpy", "opencv-python-headless", "onnxruntime")
    environment = {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": available_cpus(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }
    (out / ENVIRONMENT_FILE).write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")


def _write_unreadable(path: Path, unreadable: Iterable[UnreadableImageError]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "reason", "detail"))
        writer.writerows((error.path, error.reason.value, error.detail) for error in unreadable)


def _not_read(judgement: Judgement) -> tuple[UnreadableImageError, ...]:
    return tuple(
        UnreadableImageError(row.path, Reason(row.reasons[0]), row.message)
        for row in judgement.not_judged
        if row.status == "unreadable"
    )


def _export(
    experiment: Experiment,
    network: Network,
    manifest: Manifest,
    train: Packed,
    lungs: Path | None,
    taught_by: tuple[str, ...],
) -> Bundle:
    recipe, out = experiment.recipe, experiment.out
    save_weights(network, out / WEIGHTS_FILE)
    provenance = Provenance(
        data_fingerprint=manifest.fingerprint(),
        data_description=_data_name(experiment),
        split_seed=recipe.split.seed,
        split_method=recipe.split.method,
        teachers=taught_by,
    )
    bundle = export_bundle(
        network, recipe, out / BUNDLE_FOLDER, provenance=provenance, lungs=lungs, seen=train.pictures
    )
    if experiment.keras:
        from pneumoscope.train.keras_export import export_keras

        export_keras(network, out / KERAS_FILE, size=recipe.input.size)
    return bundle


def _data_name(experiment: Experiment) -> str:
    return experiment.described_as or experiment.data.resolve().name


def _speaks_of(experiment: Experiment, side: str) -> str:
    how = experiment.recipe.split
    return f"{_data_name(experiment)}, {side} split (by {how.method}, seed {how.seed})"


def _judge(experiment: Experiment, bundle: Bundle, manifest: Manifest, fabric: Fabric) -> Judgement:
    recipe = experiment.recipe
    about = {
        "Recipe": f"{recipe.name} ({recipe.sha256[:12]})",
        "Data": f"{_data_name(experiment)}, {len(manifest)} pictures",
        "Split": f"by {recipe.split.method}, seed {recipe.split.seed}",
        "Epochs": str(recipe.epochs),
        "Trained on": str(fabric.device.type).upper(),
    }
    return judge_bundle(
        bundle,
        manifest.subset("test"),
        experiment.out,
        speaks_of=_speaks_of(experiment, "test"),
        about=about,
        history=experiment.out / HISTORY_FILE,
    )


def export_run_to_keras(run: Path, out: Path) -> float:
    """Write a finished run's network as a Keras file; return the largest difference between the two.

    Raises
    ------
    RecipeError
        If the folder is no run, or its weights do not fit its recipe.
    """
    from pneumoscope.train.keras_export import export_keras

    recipe = load_recipe(str(run / RECIPE_FILE))
    network = build_network(recipe.network, len(recipe.classes), pretrained=False)
    return export_keras(load_weights(network, run / WEIGHTS_FILE), out, size=recipe.input.size)
