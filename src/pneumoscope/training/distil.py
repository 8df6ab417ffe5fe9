"""Teachers: bundles whose predictions for the training images a student is trained on as well.

Hinton et al., Distilling the Knowledge in a Neural Network, 2015. A teacher is any bundle, so that its input
may differ from that of the student; it may be larger, for example.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError, RecipeError
from pneumoscope.model.bundle import Bundle
from pneumoscope.parallel import Progress, available_cpus
from pneumoscope.predict.cache import ImageCache
from pneumoscope.predict.calibration import calibrate
from pneumoscope.predict.pipeline import Pipeline
from pneumoscope.predict.predictor import Predictor
from pneumoscope.training.dataset import input_items
from pneumoscope.training.recipe import Recipe

__all__ = ["check_teacher", "teacher_probabilities"]


def check_teacher(bundle: Bundle, student: Recipe, data: Manifest) -> None:
    """Reject a teacher that may have been trained on validation or test patients of the student.

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
    source = bundle.manifest.provenance
    if bundle.manifest.classes != student.output_classes:
        raise RecipeError(
            f"{bundle.path}: the teacher has the classes {', '.join(bundle.manifest.classes)} only"
        )
    if source.split_fingerprint:
        same_split = source.split_fingerprint == data.split_fingerprint()
    else:
        same_split = (source.split_seed, source.split_method) == (student.split.seed, student.split.method)
    own = [one.fingerprint for one in source.data if not one.additional]
    if own != [data.fingerprint()] or not same_split:
        raise RecipeError(
            f"{bundle.path}: the teacher was trained on other data or by another split, so perhaps on test "
            "patients; train one on this data with the same split"
        )


def teacher_probabilities(
    teacher: Bundle,
    images: Manifest,
    *,
    cache: ImageCache | None = None,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """Return the calibrated probabilities of a teacher, shape (N, K).

    Images that its gate would reject are predicted too.

    Parameters
    ----------
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
    return np.stack(rows).astype(np.float32)
