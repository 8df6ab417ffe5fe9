"""A student of teachers that were each trained without a part of the training patients."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.errors import RecipeError
from pneumoscope.experiment import Experiment, divide, run_experiment
from pneumoscope.experiment import cross_fitted as cross_fitted_module
from pneumoscope.experiment import run as run_module
from pneumoscope.experiment.cross_fitted import _parts, _with_network, mean_of_teachers
from pneumoscope.parallel import Progress
from pneumoscope.training import cross_fit as cross_fit_module
from pneumoscope.training.dataset import Packed
from pneumoscope.training.recipe import Distillation, Phase
from tiny_runs import Steps, rejected, small

CROSS_FITTED = {"networks": ["custom-cnn"], "folds": 2, "epochs": 1}


def student(**changes):
    return small(distillation=Distillation.model_validate({"cross_fitted": CROSS_FITTED | changes}))


def softmax(logits):
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def taught(data, tmp_path_factory):
    """A run, and what its network was trained on."""
    seen = {}

    def watch(*arguments, **options):
        seen["teacher"], seen["train"] = options["teacher"], arguments[2]
        return fit(*arguments, **options)

    fit, progress = run_module.fit, Steps()
    experiment = Experiment(student(), data, tmp_path_factory.mktemp("cross-fitted") / "run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run_module, "fit", watch)
        result = run_experiment(experiment, progress)
    return experiment, result, seen, progress


def test_each_image_is_predicted_by_the_teacher_that_was_trained_without_it(taught):
    experiment, _, seen, progress = taught
    parts = sorted((experiment.out / "cross-fitted" / "custom-cnn").glob("part-*"))
    held_out = [np.load(part / "held-out.npz") for part in parts]
    positions = np.concatenate([one["held_out"] for one in held_out])
    assert sorted(positions.tolist()) == list(range(len(seen["train"])))
    for one in held_out:
        np.testing.assert_allclose(seen["teacher"][one["held_out"]], softmax(one["logits"]), atol=1e-6)
    patients = [{seen["train"].records[row].patient_id for row in one["held_out"]} for one in held_out]
    assert not patients[0] & patients[1]
    assert "training without fold 1 of 2 (teacher custom-cnn)" in progress.steps


def test_a_patient_of_both_data_sets_is_in_one_fold(monkeypatch):
    monkeypatch.setattr(cross_fitted_module, "inspect", lambda *_, **__: SimpleNamespace(groups=[]))
    own = [Record(f"{n}.png", ("normal", "viral")[n % 2], f"{n // 2}", source="a") for n in range(40)]
    more = [
        dataclasses.replace(one, path=f"/more/{one.path}", patient_id=f"a/{one.patient_id}") for one in own
    ]
    records = tuple(own + more)
    possible = np.array([[one.label == "normal", one.label == "viral"] for one in records])
    packed = Packed(np.zeros((80, 1, 8, 8), np.uint8), possible, records)
    recipe = student().resolved(["normal", "viral"])
    origin = SimpleNamespace(added=object(), experiment=SimpleNamespace(recipe=recipe))
    prepared = SimpleNamespace(images=Manifest((), Path()), train_set=packed, origin=origin)
    for part in _parts(prepared, 4, Progress()).values():
        assert {n + 40 for n in part if n < 40} == {n for n in part if n >= 40}


def test_the_teachers_are_recorded(taught):
    _, result, _, _ = taught
    assert result.bundle.manifest.provenance.teachers == ("custom-cnn, cross-fitted in 2 folds",)


def test_a_resumed_run_trains_no_teacher_again(taught, monkeypatch):
    experiment, _, _, _ = taught

    def fail(*_arguments, **_options):
        raise AssertionError("a teacher is trained again")

    monkeypatch.setattr(cross_fit_module, "fit", fail)
    run_experiment(dataclasses.replace(experiment, resume=True))


def test_a_network_that_cannot_be_built_stops_before_the_first_is_trained(data, tmp_path):
    recipe = student(networks=["custom-cnn", "no_such_network"])
    message = rejected(Experiment(recipe, data, tmp_path / "run"), RecipeError)
    assert "timm has no 'no_such_network'" in message
    assert not (tmp_path / "run" / "cross-fitted").exists()


def test_a_fold_of_one_kind_of_image_stops_before_the_first_teacher(data, tmp_path):
    manifest = divide(load(data), student().split)
    normals = [one.path for one in manifest.subset("train").records if one.label == "normal"]
    kept = [one for one in manifest.records if one.path not in normals[1:]]
    manifest.with_records(kept).write(tmp_path / "split.csv")
    message = rejected(Experiment(student(), tmp_path / "split.csv", tmp_path / "run"))
    assert "has images with the target only, or without it only; use fewer folds" in message


def test_another_network_than_that_of_the_weights_starts_from_scratch():
    phase = Phase(epochs=1, lr=1e-5, scratch_lr=0.01, frozen="backbone")
    recipe = student().model_copy(update={"phases": (phase,)})
    assert _with_network(recipe, "custom-cnn") == recipe
    assert _with_network(recipe, "resnet18").phases == (Phase(epochs=1, lr=0.01),)
    pretrained = recipe.network.model_copy(update={"pretrained": True})
    assert _with_network(recipe.model_copy(update={"network": pretrained}), "resnet18").phases == (phase,)


def test_the_mean_is_of_those_that_predict_an_image():
    first = np.array([[0.2, 0.8], [0, 0], [0, 0]], np.float32)
    second = np.array([[0.6, 0.4], [0.9, 0.1], [0, 0]], np.float32)
    expected = [[0.4, 0.6], [0.9, 0.1], [0, 0]]
    np.testing.assert_allclose(mean_of_teachers(first, second), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "teacher: name a recipe, or give cross_fitted"),
        ({"sources": ["a"], "cross_fitted": CROSS_FITTED}, "sources: are those of a teacher"),
        ({"cross_fitted": CROSS_FITTED | {"networks": ["a", "a"]}}, "networks: each must be listed once"),
    ],
)
def test_a_section_that_makes_no_sense_is_named(section, message):
    with pytest.raises(ValueError, match=message):
        Distillation.model_validate(section)
