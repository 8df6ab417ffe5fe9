"""What comes before the training: options checked, data split, images read.

One process does it for all where there are several.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError, MissingExtraError, RecipeError
from pneumoscope.experiment.images import (
    additional_images,
    lung_segmenter,
    pack_images,
    prepare_manifest,
    with_additional,
)
from pneumoscope.experiment.plan import Experiment, resolved
from pneumoscope.experiment.run_folder import (
    Origin,
    begun_with,
    check_inputs,
    check_recipe,
    resumes,
    write_inputs,
    write_left_out,
)
from pneumoscope.parallel import Progress
from pneumoscope.training.dataset import Packed, check_packed
from pneumoscope.training.processes import check_divides

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Prepared", "list_images", "prepare"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the first process reads for all.

    Parameters
    ----------
    origin : Origin
    lungs : Path or None
        The segmenter.
    images : Manifest
        Training images, with the additional ones.
    train_set, val_set : Packed
    """

    origin: Origin
    lungs: Path | None
    images: Manifest
    train_set: Packed
    val_set: Packed


def list_images(
    experiment: Experiment, fabric: Fabric, progress: Progress
) -> tuple[Experiment, Manifest, bool]:
    """Return the experiment with classes and target, its images, and whether there is a run to continue."""
    begun = resumes(experiment)
    _check_options(experiment)
    check_divides(experiment.recipe.batch, fabric.world_size)
    listed = load(experiment.data, progress=progress)
    experiment = resolved(experiment, listed)
    if begun:
        check_recipe(experiment)
    return experiment, listed, begun


def prepare(experiment: Experiment, listed: Manifest, progress: Progress, *, resumes: bool) -> Prepared:
    """Split the data, read the images, and write what is needed to reproduce the run."""
    recipe, out = experiment.recipe, experiment.out
    lungs, cache = lung_segmenter(experiment), experiment.open_cache()
    origin = _origin(experiment, listed, progress, resumes=resumes)
    if resumes:
        check_inputs(origin, lungs)
    else:
        write_inputs(origin, lungs)
    images = with_additional(origin.manifest.subset("train"), origin.added)
    progress.step("reading training images")
    train_set = pack_images(images, recipe, lungs, cache, progress)
    progress.step("reading validation images")
    val_set = pack_images(origin.manifest.subset("val"), recipe, lungs, cache, progress)
    write_left_out(out, train_set.left_out + val_set.left_out)
    check_packed(origin.manifest.name, recipe.output_classes, train=train_set, val=val_set)
    return Prepared(origin, lungs, images, train_set, val_set)


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
    return begun_with(experiment.out, manifest)
