"""Teachers: bundles whose predictions for the training images a student is trained on as well.

Hinton et al., Distilling the Knowledge in a Neural Network, 2015. A teacher is any bundle, so that its input
may differ from that of the student; it may be larger, for example.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError, RecipeError
from pneumoscope.model.bundle import Bundle
from pneumoscope.parallel import Progress, available_cpus
from pneumoscope.predict.cache import ImageCache
from pneumoscope.predict.calibration import calibrate
from pneumoscope.predict.inputs import input_items
from pneumoscope.predict.pipeline import Pipeline
from pneumoscope.predict.predictor import Predictor
from pneumoscope.training.recipe import Recipe

__all__ = ["check_teacher", "rooted_at_its_images", "taught_images", "teacher_probabilities"]


def check_teacher(bundle: Bundle, student: Recipe, data: Manifest) -> None:
    """Reject a teacher that may have been trained on validation or test patients of the student.

    Where the recipe names the teacher's sources, their images are compared, as a data set of their own.

    Parameters
    ----------
    bundle : Bundle
        The teacher. Where its provenance has no fingerprint of the split, seed and method are compared.
    student : Recipe
    data : Manifest
        Data of the student with validation and test images and their split.

    Raises
    ------
    RecipeError
        If it has other classes, or was trained on other data or by another split.
    """
    source, classes = bundle.manifest.provenance, bundle.manifest.classes
    partial = student.distillation is not None and bool(student.distillation.sources)
    fits = set(classes) <= set(student.output_classes) if partial else classes == student.output_classes
    if not fits:
        raise RecipeError(
            f"{bundle.path}: the teacher has the classes {', '.join(classes)}, the recipe has "
            f"{', '.join(student.output_classes)}; give one with {'some of' if partial else 'just'} these"
        )
    shared = rooted_at_its_images(taught_images(student, data)) if partial else data
    if source.split_fingerprint:
        same_split = source.split_fingerprint == shared.split_fingerprint()
    else:
        same_split = (source.split_seed, source.split_method) == (student.split.seed, student.split.method)
    own = [one.fingerprint for one in source.data if not one.additional]
    if own != [shared.fingerprint()] or not same_split:
        raise RecipeError(
            f"{bundle.path}: the teacher was trained on other data or by another split, so perhaps on test "
            "patients; train one on this data with the same split"
        )


def taught_images(student: Recipe, data: Manifest) -> Manifest:
    """Return the images that a teacher predicts: those of the sources that it was trained on."""
    sources = student.distillation.sources if student.distillation else ()
    return data.with_records(record for record in data.records if not sources or record.source in sources)


def rooted_at_its_images(manifest: Manifest) -> Manifest:
    """Name images from the closest folder above all of them, as a data set of their own does."""
    if not manifest.records:
        return manifest
    places = [manifest.resolve(record) for record in manifest.records]
    root = Path(os.path.commonpath([place.parent for place in places]))
    named = (
        replace(record, path=place.relative_to(root).as_posix())
        for record, place in zip(manifest.records, places, strict=True)
    )
    return Manifest(tuple(named), root)


def teacher_probabilities(
    teacher: Bundle,
    images: Manifest,
    classes: Sequence[str],
    *,
    cache: ImageCache | None = None,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """Return the calibrated probabilities of a teacher, shape (N, K).

    Images that its gate would reject are predicted too.

    Parameters
    ----------
    classes : sequence of str
        Of the student; those that the teacher does not know get 0.
    cache : ImageCache, optional
        Where images that are prepared for the teacher are kept.
    progress : Progress, optional
        Receives the number of images done.

    Raises
    ------
    DataError
        If an image cannot be read.
    """
    pipeline = Pipeline.of_bundle(teacher, force=True, cache=cache)
    predictor = Predictor(teacher, workers=available_cpus(), force=True, pipeline=pipeline)
    manifest = teacher.manifest
    calibrator = manifest.calibrations[0].calibrator
    progress = progress or Progress()
    rows = []
    for score in predictor.scores_iter(input_items(images)):
        if score.logits is None:
            raise DataError(f"{score.path}: the teacher cannot read it ({score.message})")
        rows.append(calibrate(score.logits, calibrator, manifest.target_mask))
        progress.update(len(rows), len(images))
    probabilities = np.zeros((len(rows), len(classes)), np.float32)
    probabilities[:, [classes.index(name) for name in manifest.classes]] = rows
    return probabilities
