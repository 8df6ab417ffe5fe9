from __future__ import annotations

import csv
import dataclasses
import json
import shutil
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
    _check_lungs_only,
    _check_thresholds,
    _HeldOut,
    _parts,
    cross_validate,
)
from pneumoscope.parallel import Progress
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
    """48 phantoms; the normals are from two series of other children."""
    folder = tmp_path_factory.mktemp("data")
    manifest = write_phantoms(folder / "phantoms", n=48, size=64, seed=3)

    def with_series(record: Record) -> Record:
        series = ("a" if record.patient_id <= "IM-0005" else "b") if record.label == "normal" else "ill"
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
    assert part["images"] == 9
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
        cross_validate(Experiment(RECIPE, data, tmp_path), count=3, sources=("a",))
    for change in ({"count": 3, "sources": ("b",)}, {"count": 4}):
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
    truth = np.array([True, False, True, False])
    _check_thresholds("data.csv", truth, {"a": np.array([2, 3])})
    with pytest.raises(DataError, match="a: the images held out with it, for its threshold"):
        _check_thresholds("data.csv", truth, {"a": np.array([2])})


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_patient_of_a_left_out_source_known_only_by_a_copy_is_held_out_whole(data, tmp_path, seed):
    """Another source has a copy of an image, and one more of the same child under its own identifier."""
    manifest = Manifest.read(data)
    of_source = next(record for record in manifest.records if record.source == "a")
    shutil.copy(manifest.resolve(of_source), tmp_path / "copy.jpeg")
    other = write_phantoms(tmp_path / "other", n=3, size=64, seed=9)
    paths = [tmp_path / "copy.jpeg", other.resolve(other.records[0])]
    both = [Record(str(path), of_source.label, "7", source="c") for path in paths]
    own = [dataclasses.replace(record, path=str(manifest.resolve(record))) for record in manifest.records]
    joined = manifest.with_records([*own, *both])
    parts, others = _parts(joined, 3, ("a",), seed, Progress())
    related = {len(own), len(own) + 1}
    assert related <= set(parts["a"].tolist())
    assert not related & set(others["a"].tolist())
    assert set(others["a"].tolist()) < set(parts["a"].tolist())


def held_out(labels, sources, parts, **changes):
    """Images by random logits; the classes that a label leaves open are 1."""
    names = {(1, 0, 0): "normal", (0, 1, 0): "bacterial", (0, 0, 1): "viral", (0, 1, 1): "pneumonia"}
    records = tuple(
        Record(f"{n}.png", names[one], f"p{n}", source=source)
        for n, (one, source) in enumerate(zip(labels, sources, strict=True))
    )
    packed = Packed(np.zeros((len(records), 1, 8, 8), np.uint8), np.array(labels, np.bool_), records)
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(len(part), 3)) for part in parts.values()]
    recipe = RECIPE.resolved(["normal", "bacterial", "viral"]).model_copy(update=changes)
    return _HeldOut(packed, recipe, parts, logits)


def test_images_of_lungs_only_are_not_evaluated():
    labels, masked = [(1, 0, 0), (0, 1, 0), (0, 0, 1)] * 8, np.arange(24) % 4 == 3
    sources = np.where(masked, "masked", "whole").tolist()
    parts = {"one": np.arange(12), "two": np.arange(12, 24)}
    found = held_out(labels, sources, parts, lungs_only={"masked": "positive"}).by_fold()
    assert found.metrics.images == 18
    assert set(found.metrics.by_source) <= {"whole"}
    assert [part["images"] for part in found.parts.values()] == [9, 9]
    alone = held_out(labels, sources, {"masked": np.arange(24)}, lungs_only={"masked": "positive"})
    left_out = alone.by_source({"masked": np.flatnonzero(~masked)}).parts["masked"]
    assert (left_out["images"], left_out["others"]["images"]) == (6, 18), "unless it is left out itself"


def test_a_left_out_source_of_lungs_only_has_both_kinds():
    records = [Record(f"{n}.png", "normal", f"p{n}", source="masked") for n in range(3)]
    with pytest.raises(
        DataError, match="masked: its images, of lungs only, have the target only, or lack it"
    ):
        _check_lungs_only(Manifest(tuple(records), Path()), "masked", np.zeros(3, np.bool_))


def test_the_calibrator_is_the_recipes():
    labels = [(1, 0, 0), (0, 1, 0), (0, 0, 1)] * 8
    images = held_out(labels, ["a"] * 24, {"one": np.arange(24)}, calibration="vector")
    calibrator, _ = images._fitted(np.arange(24), images.logits[0])
    assert calibrator.method == "vector"


def test_related_images_of_another_source_do_not_choose_the_threshold():
    labels = [(1, 0, 0), (0, 1, 0), (0, 0, 1)] * 6
    images = held_out(labels, ["a"] * 6 + ["c"] * 12, {"a": np.arange(18)})
    found = images.by_source({"a": np.arange(9, 18)}).parts["a"]
    assert (found["images"], found["others"]["images"]) == (6, 9)


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ((0, 0, 1), {"normal": 8, "bacterial": 8, "viral": 8}),
        # As `evaluate` counts them.
        ((0, 1, 1), {"normal": 8, "pneumonia": 16}),
    ],
)
def test_a_label_that_names_only_the_target_counts_as_no_subtype(last, expected):
    labels = [(1, 0, 0), (0, 1, 0), last] * 8
    images = held_out(labels, ["a"] * 24, {"one": np.arange(12), "two": np.arange(12, 24)})
    found = images.by_fold()
    assert found.metrics.images_by_class == expected
    assert 0 <= found.metrics.detection.auroc.value <= 1


def test_a_name_that_is_no_text_does_not_end_the_work(tmp_path):
    records = tuple(Record(f"{n}\udcff.png", "normal", f"p{n}") for n in range(2))
    packed = Packed(np.zeros((2, 1, 8, 8), np.uint8), np.eye(2, 3, dtype=np.bool_), records)
    recipe = RECIPE.resolved(["normal", "bacterial", "viral"])
    _HeldOut(packed, recipe, {"all": np.arange(2)}, [np.zeros((2, 3))]).write(tmp_path / SCORES_FILE)
    assert "0\\udcff.png,normal" in (tmp_path / SCORES_FILE).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["inputs.json", "search.json"])
def test_the_folder_of_a_run_or_a_search_is_left_alone(data, tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match="holds a run or a search; use another --out"):
        cross_validate(Experiment(RECIPE, data, tmp_path), count=3)
    assert [one.name for one in tmp_path.iterdir()] == [name]
