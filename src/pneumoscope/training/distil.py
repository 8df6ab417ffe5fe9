"""Teachers: bundles whose evaluation of the training images a student learns from besides the labels.

Hinton et al., Distilling the Knowledge in a Neural Network, 2015. A teacher is any bundle, so it may see
other images than its student, larger ones say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import Manifest
from pneumoscope.errors import DataError, RecipeError
from pneumoscope.model.bundle import Bundle
from pneumoscope.predict.calibration import calibrate
from pneumoscope.predict.predictor import Predictor
from pneumoscope.training.recipe import Recipe

__all__ = ["ask", "check_teacher"]


def check_teacher(bundle: Bundle, student: Recipe, data: Manifest) -> None:
    """Reject a teacher that would hand on what the student must not know.

    Parameters
    ----------
    bundle : Bundle
        The teacher. One that does not say who was on which side is held to how it says they were divided.
    student : Recipe
    data : Manifest
        The student's, its validation and test images included, with their split.

    Raises
    ------
    RecipeError
        If it has other classes, or learnt from other data or by another split: it could have seen the
        student's test patients.
    """
    source = bundle.manifest.provenance
    if bundle.manifest.findings != student.classes:
        raise RecipeError(f"{bundle.path}: the teacher knows {', '.join(bundle.manifest.findings)} only")
    if source.split_fingerprint:
        same_split = source.split_fingerprint == data.split_fingerprint()
    else:
        same_split = (source.split_seed, source.split_method) == (student.split.seed, student.split.method)
    if source.data_fingerprint != data.fingerprint() or not same_split:
        raise RecipeError(
            f"{bundle.path}: the teacher learnt from other data or by another split, so it may know the test "
            "patients; train one on this data with the same split"
        )


def ask(teacher: Bundle, paths: Sequence[Path]) -> npt.NDArray[np.float32]:
    """Return a teacher's calibrated probabilities, shape (N, K).

    A image that its gate would reject is evaluated all the same.

    Raises
    ------
    DataError
        If a image cannot be read.
    """
    forced = Predictor.load(teacher.path, force=True)
    rows = []
    for score in forced.scores_iter(paths):
        if score.logits is None:
            raise DataError(f"{score.path}: the teacher cannot read it ({score.message})")
        rows.append(calibrate(score.logits, teacher.manifest.calibrator))
    return np.stack(rows).astype(np.float32)
