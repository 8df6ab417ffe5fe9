from __future__ import annotations

import numpy as np
import pytest

from bundles import make_bundle
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.domain import DataError, RecipeError
from pneumoscope.model.manifest import Provenance
from pneumoscope.predict.predictor import Predictor
from pneumoscope.train.distil import ask, check_teacher
from pneumoscope.train.recipe import load_recipe

STUDENT = load_recipe("default")


def taught_on(fingerprint="f", seed=0, method="patient"):
    return Provenance(data_fingerprint=fingerprint, split_seed=seed, split_method=method)


def test_a_teacher_of_the_same_data_and_split_is_accepted(tmp_path):
    check_teacher(make_bundle(tmp_path, provenance=taught_on()), STUDENT, "f")


@pytest.mark.parametrize(
    "provenance", [taught_on("other"), taught_on(seed=1), taught_on(method="random"), Provenance()]
)
def test_a_teacher_that_may_know_the_test_patients_is_refused(tmp_path, provenance):
    with pytest.raises(RecipeError, match="same split"):
        check_teacher(make_bundle(tmp_path, provenance=provenance), STUDENT, "f")


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    bundle = make_bundle(tmp_path, findings=("normal", "pneumonia"), provenance=taught_on())
    with pytest.raises(RecipeError, match="knows normal, pneumonia only"):
        check_teacher(bundle, STUDENT, "f")


def test_a_teacher_gives_a_probability_for_every_picture(tmp_path):
    manifest = write_phantoms(tmp_path / "phantoms", n=6, size=64)
    paths = [manifest.resolve(record) for record in manifest.records]
    bundle = make_bundle(tmp_path / "bundle")
    teacher = Predictor.load(bundle.path, workers=1)
    said = ask(bundle, paths)
    assert said.shape == (6, 3)
    assert said.dtype == np.float32
    np.testing.assert_allclose(said.sum(axis=1), 1, rtol=1e-5)
    answers = [prediction.p_normal for prediction in teacher.predict(paths)]
    judged = [(one, row[0]) for one, row in zip(answers, said, strict=True) if one is not None]
    assert judged
    np.testing.assert_allclose(*zip(*judged, strict=True), rtol=1e-5)


def test_what_a_teacher_cannot_read_is_named(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        ask(make_bundle(tmp_path / "bundle"), [broken])
