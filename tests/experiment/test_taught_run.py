"""A student of a teacher on the same data, with additional images and auxiliary tasks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.errors import RecipeError
from pneumoscope.experiment import Experiment, changed_recipe, run_experiment
from pneumoscope.experiment import run as experiment_module
from pneumoscope.experiment.images import additional_images, with_additional
from pneumoscope.model.bundle import load_bundle
from pneumoscope.parallel import Progress
from pneumoscope.training.dataset import Packed
from pneumoscope.training.distil import teacher_probabilities
from pneumoscope.training.fit import fit
from pneumoscope.training.processes import make_fabric
from pneumoscope.training.recipe import Distillation, Phase, Tasks
from tiny_runs import RECIPE, Steps


@pytest.fixture(scope="module")
def taught(data, lungs, tmp_path_factory):
    """A student of a teacher with a larger input, with additional data and auxiliary tasks."""
    folder = tmp_path_factory.mktemp("taught")
    teacher = RECIPE.model_copy(
        update={"name": "teacher", "input": RECIPE.input.model_copy(update={"size": 48})}
    )
    (folder / "teacher.yaml").write_text(teacher.to_yaml(), encoding="utf-8")
    more = write_phantoms(folder / "more", n=9, size=64, seed=8)
    labels = ["normal" if record.label == "normal" else "pneumonia" for record in more.records]
    sides = [
        dataclasses.replace(record, label=label, split="val" if i == 0 else "", source="more")
        for i, (record, label) in enumerate(zip(more.records, labels, strict=True))
    ]
    more.with_records(sides).write(folder / "more.csv")
    student = RECIPE.model_copy(
        update={
            "distillation": Distillation(teacher=str(folder / "teacher.yaml")),
            "label_noise": {"more": 0.3},
            "tasks": Tasks(lungs=0.2, source=0.1),
        }
    )
    experiment = Experiment(student, data, folder / "run", lungs=lungs, additional=folder / "more.csv")
    progress = Steps()
    return run_experiment(experiment, progress), experiment, progress


def test_a_teacher_is_trained_first_and_recorded(taught):
    result, experiment, progress = taught
    steps = progress.steps
    assert steps.index("predicting with the teacher") < len(steps) - 1 - steps[::-1].index("training")
    assert progress.epochs == [(1, 2), (2, 2)] * 2
    teacher = load_bundle(experiment.out / "teacher")
    assert teacher.manifest.input.size == 48
    assert result.bundle.manifest.provenance.teachers == (teacher.identity,)


@pytest.fixture(scope="module")
def given(taught, tmp_path_factory):
    """A run whose teacher is given, its result, what the teacher predicted, and what `fit` was given."""
    _, experiment, _ = taught
    predicted, seen = [], {}

    def watch(teacher, images, classes, **options):
        predicted.extend(images.records)
        return teacher_probabilities(teacher, images, classes, **options)

    def fit_and_note(*positional, **options):
        seen.update(options)
        return fit(*positional, **options)

    out = tmp_path_factory.mktemp("given") / "run"
    again = dataclasses.replace(experiment, out=out, teachers=(experiment.out / "teacher",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment_module, "teacher_probabilities", watch)
        patch.setattr(experiment_module, "fit", fit_and_note)
        return again, run_experiment(again), predicted, seen


def test_the_teacher_predicts_only_images_of_its_own_data(given):
    experiment, result, predicted, _ = given
    left_out = {one.path for one in result.left_out}
    manifest = Manifest.read(experiment.out / "split.csv")
    expected = [
        record.path
        for record in manifest.subset("train").records
        if str(manifest.resolve(record)) not in left_out
    ]
    assert sorted(record.path for record in predicted) == sorted(expected)


def test_the_teacher_predicts_no_image_of_lungs_only(monkeypatch):
    recipe = RECIPE.model_copy(update={"lungs_only": {"masked": "inverted"}})
    records = [
        Record(f"{n}.png", "normal", f"p{n}", split="train", source=source)
        for n, source in enumerate(("whole", "masked", "whole"))
    ]
    packed = Packed(np.zeros((3, 1, 8, 8), np.uint8), np.eye(3, dtype=np.bool_), tuple(records))

    def predicted(_, images, classes, **__):
        return np.full((len(images), len(classes)), 1 / len(classes), np.float32)

    monkeypatch.setattr(experiment_module, "teacher_probabilities", predicted)
    manifest = Manifest(tuple(records), Path())
    rows = experiment_module._teacher_rows((None,), recipe, manifest, packed, None, Progress())
    assert rows.any(axis=1).tolist() == [True, False, True]


def test_the_student_is_trained_with_what_the_teacher_predicts(given):
    _, _, predicted, seen = given
    assert seen["teacher"].any(axis=1).sum() == len(predicted)


def test_a_teacher_may_be_given(given, tmp_path):
    experiment, result, _, _ = given
    (teacher,) = experiment.teachers
    assert not (experiment.out / "teacher").exists()
    assert result.bundle.manifest.provenance.teachers == (load_bundle(teacher).identity,)
    other = changed_recipe(experiment.recipe, seed=5)
    with pytest.raises(RecipeError, match="same split"):
        run_experiment(dataclasses.replace(experiment, recipe=other, out=tmp_path / "other"))


def test_weights_are_of_the_student_and_not_of_its_teacher(taught, monkeypatch, tmp_path):
    _, experiment, _ = taught
    run, teachers = run_experiment, []

    class Begun(Exception):
        pass

    def begin(teacher, *_arguments):
        teachers.append(teacher)
        raise Begun

    monkeypatch.setattr(experiment_module, "run_experiment", begin)
    weights = experiment.out / "model.safetensors"
    with pytest.raises(Begun):
        run(dataclasses.replace(experiment, out=tmp_path / "run", weights=weights))
    assert [teacher.weights for teacher in teachers] == [None]


def test_no_layer_of_a_teacher_that_starts_from_scratch_is_frozen(monkeypatch, tmp_path):
    phase = Phase(epochs=2, lr=1e-5, scratch_lr=0.01, frozen="backbone")
    teacher = RECIPE.model_copy(update={"name": "teacher", "phases": (phase,)})
    (tmp_path / "teacher.yaml").write_text(teacher.to_yaml(), encoding="utf-8")
    distillation = Distillation(teacher=str(tmp_path / "teacher.yaml"))
    student = RECIPE.model_copy(update={"distillation": distillation})
    trained = []
    monkeypatch.setattr(experiment_module, "run_experiment", lambda one, _: trained.append(one.recipe))
    experiment = Experiment(student, tmp_path, tmp_path / "run", teacher_epochs=1)
    experiment_module._teachers(experiment, Manifest((), tmp_path), make_fabric("cpu"), Steps())
    assert [one.phases for one in trained] == [(Phase(epochs=1, lr=0.01),)]


def test_additional_images_are_trained_on_and_never_evaluated(taught):
    result, experiment, _ = taught
    assert "more" not in result.evaluation.scored.sources
    written = Manifest.read(experiment.out / "split.csv")
    assert not any("more" in record.path for record in written.records)
    manifest = load(experiment.data)
    added_set = additional_images(experiment.additional, written)
    images = with_additional(manifest, added_set)
    added = images.records[len(manifest) :]
    assert len(added) == 8  # the one of split val is left out
    assert all(record.split == "train" and record.patient_id.startswith("more/") for record in added)
    assert all(images.resolve(record).is_file() for record in added)
    own, more = result.bundle.manifest.provenance.data
    assert (own.additional, more.additional) == (False, True)
    assert more.fingerprint == added_set.fingerprint()
    assert 0 < more.images <= 8
    name = more.description.name
    assert name
    assert name in result.bundle.card
