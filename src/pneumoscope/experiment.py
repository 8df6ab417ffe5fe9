"""One experiment from end to end: data → split → train → export → calibrate → judge.

Training and judging do not know each other; this module is where they meet. The network is trained on
split ``train``; its epoch, calibrator and thresholds are chosen on ``val``; what is reported is ``test``.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
import logging
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pneumoscope.data.audit import examine
from pneumoscope.data.manifest import Manifest, load
from pneumoscope.data.split import split
from pneumoscope.domain import DataError, MissingExtraError, Reason, UnreadableImageError
from pneumoscope.evaluate.bundles import Judgement, calibrate_bundle, judge_bundle, sign_bundle
from pneumoscope.model.bundle import Bundle, Provenance, default_bundle_path
from pneumoscope.model.lungs import LUNGS_FILE, OnnxLungSegmenter
from pneumoscope.predict.pipeline import available_cpus
from pneumoscope.predict.predictor import Predictor
from pneumoscope.train.dataset import Packed, check_classes, check_packed, check_split, pack
from pneumoscope.train.distil import ask, check_teacher
from pneumoscope.train.export import export_bundle
from pneumoscope.train.fit import CHECKPOINT_FILE, HISTORY_FILE, Epoch, fit, make_fabric
from pneumoscope.train.networks import Network, build_network, check_size, load_weights, save_weights
from pneumoscope.train.pretrain import pretrain
from pneumoscope.train.recipe import Recipe, SplitSpec, load_recipe

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = [
    "Experiment",
    "Progress",
    "Result",
    "divide",
    "export_run_to_keras",
    "limited",
    "lung_segmenter",
    "pack_pictures",
    "prepare_manifest",
    "run_experiment",
    "with_split",
]

log = logging.getLogger(__name__)

BUNDLE_FOLDER, RECIPE_FILE, SPLIT_FILE = "bundle", "recipe.yaml", "split.csv"
ENVIRONMENT_FILE, UNREADABLE_FILE = "environment.json", "unreadable.csv"
TEACHER_FOLDER = "teacher"
WEIGHTS_FILE, KERAS_FILE = "model.safetensors", "model.h5"


@dataclass(frozen=True)
class Experiment:
    """What is to be done.

    Parameters
    ----------
    recipe : Recipe
    data : Path
        A folder, a manifest or a MedMNIST file.
    out : Path
        The run folder.
    weights : Path, optional
        A timm checkpoint in place of the hub's.
    lungs : Path, optional
        A lung segmenter; the shipped one if not given.
    also : Path, optional
        A second data set to learn from only: its pictures without a split, and those of split ``train``.
    teachers : tuple of Path
        Bundles in place of the teacher that the recipe would train; of the same data and split.
    limit : int, optional
        Use at most so many pictures of each class.
    keras : bool
        Write ``model.h5`` as well.
    resume : bool
        Go on with an interrupted run.
    described_as : str
        Name of the data in reports; the folder's name if empty.
    """

    recipe: Recipe
    data: Path
    out: Path
    weights: Path | None = None
    lungs: Path | None = None
    also: Path | None = None
    teachers: tuple[Path, ...] = ()
    limit: int | None = None
    keras: bool = False
    resume: bool = False
    described_as: str = ""


@dataclass(frozen=True)
class Progress:
    """Whom to tell how far things are."""

    on_step: Callable[[str], None] = lambda _: None
    on_pictures: Callable[[int, int], None] = lambda _done, _total: None
    on_epoch: Callable[[Epoch], None] = lambda _: None


@dataclass(frozen=True, eq=False)
class Result:
    """What came out of it."""

    bundle: Bundle
    judgement: Judgement
    unreadable: tuple[UnreadableImageError, ...]


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
    learnt = _with_more(manifest.subset("train"), experiment.also)
    train, val = (pack_pictures(part, recipe, lungs, progress) for part in (learnt, manifest.subset("val")))
    unreadable = train.unreadable + val.unreadable
    if fabric.is_global_zero:
        _write_unreadable(out / UNREADABLE_FILE, unreadable)
    check_packed(manifest.root, recipe.classes, train=train, val=val)
    teacher: npt.NDArray[np.float32] | None = None
    taught_by: tuple[str, ...] = ()
    if recipe.distillation:
        teacher, taught_by = _teach(experiment, manifest, train, lungs, progress)
    if recipe.pretraining:
        progress.on_step("pretraining without labels")
        network = pretrain(recipe, network, train.pictures, out, fabric=fabric)
    progress.on_step("training")
    network = fit(
        recipe,
        network,
        train,
        val,
        out,
        fabric=fabric,
        teacher=teacher,
        resume=experiment.resume,
        on_epoch=progress.on_epoch,
    )
    if not fabric.is_global_zero:
        return None
    progress.on_step("exporting")
    bundle = _export(experiment, network, manifest, lungs, taught_by)
    progress.on_step("calibrating on validation patients")
    bundle = calibrate_bundle(
        bundle, manifest.subset("val"), method=recipe.calibration, described_as=_speaks_of(experiment, "val")
    )
    progress.on_step("judging on test patients")
    judgement = _judge(experiment, bundle, manifest, fabric)
    unreadable += _not_read(judgement)
    _write_unreadable(out / UNREADABLE_FILE, unreadable)
    bundle = sign_bundle(bundle, judgement.metrics, _speaks_of(experiment, "test"))
    return Result(bundle, judgement, unreadable)


def _resumes(experiment: Experiment) -> bool:
    """Whether there is a run to go on with; refuse to write over one, or to go on by another recipe."""
    out = experiment.out
    if not (out / CHECKPOINT_FILE).exists():
        return False
    if not experiment.resume:
        raise DataError(f"{out}: holds a run already; use --resume to go on with it, or another --out")
    if load_recipe(str(out / RECIPE_FILE)).sha256 != experiment.recipe.sha256:
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


def prepare_manifest(manifest: Manifest, recipe: Recipe, *, limit: int | None = None) -> Manifest:
    """Check labels, cut to `limit` pictures a class, and split where the manifest has no split yet.

    Raises
    ------
    DataError
        For data that no network can learn from.
    """
    check_classes(manifest, recipe.classes)
    if limit is not None:
        manifest = limited(manifest, limit, recipe.seed)
    if not any(record.split for record in manifest.records):
        manifest = divide(manifest, recipe.split)
    check_split(manifest, recipe.classes)
    return manifest


def divide(manifest: Manifest, how: SplitSpec) -> Manifest:
    """Split a manifest; by patient means that copies of a picture stay on one side too."""
    copies = examine(manifest).groups if how.method == "patient" else None
    return split(manifest, fractions=how.fractions, seed=how.seed, method=how.method, duplicates=copies)


def limited(manifest: Manifest, limit: int, seed: int) -> Manifest:
    """Return at most `limit` pictures of each class, chosen by seed."""
    order = np.random.default_rng(seed).permutation(len(manifest))
    taken: dict[str, int] = {}
    kept = []
    for index in order:
        label = manifest.records[index].label
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= limit:
            kept.append(int(index))
    return manifest.with_records(tuple(manifest.records[index] for index in sorted(kept)))


def lung_segmenter(experiment: Experiment) -> Path | None:
    """Return the segmenter that the recipe's input needs, or None.

    Raises
    ------
    DataError
        If there is none.
    """
    if not experiment.recipe.input.needs_lungs:
        return None
    path = experiment.lungs or default_bundle_path() / LUNGS_FILE
    if not path.is_file():
        raise DataError(
            f"{path}: no lung segmenter; train one by 'pneumoscope train-lungs', or give --lungs FILE"
        )
    return path


def _with_more(train: Manifest, also: Path | None) -> Manifest:
    """Add the pictures of a second set that are there to learn from."""
    if also is None:
        return train
    more = load(also)
    added = [
        replace(
            record,
            path=str(more.resolve(record).resolve()),
            patient_id=f"{record.source}/{record.patient_id}",
            split="train",
        )
        for record in more.records
        if record.split in ("", "train")
    ]
    return train.with_records([*train.records, *added])


def _teach(
    experiment: Experiment, manifest: Manifest, train: Packed, lungs: Path | None, progress: Progress
) -> tuple[npt.NDArray[np.float32], tuple[str, ...]]:
    """Return what the teachers say of the training pictures, shape (N, K), and who they are."""
    recipe = experiment.recipe
    assert recipe.distillation is not None
    taught_by = experiment.teachers
    if not taught_by:
        teacher = replace(
            experiment,
            recipe=load_recipe(recipe.distillation.teacher),
            out=experiment.out / TEACHER_FOLDER,
            lungs=lungs,
            keras=False,
            resume=True,
        )
        run_experiment(teacher, progress)
        taught_by = (teacher.out,)
    predictors = [Predictor.load(path) for path in taught_by]
    fingerprint = manifest.fingerprint()
    for predictor in predictors:
        check_teacher(predictor.bundle, recipe, fingerprint)
    progress.on_step("asking the teachers")
    opinions = [
        ask(predictor, [manifest.resolve(record) for record in train.records]) for predictor in predictors
    ]
    return np.mean(opinions, axis=0), tuple(predictor.bundle.identity for predictor in predictors)


def pack_pictures(records: Manifest, recipe: Recipe, lungs: Path | None, progress: Progress) -> Packed:
    """Read and standardise pictures as a recipe says, telling how far it is."""
    segment = OnnxLungSegmenter(lungs) if lungs else None
    packed = pack(
        records,
        recipe.classes,
        recipe.input,
        segment,
        progress=lambda done: progress.on_pictures(done, len(records)),
    )
    if packed.unreadable:
        log.warning("%d of %d pictures are unreadable and left out", len(packed.unreadable), len(records))
    return packed


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
    bundle = export_bundle(network, recipe, out / BUNDLE_FOLDER, provenance=provenance, lungs=lungs)
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


def with_split(recipe: Recipe, *, method: str | None = None, seed: int | None = None) -> Recipe:
    """Return the recipe with another split; the seed, where given, is that of the training too."""
    chosen = {name: value for name, value in (("method", method), ("seed", seed)) if value is not None}
    changed = recipe.model_copy(
        update={"split": recipe.split.model_validate(recipe.split.model_dump() | chosen)}
    )
    return changed if seed is None else changed.model_copy(update={"seed": seed})


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
