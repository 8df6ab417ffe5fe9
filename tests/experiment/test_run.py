from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from bundles import lungs_onnx
from pneumoscope.data.description import write_description
from pneumoscope.data.folder import load, scan
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.domain import DatasetDescription, Population
from pneumoscope.errors import BundleError, DataError, MissingExtraError, RecipeError
from pneumoscope.experiment import (
    Experiment,
    bundling,
    changed_recipe,
    divide,
    prepare_manifest,
    run_experiment,
    train,
)
from pneumoscope.experiment import run as experiment_module
from pneumoscope.experiment.images import additional_images, with_additional
from pneumoscope.experiment.run_folder import Origin, write_inputs, write_left_out
from pneumoscope.model.bundle import load_bundle
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.parallel import Progress
from pneumoscope.predict import pipeline as pipeline_module
from pneumoscope.predict.predictor import Predictor
from pneumoscope.training.dataset import LeftOut
from pneumoscope.training.distil import teacher_probabilities
from pneumoscope.training.networks import build_network, load_weights
from pneumoscope.training.recipe import Distillation, Recipe, SplitSpec, Tasks, load_recipe

RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "description": "For tests.",
        "classes": ["normal", "bacterial", "viral"],
        "target": {"name": "pneumonia", "classes": ["bacterial", "viral"]},
        "input": {"size": 32, "lungs": "crop", "window": "lungs"},
        "network": {"name": "custom-cnn", "channels": 1, "options": {"widths": [8, 8]}},
        "phases": [{"epochs": 2, "lr": 0.01}],
        "batch": 8,
        "split": {"fractions": [0.6, 0.2, 0.2]},
    }
)


class Steps(Progress):
    """Keeps the steps, and the epochs of the training steps with their number in all."""

    def __init__(self):
        self.steps, self.epochs = [], []

    def step(self, name):
        self.steps.append(name)

    def message(self, line):
        if self.steps[-1] == "training":
            done, total = line.split()[1].split("/")
            self.epochs.append((int(done), int(total)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, n=60, size=64, seed=3)
    return folder


@pytest.fixture(scope="module")
def lungs(tmp_path_factory):
    path = tmp_path_factory.mktemp("lungs") / "lungs.onnx"
    path.write_bytes(lungs_onnx())
    return path


@pytest.fixture(scope="module")
def run(data, lungs, tmp_path_factory):
    """One whole run, with two images broken: one to train on and one to evaluate."""
    folder = tmp_path_factory.mktemp("broken") / "phantoms"
    manifest = divide(write_phantoms(folder, n=60, size=64, seed=3), RECIPE.split)
    manifest.write(folder / "split.csv")
    broken = [manifest.resolve(manifest.subset(side).records[0]) for side in ("train", "test")]
    for path in broken:
        path.write_bytes(b"no image")
    out = tmp_path_factory.mktemp("run") / "run"
    write_description(folder, DatasetDescription(name="drawn chests", licence="CC0"))
    progress = Steps()
    result = run_experiment(Experiment(RECIPE, folder / "split.csv", out, lungs=lungs), progress)
    return result, out, broken, progress


def small(**changes):
    """The recipe without lungs, for what needs no whole run."""
    return RECIPE.model_copy(update={"input": RECIPE.input.model_validate({"size": 32})} | changes)


def test_the_run_folder_holds_all_that_the_run_was(run):
    _, out, _, _ = run
    assert {path.name for path in out.iterdir()} >= {
        "bundle", "confusion_matrix.png", "environment.json", "history.csv", "last.ckpt", "metrics.json",
        "left-out.csv", "model.safetensors", "plot.jpg", "recipe.yaml", "report.html", "split.csv",
        "tensorboard",
    }  # fmt: skip
    assert {path.name for path in (out / "bundle").iterdir()} == {
        "bundle.json", "card.md", "head.npz", "lungs.onnx", "model.onnx",
    }  # fmt: skip
    for image in ("plot.jpg", "confusion_matrix.png"):
        assert min(cv2.imread(str(out / image)).shape[:2]) > 100


def test_what_another_person_needs_to_run_it_again_is_written(run, lungs):
    _, out, _, _ = run
    assert load_recipe(str(out / "recipe.yaml")) == RECIPE
    environment = json.loads((out / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert environment["command"]
    manifest = Manifest.read(out / "split.csv")
    assert len(manifest) == 60
    assert {record.split for record in manifest.records} == {"train", "val", "test"}


def test_progress_is_reported(run):
    _, _, _, progress = run
    steps = progress.steps
    read = ["building the network", "reading training images", "reading validation images"]
    assert steps[:3] == read
    assert steps.index("training") < steps.index("exporting") < steps.index("evaluating on test patients")
    assert progress.epochs == [(1, 2), (2, 2)]


def test_unreadable_images_are_listed_and_left_out_of_every_split(run):
    result, out, broken, _ = run
    with (out / "left-out.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    unreadable = [row for row in rows if row["status"] == "unreadable"]
    assert [row["path"] for row in unreadable] == [str(path) for path in broken]
    assert {row["reason"] for row in unreadable} == {"not_an_image"}
    assert all(row["detail"] for row in rows)
    assert [one.path for one in result.left_out] == [row["path"] for row in rows]
    assert str(broken[1]) in [one.path for one in result.evaluation.not_evaluated]


def test_the_bundle_holds_the_weights_that_were_trained(run):
    _, out, _, _ = run
    network = load_weights(build_network(RECIPE.network, 3), out / "model.safetensors").eval()
    bundle = load_bundle(out)
    images = np.random.default_rng(0).random((2, 1, 32, 32), dtype=np.float32)
    (logits,) = OnnxRuntime(bundle.model_path)(images, ("logits",))
    with torch.inference_mode():
        np.testing.assert_allclose(network(torch.from_numpy(images))[0].numpy(), logits, atol=1e-3)


def test_the_bundle_is_calibrated_evaluated_and_signed(run):
    result, out, _, _ = run
    manifest = load_bundle(out).manifest
    assert manifest == result.bundle.manifest
    assert manifest.state == "evaluated"
    assert (manifest.classes, manifest.target) == (RECIPE.classes, RECIPE.target)
    calibration = manifest.calibrations[0]
    assert calibration.calibrator.method == "temperature"
    assert calibration.calibrator.fitted_on == "drawn chests, val split (as given by the data)"
    assert {point.name for point in calibration.operating_points} >= {"screening", "balanced", "rule-in"}
    metrics = json.loads((out / "metrics.json").read_text())
    evaluation = manifest.results.evaluation
    assert evaluation.evaluated_on == "drawn chests, test split (as given by the data)"
    assert evaluation == result.evaluation.metrics
    assert evaluation.images == metrics["images"]
    assert evaluation.detection.auroc.value == metrics["detection"]["auroc"]["value"]
    not_evaluated = len(result.evaluation.not_evaluated)
    assert metrics["images"] == len(Manifest.read(out / "split.csv").subset("test")) - not_evaluated


def test_provenance_holds_data_split_and_normalisation(run):
    _, out, _, _ = run
    provenance = load_bundle(out).manifest.provenance
    written = Manifest.read(out / "split.csv")
    (data,) = provenance.data
    assert data.description == DatasetDescription(name="drawn chests", licence="CC0")
    assert data.fingerprint == written.fingerprint()
    with (out / "left-out.csv").open(encoding="utf-8") as file:
        lost = {row["path"] for row in csv.DictReader(file)}
    train_paths = {str(written.resolve(record).resolve()) for record in written.subset("train").records}
    assert data.images == len(train_paths - lost)
    assert (provenance.split_method, provenance.split_seed) == ("given", None)
    assert provenance.split_fingerprint == written.split_fingerprint()
    assert provenance.recipe_sha256 == RECIPE.sha256
    assert (provenance.mean, provenance.std) == (pytest.approx((0.48,)), pytest.approx((0.24,)))
    assert provenance.pretrained == ""


def test_each_state_of_the_bundle_is_written_once(data, tmp_path, monkeypatch):
    written = []
    for module in ("pneumoscope.training.export", "pneumoscope.evaluation.steps"):
        original = importlib.import_module(module).write_bundle

        def counting(folder, manifest, files=None, write=original):
            written.append(manifest.state)
            return write(folder, manifest, files)

        monkeypatch.setattr(f"{module}.write_bundle", counting)
    run_experiment(Experiment(small(), data, tmp_path / "run"))
    assert written == ["draft", "calibrated", "evaluated"]


def test_populations_of_the_recipe_get_calibrations_of_their_own(data, tmp_path):
    listed = divide(scan(data), SplitSpec(fractions=(0.4, 0.4, 0.2)))
    of_class = {label: [one for one in listed if one.label == label] for label in listed.labels()}
    adults = {one.path for records in of_class.values() for one in records[::2]}
    aged = [dataclasses.replace(one, age=40.0 if one.path in adults else 4.0) for one in listed]
    listed.with_records(aged).write(tmp_path / "aged.csv")
    recipe = small(populations=(Population("adults", (18, None)), Population("aged", (65, None))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pneumoscope.evaluation.steps.LEAST", 3)
        result = run_experiment(Experiment(recipe, tmp_path / "aged.csv", tmp_path / "run"))
    manifest = result.bundle.manifest
    assert [one.population for one in manifest.calibrations] == ["any", "adults"]
    assert manifest.population_of(40.0, "PA") == "adults"
    assert manifest.population_of(4.0, "PA") == manifest.population_of(None, "PA") == "any"


def test_an_interrupted_run_leaves_a_draft_that_does_not_load(data, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundling, "fit_gate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(Experiment(small(), data, tmp_path / "run"))
    assert load_bundle(tmp_path / "run").manifest.state == "draft"
    with pytest.raises(BundleError, match="draft"):
        Predictor.load(tmp_path / "run")


def test_another_run_on_the_same_images_decodes_no_training_image(data, tmp_path, monkeypatch):
    decoded = []
    original = pipeline_module.read_radiograph

    def counting(source, **options):
        decoded.append(source)
        return original(source, **options)

    monkeypatch.setattr(pipeline_module, "read_radiograph", counting)
    for name in ("first", "second"):
        decoded.clear()
        run_experiment(Experiment(small(seed=3), data, tmp_path / name, cache=tmp_path / "cache"))
    manifest = Manifest.read(tmp_path / "second" / "split.csv")
    train_paths = {str(manifest.resolve(record)) for record in manifest.subset("train").records}
    assert not train_paths & set(decoded)


def test_train_does_what_the_command_does(data, tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(small(classes=None, target=None).to_yaml(), encoding="utf-8")
    result = train(recipe, data, tmp_path / "run", epochs=1, seed=4, target="pneumonia=viral,bacterial")
    manifest = result.bundle.manifest
    assert manifest.classes == ("normal", "viral", "bacterial")
    assert manifest.provenance.split_seed == 4
    written = load_recipe(str(tmp_path / "run" / "recipe.yaml"))
    assert (written.epochs, written.seed, written.classes) == (1, 4, manifest.classes)


# Before any epoch


def rejected(experiment, error=DataError):
    with pytest.raises(error) as caught:
        run_experiment(experiment)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_holds_a_run_is_not_written_over(run, data):
    _, out, _, _ = run
    before = (out / "recipe.yaml").read_bytes()
    assert "holds a run already; use --resume" in rejected(Experiment(RECIPE, data, out))
    assert (out / "recipe.yaml").read_bytes() == before


def test_resuming_by_another_recipe_is_rejected_and_leaves_the_run_alone(run, data):
    _, out, _, _ = run
    before = (out / "recipe.yaml").read_bytes()
    other = RECIPE.model_copy(update={"batch": 4})
    assert "a run of another recipe" in rejected(Experiment(other, data, out, resume=True))
    assert (out / "recipe.yaml").read_bytes() == before


def test_resuming_with_another_segmenter_is_rejected(run, tmp_path):
    _, out, broken, _ = run
    data = next(folder for folder in broken[0].parents if (folder / "split.csv").exists()) / "split.csv"
    (tmp_path / "other.onnx").write_bytes(b"another")
    message = rejected(Experiment(RECIPE, data, out, lungs=tmp_path / "other.onnx", resume=True))
    assert "started with another --lungs" in message


@pytest.mark.parametrize("change", ["other bytes", "gone"])
def test_resuming_on_data_that_changed_is_rejected(data, tmp_path, change):
    manifest = prepare_manifest(load(data), RECIPE, limit=8)
    (tmp_path / "last.ckpt").write_bytes(b"")
    (tmp_path / "recipe.yaml").write_text(RECIPE.to_yaml(), encoding="utf-8")
    first, *others = manifest.records
    path = "elsewhere.jpeg" if change == "gone" else first.path
    changed = dataclasses.replace(first, sha256="0" * 64, path=path)
    manifest.with_records((changed, *others)).write(tmp_path / "split.csv")
    message = rejected(Experiment(RECIPE, data, tmp_path, resume=True))
    assert message.startswith(f"{path}: has changed since the run began")


def test_a_failed_start_leaves_no_folder(data, tmp_path):
    pretrained = small(network=RECIPE.network.model_copy(update={"name": "nonet"}))
    rejected(Experiment(pretrained, data, tmp_path / "out"), RecipeError)
    assert not (tmp_path / "out").exists()


def test_a_run_folder_that_cannot_be_made_is_one_line(data, tmp_path):
    (tmp_path / "file").write_text("")
    assert "the run folder cannot be made" in rejected(Experiment(small(), data, tmp_path / "file" / "out"))


def test_lungs_are_needed_where_the_recipe_uses_them(data, tmp_path):
    absent = tmp_path / "absent.onnx"
    message = rejected(Experiment(RECIPE, data, tmp_path / "out", lungs=absent))
    assert str(absent) in message
    assert "train-lungs" in message


def test_too_small_an_input_is_rejected(data, tmp_path):
    network = RECIPE.network.model_copy(update={"options": {}})
    tiny = small(input=RECIPE.input.model_validate({"size": 16}), network=network)
    assert "16 pixels are too few" in rejected(Experiment(tiny, data, tmp_path / "out"), RecipeError)


def test_missing_keras_is_reported_before_the_training_and_not_after(data, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = rejected(Experiment(small(), data, tmp_path / "out", keras=True), MissingExtraError)
    assert ".[keras]" in message


def test_too_many_unreadable_images_stop_the_run_and_are_listed(tmp_path):
    manifest = write_phantoms(tmp_path / "data", n=60, size=64, seed=3)
    for record in manifest.records[::8]:
        manifest.resolve(record).write_bytes(b"no image")
    message = rejected(Experiment(small(), tmp_path / "data", tmp_path / "out"))
    assert "images are unreadable" in message
    with (tmp_path / "out" / "left-out.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) > 3
    assert not (tmp_path / "out" / "last.ckpt").exists()


# Data


def test_limit_keeps_so_many_of_each_class(data):
    manifest = prepare_manifest(load(data), RECIPE, limit=10)
    assert {label: sum(r.label == label for r in manifest.records) for label in manifest.labels()} == {
        "normal": 10, "bacterial": 10, "viral": 10,
    }  # fmt: skip
    assert manifest == prepare_manifest(load(data), RECIPE, limit=10)


def test_a_split_that_the_data_have_is_kept(data):
    manifest = divide(load(data), SplitSpec(seed=7))
    assert prepare_manifest(manifest, RECIPE) == manifest


def test_a_split_is_not_requested_of_data_that_have_one(data, tmp_path):
    divide(load(data), SplitSpec(seed=7)).write(tmp_path / "split.csv")
    requested = Experiment(small(), tmp_path / "split.csv", tmp_path / "out", divides=True)
    assert "has a split already; leave --split out" in rejected(requested)


def test_images_without_a_side_are_not_lost_in_silence(data):
    first, *others = divide(load(data), SplitSpec(seed=7)).records
    partly = load(data).with_records([dataclasses.replace(first, split=""), *others])
    with pytest.raises(DataError, match="1 of 60 images have no split"):
        prepare_manifest(partly, RECIPE)


def test_a_teacher_of_a_recipe_without_distillation_is_rejected(data, tmp_path):
    experiment = Experiment(small(), data, tmp_path / "out", teachers=(tmp_path,))
    assert "leave --teacher out" in rejected(experiment, RecipeError)


def test_copies_of_held_out_images_are_not_trained_on(data, tmp_path):
    """The second set holds a test image, saved anew, and one of its own."""
    manifest = divide(load(data), RECIPE.split)
    held_out = cv2.imread(str(manifest.resolve(manifest.subset("test").records[0])), cv2.IMREAD_GRAYSCALE)
    (tmp_path / "more" / "normal").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "more" / "normal" / "copy.bmp"), held_out)
    own = write_phantoms(tmp_path / "own", n=3, size=64, seed=9)
    shutil.copy(own.resolve(own.records[0]), tmp_path / "more" / "normal" / "own.png")
    added = additional_images(tmp_path / "more", manifest)
    assert [record.path for record in added.records] == ["normal/own.png"]
    assert len(with_additional(manifest.subset("train"), added)) == len(manifest.subset("train")) + 1
    with pytest.raises(DataError, match="lists validation or test images"):
        additional_images(data, manifest)


def test_other_images_of_a_held_out_patient_are_not_trained_on(data, tmp_path):
    manifest = divide(load(data), RECIPE.split)
    first = {record.patient_id: record for record in manifest.records}
    own = manifest.with_records(first.values())
    again = manifest.with_records(
        dataclasses.replace(record, split="") for record in manifest.records if record not in own.records
    )
    assert again.records, "patients have several images"
    again.write(tmp_path / "again.csv")
    added = additional_images(tmp_path / "again.csv", own)
    held_out = {record.patient_id for record in own.records if record.split != "train"}
    assert held_out & {record.patient_id for record in again.records}
    assert not held_out & {record.patient_id for record in added.records}


def test_by_patient_copies_of_an_image_stay_on_one_side_and_by_random_not(tmp_path):
    """Every image has a copy of a patient of its own, at another compression."""
    rng = np.random.default_rng(0)
    for label in ("normal", "bacterial", "viral"):
        (tmp_path / label).mkdir()
        for number in range(8):
            grey = cv2.resize(
                rng.integers(0, 256, (9, 9), dtype=np.uint8), (96, 96), interpolation=cv2.INTER_CUBIC
            )
            for copy, quality in (("a", 95), ("b", 70)):
                path = tmp_path / label / f"{number}{copy}.jpeg"
                cv2.imwrite(str(path), grey, [cv2.IMWRITE_JPEG_QUALITY, quality])
    manifest = load(tmp_path)
    assert len({record.patient_id for record in manifest.records}) == 48

    def divided_pairs(method):
        sides = {r.path: r.split for r in divide(manifest, SplitSpec(method=method)).records}
        return sum(
            sides[path] != sides[path.replace("a.jpeg", "b.jpeg")] for path in sides if "a.jpeg" in path
        )

    assert divided_pairs("patient") == 0
    assert divided_pairs("random") > 3


def test_options_change_only_their_own_part_of_the_recipe():
    scratch = changed_recipe(RECIPE)
    assert scratch == RECIPE.from_scratch() == RECIPE
    changed = changed_recipe(RECIPE, split="random", seed=5)
    assert changed.split == SplitSpec(method="random", seed=5, fractions=RECIPE.split.fractions)
    assert changed.seed == 5
    assert changed_recipe(RECIPE, split="random").seed == RECIPE.seed
    assert changed_recipe(RECIPE, size=48).input.size == 48
    with pytest.raises(RecipeError, match="exclude each other"):
        changed_recipe(RECIPE, pretrained=False, weights=Path("w.pth"))


def test_kept_weights_are_plain_safetensors(run):
    _, out, _, _ = run
    assert all(
        key.startswith(("backbone.", "head.", "mean", "std")) for key in load_file(out / "model.safetensors")
    )
    assert yaml.safe_load((out / "recipe.yaml").read_text())["name"] == "tiny"


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


def test_the_teacher_predicts_only_images_of_its_own_data(taught, data, lungs, monkeypatch, tmp_path):
    _, experiment, _ = taught
    predicted = []

    def watch(teacher, images, classes, **options):
        predicted.extend(images.records)
        return teacher_probabilities(teacher, images, classes, **options)

    monkeypatch.setattr(experiment_module, "teacher_probabilities", watch)
    given = dataclasses.replace(experiment, out=tmp_path / "run", teachers=(experiment.out / "teacher",))
    run_experiment(given)
    left_out = {one.path for one in run_experiment(dataclasses.replace(given, resume=True)).left_out}
    manifest = Manifest.read(given.out / "split.csv")
    expected = [
        record.path
        for record in manifest.subset("train").records
        if str(manifest.resolve(record)) not in left_out
    ]
    assert sorted(record.path for record in predicted[: len(expected)]) == sorted(expected)


def test_the_teacher_changes_the_weights(taught, data, lungs, tmp_path):
    _, experiment, _ = taught
    alone = experiment.recipe.model_copy(update={"distillation": None})
    run_experiment(Experiment(alone, data, tmp_path / "run", lungs=lungs, additional=experiment.additional))
    taught_weights = load_file(experiment.out / "model.safetensors")
    alone_weights = load_file(tmp_path / "run" / "model.safetensors")
    assert not torch.equal(taught_weights["head.weight"], alone_weights["head.weight"])


def test_a_teacher_may_be_given(taught, data, lungs, tmp_path):
    _, experiment, _ = taught
    given = dataclasses.replace(experiment, out=tmp_path / "run", teachers=(experiment.out / "teacher",))
    result = run_experiment(given)
    assert not (given.out / "teacher").exists()
    assert result.bundle.manifest.provenance.teachers == (load_bundle(experiment.out / "teacher").identity,)
    with pytest.raises(RecipeError, match="same split"):
        run_experiment(
            dataclasses.replace(given, recipe=changed_recipe(given.recipe, seed=5), out=tmp_path / "other")
        )


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


def test_a_process_killed_while_it_writes_leaves_no_half_a_file(data, tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text("before", encoding="utf-8")

    def killed(draft, path):
        raise KeyboardInterrupt

    monkeypatch.setattr("pneumoscope.data.drafts.rename", killed)
    manifest = divide(load(data), RECIPE.split)
    with pytest.raises(KeyboardInterrupt):
        write_inputs(Origin(Experiment(RECIPE, data, tmp_path), manifest, None, brings_split=False), None)
    assert (tmp_path / "recipe.yaml").read_text() == "before"


def test_a_package_in_the_place_of_another_and_a_name_that_is_no_text_stop_nothing(
    data, tmp_path, monkeypatch
):
    def version(name):
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr("importlib.metadata.version", version)
    manifest = divide(load(data), RECIPE.split)
    write_inputs(Origin(Experiment(RECIPE, data, tmp_path), manifest, None, brings_split=False), None)
    packages = json.loads((tmp_path / "environment.json").read_text())["packages"]
    assert (packages["onnxruntime"], packages["torch"]) == (None, "1")
    write_left_out(tmp_path, [LeftOut("a\udcff.png", "unreadable", "corrupt", "damaged")])
    assert "a\\udcff.png,unreadable" in (tmp_path / "left-out.csv").read_text(encoding="utf-8")
