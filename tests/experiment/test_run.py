"""One experiment from end to end: what a run writes, and what its bundle holds."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import importlib.util
import json

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pneumoscope.data.folder import scan
from pneumoscope.data.manifest import Manifest
from pneumoscope.domain import DatasetDescription, Population
from pneumoscope.errors import BundleError, DataError
from pneumoscope.experiment import Experiment, bundling, divide, run_experiment, train
from pneumoscope.model.bundle import load_bundle
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.predict import pipeline as pipeline_module
from pneumoscope.predict.predictor import Predictor
from pneumoscope.training.networks import build_network, load_weights
from pneumoscope.training.recipe import SplitSpec, load_recipe
from tiny_runs import RECIPE, Steps, small


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
    exported = []
    monkeypatch.setattr("pneumoscope.training.keras_export.check_keras", lambda *_, **__: None)
    monkeypatch.setattr(
        "pneumoscope.training.keras_export.export_keras", lambda _, path, **__: exported.append(path)
    )
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: find("json" if name == "keras" else name))
    progress = Steps()
    experiment = Experiment(small(), data, tmp_path / "run", keras=True, not_chest=data)
    run_experiment(experiment, progress)
    assert written == ["draft", "calibrated", "evaluated"]
    assert exported == [tmp_path / "run" / "model.h5"]
    assert any(f"{data}: the gate is not fitted on these images" in line for line in progress.lines)


def test_images_of_other_kinds_must_be_in_a_folder(data, tmp_path):
    experiment = Experiment(small(), data, tmp_path / "run", not_chest=tmp_path / "none")
    with pytest.raises(DataError, match="no folder of images; correct --not-chest"):
        run_experiment(experiment)


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


def test_kept_weights_are_plain_safetensors(run):
    _, out, _, _ = run
    assert all(
        key.startswith(("backbone.", "head.", "mean", "std")) for key in load_file(out / "model.safetensors")
    )
    assert yaml.safe_load((out / "recipe.yaml").read_text())["name"] == "tiny"
