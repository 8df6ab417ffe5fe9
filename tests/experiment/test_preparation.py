"""What is checked and written before any epoch: options, data, split."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import importlib.util
import json
import shutil
from pathlib import Path
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest

from pneumoscope.data.folder import load
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.errors import DataError, MissingExtraError, PneumoscopeError, RecipeError
from pneumoscope.experiment import Experiment, changed_recipe, divide, prepare_manifest
from pneumoscope.experiment.images import additional_images, with_additional
from pneumoscope.experiment.run_folder import Origin, write_inputs, write_left_out
from pneumoscope.training.dataset import LeftOut
from pneumoscope.training.recipe import NetworkSpec, SplitSpec
from tiny_runs import RECIPE, rejected, small


def test_a_folder_that_holds_a_run_is_not_written_over(run, data):
    _, out, _, _ = run
    before = (out / "recipe.yaml").read_bytes()
    assert "holds a run already; use --resume" in rejected(Experiment(RECIPE, data, out))
    assert (out / "recipe.yaml").read_bytes() == before


def test_a_cross_validation_is_not_trained_into(data, tmp_path):
    (tmp_path / "images.sha256").write_text("0")
    for resume in (False, True):
        message = rejected(Experiment(small(), data, tmp_path, resume=resume))
        assert message == f"{tmp_path}: holds a cross-validation; use another --out"


def test_resuming_with_another_limit_is_rejected(run, lungs):
    _, out, broken, _ = run
    data = next(folder for folder in broken[0].parents if (folder / "split.csv").exists()) / "split.csv"
    message = rejected(Experiment(RECIPE, data, out, lungs=lungs, limit=9, resume=True))
    assert "started with another --limit" in message


@pytest.mark.parametrize("content", [b'{"lungs": ', b"[]", b"\xff"])
def test_damaged_inputs_are_one_line(run, lungs, tmp_path, content):
    _, out, broken, _ = run
    data = next(folder for folder in broken[0].parents if (folder / "split.csv").exists()) / "split.csv"
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    (copy / "inputs.json").write_bytes(content)
    message = rejected(Experiment(RECIPE, data, copy, lungs=lungs, resume=True))
    assert message == f"{copy / 'inputs.json'}: damaged; delete the folder, or use another --out"


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
    assert message.startswith(f"{path}: has changed since {tmp_path} was begun")


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


def test_a_network_that_keras_has_no_layers_for_is_reported_before_the_training(data, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: name == "keras" or found(name, *rest))
    # Keras itself is not needed: the network is rejected by the name of its operation.
    monkeypatch.setattr("pneumoscope.training.keras_export._import_keras", MagicMock)
    network = NetworkSpec.model_validate(
        {"name": "mobilenetv3_small_050", "channels": 1, "pretrained": False}
    )
    experiment = Experiment(small(network=network), data, tmp_path / "out", keras=True)
    assert "aten.hardswish" in rejected(experiment, PneumoscopeError)
    assert not (tmp_path / "out").exists()


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


def test_a_held_out_patient_known_only_by_a_copy_is_left_out_whole(data, tmp_path):
    """The second hospital has a test image, and another of the same child under an identifier of its own."""
    manifest = divide(load(data), RECIPE.split)
    held_out = cv2.imread(str(manifest.resolve(manifest.subset("test").records[0])), cv2.IMREAD_GRAYSCALE)
    more = write_phantoms(tmp_path / "more", n=3, size=64, seed=9)
    cv2.imwrite(str(tmp_path / "more" / "copy.bmp"), held_out)
    first, second, third = more.records
    more = more.with_records(
        dataclasses.replace(record, patient_id=patient, split="", sha256="", source="b")
        for record, patient in (
            (dataclasses.replace(first, path="copy.bmp"), "7"),
            (second, "7"),
            (third, "8"),
        )
    )
    more.write(tmp_path / "more" / "more.csv")
    added = additional_images(tmp_path / "more" / "more.csv", manifest)
    assert [record.path for record in added.records] == [third.path]


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
