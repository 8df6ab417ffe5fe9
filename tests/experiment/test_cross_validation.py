from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.errors import DataError, RecipeError
from pneumoscope.experiment import Experiment
from pneumoscope.experiment.cross_validation import (
    METRICS_FILE,
    SCORES_FILE,
    _check_thresholds,
    _HeldOut,
    cross_validate,
)
from pneumoscope.training.dataset import Packed
from pneumoscope.training.recipe import Recipe

RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "description": "For tests.",
        "input": {"size": 32},
        "network": {"name": "custom-cnn", "channels": 1, "options": {"widths": [8, 8]}},
        "phases": [{"epochs": 2, "lr": 0.01}],
        "batch": 8,
    }
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """48 phantoms; the normals are from two series."""
    folder = tmp_path_factory.mktemp("data")
    manifest = write_phantoms(folder / "phantoms", n=48, size=64, seed=3)
    normals = iter(range(48))

    def with_series(record: Record) -> Record:
        series = ("a", "b")[next(normals) % 2] if record.label == "normal" else "ill"
        return dataclasses.replace(record, split="", source=series)

    manifest = manifest.with_records(tuple(with_series(record) for record in manifest.records))
    manifest.write(folder / "phantoms.csv")
    return folder / "phantoms.csv"


@pytest.fixture(scope="module")
def result(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("cv") / "out"
    return cross_validate(Experiment(RECIPE, data, out), count=3), out


def test_every_image_is_evaluated_once_by_a_network_that_never_saw_its_patient(result):
    _, out = result
    with (out / SCORES_FILE).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["path"] for row in rows}) == len(rows) == 48
    folds_of = {}
    for row in rows:
        folds_of.setdefault(row["patient_id"], set()).add(row["part"])
    assert all(len(found) == 1 for found in folds_of.values())
    for number in (1, 2, 3):
        with np.load(out / f"part-{number}" / "held-out.npz") as saved:
            assert len(saved["held_out"]) == sum(row["part"] == f"fold {number} of 3" for row in rows)


def test_metrics_are_written_and_returned(result):
    found, out = result
    written = json.loads((out / METRICS_FILE).read_text(encoding="utf-8"))
    assert written["metrics"]["images"] == 48
    assert list(written["parts"]) == ["fold 1 of 3", "fold 2 of 3", "fold 3 of 3"]
    assert sum(part["images"] for part in found.parts.values()) == 48
    assert 0 <= found.metrics.detection.auroc.value <= 1
    assert set(found.decided) == {"accuracy", "sensitivity", "specificity"}
    assert written["at_thresholds_of_the_other_folds"] == found.decided


def test_a_finished_part_is_not_trained_again(result, data, monkeypatch):
    found, out = result
    monkeypatch.setattr("pneumoscope.training.cross_fit.fit", lambda *_, **__: pytest.fail("trained again"))
    assert cross_validate(Experiment(RECIPE, data, out), count=3).parts == found.parts


def test_another_recipe_does_not_go_on_in_the_same_folder(result, data):
    _, out = result
    other = RECIPE.model_copy(update={"seed": 1})
    with pytest.raises(DataError, match="another recipe"):
        cross_validate(Experiment(other, data, out), count=3)


def test_a_source_is_left_out_of_training(data, tmp_path):
    found = cross_validate(Experiment(RECIPE, data, tmp_path), count=3, sources=("b",))
    part = found.parts["b"]
    assert part["images"] == 8
    assert part["sensitivity"] is None
    assert 0 <= part["specificity"] <= 1
    assert 0 <= part["auroc"] <= 1
    with np.load(tmp_path / "part-1" / "held-out.npz") as saved:
        held_out = set(saved["held_out"].tolist())
    with data.open(encoding="utf-8") as file:
        sources = [row["source"] for row in csv.DictReader(file)]
    assert {index for index, source in enumerate(sources) if source == "b"} <= held_out


def test_an_interrupted_part_goes_on_with_its_own_images_only(data, tmp_path, monkeypatch):
    class Interrupted(Exception):
        pass

    def begin(*_arguments, **_options):
        raise Interrupted

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr("pneumoscope.training.cross_fit.fit", begin)
        cross_validate(Experiment(RECIPE, data, tmp_path), sources=("a",))
    for change in ({"sources": ("b",)}, {"count": 3}):
        with pytest.raises(DataError, match="started with other folds, sources"):
            cross_validate(Experiment(RECIPE, data, tmp_path), **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 24}, r"fold \d+ of 24: has images with the target only"),
        ({"sources": ("ill",)}, "all but ill: has images with the target only, or without it only"),
    ],
)
def test_parts_that_cannot_be_evaluated_or_trained_on_are_one_line(data, tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        cross_validate(Experiment(RECIPE, data, tmp_path), **change)


def test_an_input_that_is_too_small_is_found_before_images_are_read(data, tmp_path):
    deep = RECIPE.network.model_copy(update={"options": {"widths": (4,) * 7}})
    with pytest.raises(RecipeError, match="32 pixels are too few"):
        cross_validate(Experiment(RECIPE.model_copy(update={"network": deep}), data, tmp_path))


def test_an_unknown_source_is_named(data, tmp_path):
    with pytest.raises(DataError, match=r"no image is from nowhere; there are a, b, ill"):
        cross_validate(Experiment(RECIPE, data, tmp_path), sources=("nowhere",))


def test_images_for_the_threshold_of_a_source_are_of_both_kinds():
    sources, truth = ("a", "a", "b", "c"), np.array([True, False, True, False])
    records = tuple(Record(f"{n}.png", "normal", f"p{n}", source=one) for n, one in enumerate(sources))
    manifest = Manifest(records, Path())
    _check_thresholds(manifest, truth, {"a": np.arange(4)})
    with pytest.raises(DataError, match="a: the images held out with it, for its threshold"):
        _check_thresholds(manifest, truth, {"a": np.arange(3)})


def test_a_name_that_is_no_text_does_not_end_the_work(tmp_path):
    records = tuple(Record(f"{n}\udcff.png", "normal", f"p{n}") for n in range(2))
    packed = Packed(np.zeros((2, 1, 8, 8), np.uint8), np.eye(2, 3, dtype=np.bool_), records)
    recipe = RECIPE.resolved(["normal", "bacterial", "viral"])
    _HeldOut(packed, recipe, {"all": np.arange(2)}, [np.zeros((2, 3))]).write(tmp_path / SCORES_FILE)
    assert "0\\udcff.png,normal" in (tmp_path / SCORES_FILE).read_text(encoding="utf-8")
