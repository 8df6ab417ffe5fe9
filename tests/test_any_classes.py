"""A data set with classes and a target of its own, from the folder to the page: no code names a disease."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import pytest
import yaml

from pneumoscope import Predictor, Target, load_bundle
from pneumoscope.cli import main
from pneumoscope.data.phantom import draw_phantom

pytest.importorskip("torch", reason="training needs the extra [train]")
pytest.importorskip("fastapi", reason="the page needs the extra [web]")

CLASSES = ("clear", "lobar", "diffuse")
TARGET = Target("infiltrate", ("lobar", "diffuse"))
COLUMNS = ("p_clear", "p_lobar", "p_diffuse", "p_infiltrate")
PATTERNS = {"clear": "normal", "lobar": "bacterial", "diffuse": "viral"}
RECIPE = {
    "name": "tiny",
    "description": "For tests.",
    "input": {"size": 32},
    "network": {"name": "custom-cnn", "channels": 1, "options": {"widths": [8, 8]}},
    "phases": [{"epochs": 3, "lr": 0.01}],
    "batch": 8,
    "split": {"fractions": [0.6, 0.2, 0.2]},
}


def run(*words: object) -> None:
    """Run a command; rejected images (exit code 3) are no failure."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert left.value.code in (None, 0, 3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data, and the run that the command line trained on them."""
    folder = tmp_path_factory.mktemp("any-classes")
    for number, (name, pattern) in enumerate(PATTERNS.items()):
        (folder / "data" / name).mkdir(parents=True)
        for patient in range(20):
            image = draw_phantom(pattern, 100 * number + patient, size=96)
            cv2.imwrite(str(folder / "data" / name / f"{name}-{patient}.png"), image)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    options = ("--target", "infiltrate=lobar,diffuse", "--no-cache")
    run("train", folder / "tiny.yaml", "--data", folder / "data", "--out", folder / "run", *options)
    return folder


def images(place: Path) -> list[Path]:
    return [place / "data" / name / f"{name}-1.png" for name in CLASSES]


def test_the_bundle_has_the_classes_of_the_folder_and_the_target_of_the_option(place: Path) -> None:
    manifest = load_bundle(place / "run").manifest
    assert manifest.state == "evaluated"
    assert (manifest.classes, manifest.target) == (CLASSES, TARGET)
    written = yaml.safe_load((place / "run" / "recipe.yaml").read_text(encoding="utf-8"))
    assert written["target"] == {"name": "infiltrate", "classes": ["lobar", "diffuse"], "code": None}
    card = load_bundle(place / "run").card
    assert "infiltrate" in card
    assert not any(word in card.lower() for word in ("pneumonia", "bacterial", "viral"))


def test_a_recipe_can_state_the_target_in_place_of_the_option(place: Path, tmp_path: Path) -> None:
    recipe = RECIPE | {"target": {"name": "infiltrate", "classes": ["lobar", "diffuse"]}}
    (tmp_path / "stated.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    words = ("--data", place / "data", "--out", tmp_path / "run", "--epochs", 1, "--no-cache")
    run("train", tmp_path / "stated.yaml", *words)
    manifest = load_bundle(tmp_path / "run").manifest
    assert (manifest.classes, manifest.target) == (CLASSES, TARGET)


def test_evaluate_measures_the_target_and_every_class(place: Path, tmp_path: Path) -> None:
    words = ("--bundle", place / "run", "--out", tmp_path / "out", "--resamples", 100)
    run("evaluate", place / "data", *words)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["classes"] == list(CLASSES)
    assert metrics["target"] == {"name": "infiltrate", "classes": ["lobar", "diffuse"]}
    assert list(metrics["subtypes"]) == ["lobar vs diffuse"]
    assert 0 <= metrics["detection"]["auroc"]["value"] <= 1
    assert sum(metrics["images_by_class"].values()) == metrics["images"]
    assert (tmp_path / "out" / "report.html").exists()


def test_predict_writes_a_column_for_every_class_and_for_the_target(place: Path, tmp_path: Path) -> None:
    words = ("--bundle", place / "run", "--out", tmp_path / "rows.csv", "--heatmaps", tmp_path / "maps")
    run("predict", *images(place), *words, "--report", tmp_path / "page.html", "--force")
    with (tmp_path / "rows.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [name for name in rows[0] if name.startswith("p_")] == list(COLUMNS)
    for row in rows:
        clear, lobar, diffuse, infiltrate = (float(row[name]) for name in COLUMNS)
        assert clear + infiltrate == pytest.approx(1, abs=1e-3)
        assert lobar + diffuse == pytest.approx(infiltrate, abs=1e-3)
        assert row["finding"] in CLASSES
        assert row["decision"] in ("infiltrate", "no infiltrate")
    assert len(list((tmp_path / "maps").iterdir())) == 3
    page = (tmp_path / "page.html").read_text(encoding="utf-8").lower()
    assert "infiltrate" in page
    assert "pneumonia" not in page


def test_a_prediction_is_explained(place: Path) -> None:
    predictor = Predictor.load(place / "run", force=True)
    for method in ("cam", "occlusion"):
        explained = predictor.explain(images(place)[1], method=method)
        assert explained.prediction.target == "infiltrate"
        assert explained.explanation is not None
        assert explained.explanation.finding == "infiltrate"


def test_the_rest_interface_names_the_classes(place: Path) -> None:
    pytest.importorskip("httpx", reason="the client of this test is httpx")
    from page_driver import predictions_of, serving, upload

    file = upload("one.png", images(place)[1].read_bytes())
    with serving(load_bundle(place / "run").path) as site:
        (row,) = predictions_of(site, file)
    assert row["status"] == "ok", row["message"]
    assert tuple(row["probabilities"]) == CLASSES
    assert row["target"] == "infiltrate"
    assert row["p_target"] == pytest.approx(
        row["probabilities"]["lobar"] + row["probabilities"]["diffuse"], abs=1e-4
    )
