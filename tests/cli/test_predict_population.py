"""Thresholds of several populations: which one decides on which image."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from bundles import make_bundle
from pneumoscope.cli import main
from pneumoscope.domain import OperatingPoint, Population


@pytest.fixture(scope="module")
def two_populations(tmp_path_factory):
    """A bundle whose thresholds decide for every child and against every other patient."""
    children = Population("children", ages=(0, 17))
    calibrations = [
        {
            "population": name,
            "operating_points": [asdict(OperatingPoint("balanced", threshold, population=name))],
        }
        for name, threshold in (("any", 1.0), ("children", 0.0))
    ]
    folder = tmp_path_factory.mktemp("two")
    return make_bundle(folder, calibrations=calibrations, populations=[asdict(children)])


@pytest.fixture
def predict_two(two_populations, capsys):
    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(["predict", "--bundle", str(two_populations.path), "--json", *map(str, words)])
        out, err = capsys.readouterr()
        return left.value.code, json.loads(out) if out else [], err

    return run


def test_population_and_point_are_chosen_per_image(predict_two, folder):
    (folder / "m.csv").write_text("path,age\n0.png,5\n1.png,50\n2.png,\n")
    code, rows, _ = predict_two(folder / "m.csv")
    assert code == 0
    assert [row["population"] for row in rows] == ["children", "any", "any"]
    assert [row["decision"] for row in rows] == ["pneumonia", "no pneumonia", "no pneumonia"]


@pytest.mark.parametrize("name", ["Patient Age", "patient_age", "PatientAge"])
def test_an_age_under_another_name_of_its_column_chooses_the_population(predict_two, folder, name):
    (folder / "m.csv").write_text(f"Image Index,{name},View Position\n0.png,060M,AP\n1.png,045Y,PA\n")
    code, rows, _ = predict_two(folder / "m.csv")
    assert code == 0
    assert [row["population"] for row in rows] == ["children", "any"]


@pytest.mark.parametrize(("name", "decision"), [("children", "pneumonia"), ("any", "no pneumonia")])
def test_a_population_may_be_given_for_all_images(predict_two, folder, name, decision):
    (folder / "m.csv").write_text("path,age\n0.png,5\n1.png,50\n")
    _, rows, _ = predict_two(folder / "m.csv", "--population", name)
    assert {row["population"] for row in rows} == {name}
    assert {row["decision"] for row in rows} == {decision}


def test_an_unknown_population_is_wrong_use_that_lists_those_there_are(predict_two, folder):
    code, rows, err = predict_two(folder, "--population", "adults")
    assert (code, rows) == (2, [])
    assert "it has any, children" in " ".join(err.split())


def test_the_report_marks_the_point_of_each_image(predict_two, folder, tmp_path):
    (folder / "m.csv").write_text("path,age\n0.png,5\n1.png,50\n")
    assert predict_two(folder / "m.csv", "--report", tmp_path / "r.html")[0] == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "left:calc(0.00% - 1px)" in page
    assert "left:calc(100.00% - 1px)" in page
