from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bundles import make_bundle
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.data.split import split
from pneumoscope.errors import DataError, RecipeError
from pneumoscope.model.manifest import Provenance, TrainingData
from pneumoscope.predict import pipeline
from pneumoscope.predict.cache import ImageCache
from pneumoscope.predict.predictor import Predictor
from pneumoscope.training.distil import check_teacher, taught_images, teacher_probabilities
from pneumoscope.training.recipe import Distillation, load_recipe

STUDENT = load_recipe("default")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return split(write_phantoms(folder, n=30, size=64), fractions=(0.6, 0.2, 0.2), seed=0)


def trained_on(data, *, fingerprint=None, **changes):
    facts = {
        "data": (TrainingData(fingerprint=fingerprint or data.fingerprint()),),
        "split_fingerprint": data.split_fingerprint(),
        "split_method": "given",
    }
    return Provenance(**facts | changes)


def test_a_teacher_of_the_same_data_and_split_is_accepted(data, tmp_path):
    check_teacher(make_bundle(tmp_path / "a", provenance=trained_on(data)), STUDENT, data)
    silent = trained_on(data, split_fingerprint="", split_method="patient", split_seed=0)
    check_teacher(make_bundle(tmp_path / "b", provenance=silent), STUDENT, data)


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "other"},
        {"split_fingerprint": "other", "split_method": "patient", "split_seed": 0},
        {"split_fingerprint": "", "split_method": "patient", "split_seed": 1},
        {"split_fingerprint": "", "split_method": "random", "split_seed": 0},
    ],
)
def test_a_teacher_that_may_know_the_test_patients_is_rejected(data, tmp_path, changes):
    with pytest.raises(RecipeError, match="same split"):
        check_teacher(make_bundle(tmp_path, provenance=trained_on(data, **changes)), STUDENT, data)


def test_the_same_images_divided_otherwise_are_another_split(data, tmp_path):
    otherwise = split(data, fractions=(0.6, 0.2, 0.2), seed=1)
    assert otherwise.fingerprint() == data.fingerprint()
    with pytest.raises(RecipeError, match="same split"):
        check_teacher(make_bundle(tmp_path, provenance=trained_on(data)), STUDENT, otherwise)


def test_a_teacher_of_other_classes_is_rejected(data, tmp_path):
    bundle = make_bundle(tmp_path, classes=("normal", "pneumonia"), provenance=trained_on(data))
    with pytest.raises(RecipeError, match="has the classes normal, pneumonia, the recipe has"):
        check_teacher(bundle, STUDENT, data)


def test_additional_data_of_a_teacher_do_not_count(data, tmp_path):
    own = TrainingData(fingerprint=data.fingerprint())
    more = TrainingData(fingerprint="other", additional=True)
    provenance = trained_on(data).model_copy(update={"data": (own, more)})
    check_teacher(make_bundle(tmp_path, provenance=provenance), STUDENT, data)


def test_a_teacher_gives_a_probability_for_every_image(tmp_path):
    manifest = write_phantoms(tmp_path / "phantoms", n=6, size=64)
    paths = [manifest.resolve(record) for record in manifest.records]
    bundle = make_bundle(tmp_path / "bundle")
    rows = teacher_probabilities(bundle, manifest, bundle.manifest.classes)
    assert rows.shape == (6, 3)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-5)
    predictions = Predictor.load(bundle.path, workers=1).predict(paths)
    evaluated = [
        (one.probabilities["normal"], row[0])
        for one, row in zip(predictions, rows, strict=True)
        if one.status == "ok"
    ]
    assert evaluated
    np.testing.assert_allclose(*zip(*evaluated, strict=True), rtol=1e-5)


def test_a_second_pass_takes_the_images_from_the_cache(tmp_path, monkeypatch):
    manifest = write_phantoms(tmp_path / "phantoms", n=6, size=64)
    bundle = make_bundle(tmp_path / "bundle")
    first = teacher_probabilities(
        bundle, manifest, bundle.manifest.classes, cache=ImageCache(tmp_path / "cache")
    )
    monkeypatch.setattr(pipeline, "read_radiograph", lambda *_, **__: pytest.fail("decoded again"))
    again = teacher_probabilities(
        bundle, manifest, bundle.manifest.classes, cache=ImageCache(tmp_path / "cache")
    )
    np.testing.assert_allclose(first, again, atol=0.02)  # inputs in the cache have 8 bits


def test_an_image_that_a_teacher_cannot_read_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = Manifest((Record("broken.png", "normal", "p"),), tmp_path)
    with pytest.raises(DataError, match=r"broken\.png"):
        teacher_probabilities(make_bundle(tmp_path / "bundle"), images, ("normal", "bacterial", "viral"))


def test_a_teacher_of_some_sources_predicts_only_these(data, tmp_path):
    """After `data join` the paths start at a folder further up, and the student may have more classes."""
    recipe = STUDENT.model_copy(
        update={
            "classes": (*STUDENT.output_classes, "other"),
            "distillation": Distillation(teacher="default", sources=("phantom",)),
        }
    )
    more = tuple(
        Record(f"more/{number}.png", "other", f"m{number}", "train", source="more") for number in range(3)
    )
    own = (
        replace(record, path=f"{data.root.name}/{record.path}", source="phantom") for record in data.records
    )
    joined = Manifest((*own, *more), data.root.parent)
    assert len(taught_images(recipe, joined)) == len(data)
    teacher = make_bundle(tmp_path / "a", provenance=trained_on(data))
    check_teacher(teacher, recipe, joined)
    moved = joined.with_records(replace(record, split="train") for record in joined.records)
    with pytest.raises(RecipeError, match="same split"):
        check_teacher(teacher, recipe, moved)
    with pytest.raises(RecipeError, match="same split"):
        check_teacher(make_bundle(tmp_path / "b", provenance=trained_on(joined)), recipe, joined)
    rows = teacher_probabilities(teacher, taught_images(recipe, joined), recipe.output_classes)
    assert rows.shape == (len(data), 4)
    assert not rows[:, 3].any()
