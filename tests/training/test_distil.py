from __future__ import annotations

import numpy as np
import pytest

from bundles import make_bundle
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.data.split import split
from pneumoscope.errors import DataError, RecipeError
from pneumoscope.model.manifest import Provenance
from pneumoscope.predict.predictor import Predictor
from pneumoscope.training.distil import ask, check_teacher
from pneumoscope.training.recipe import load_recipe

STUDENT = load_recipe("default")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return split(write_phantoms(folder, n=30, size=64), fractions=(0.6, 0.2, 0.2), seed=0)


def taught_on(data, **changes):
    facts = {
        "data_fingerprint": data.fingerprint(),
        "split_fingerprint": data.split_fingerprint(),
        "split_method": "given",
    }
    return Provenance(**facts | changes)


def test_a_teacher_of_the_same_data_and_split_is_accepted(data, tmp_path):
    check_teacher(make_bundle(tmp_path / "a", provenance=taught_on(data)), STUDENT, data)
    silent = taught_on(data, split_fingerprint="", split_method="patient", split_seed=0)
    check_teacher(make_bundle(tmp_path / "b", provenance=silent), STUDENT, data)


@pytest.mark.parametrize(
    "changes",
    [
        {"data_fingerprint": "other"},
        {"split_fingerprint": "other", "split_method": "patient", "split_seed": 0},
        {"split_fingerprint": "", "split_method": "patient", "split_seed": 1},
        {"split_fingerprint": "", "split_method": "random", "split_seed": 0},
    ],
)
def test_a_teacher_that_may_know_the_test_patients_is_rejected(data, tmp_path, changes):
    with pytest.raises(RecipeError, match="same split"):
        check_teacher(make_bundle(tmp_path, provenance=taught_on(data, **changes)), STUDENT, data)


def test_the_same_images_divided_otherwise_are_another_split(data, tmp_path):
    otherwise = split(data, fractions=(0.6, 0.2, 0.2), seed=1)
    assert otherwise.fingerprint() == data.fingerprint()
    with pytest.raises(RecipeError, match="same split"):
        check_teacher(make_bundle(tmp_path, provenance=taught_on(data)), STUDENT, otherwise)


def test_a_teacher_of_other_classes_is_rejected(data, tmp_path):
    bundle = make_bundle(tmp_path, findings=("normal", "pneumonia"), provenance=taught_on(data))
    with pytest.raises(RecipeError, match="knows normal, pneumonia only"):
        check_teacher(bundle, STUDENT, data)


def test_a_teacher_gives_a_probability_for_every_image(tmp_path):
    manifest = write_phantoms(tmp_path / "phantoms", n=6, size=64)
    paths = [manifest.resolve(record) for record in manifest.records]
    bundle = make_bundle(tmp_path / "bundle")
    teacher = Predictor.load(bundle.path, workers=1)
    said = ask(bundle, paths)
    assert said.shape == (6, 3)
    assert said.dtype == np.float32
    np.testing.assert_allclose(said.sum(axis=1), 1, rtol=1e-5)
    answers = [prediction.p_normal for prediction in teacher.predict(paths)]
    evaluated = [(one, row[0]) for one, row in zip(answers, said, strict=True) if one is not None]
    assert evaluated
    np.testing.assert_allclose(*zip(*evaluated, strict=True), rtol=1e-5)


def test_what_a_teacher_cannot_read_is_named(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png"):
        ask(make_bundle(tmp_path / "bundle"), [broken])
