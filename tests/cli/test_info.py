from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from bundles import make_bundle
from pneumoscope import __version__
from pneumoscope.cli import main
from pneumoscope.domain import CodedConcept, DatasetDescription, Estimate, OperatingPoint, Population, Target

POINT = OperatingPoint(
    "balanced",
    0.4321,
    criterion="near the maximum of Youden's J",
    population="children",
    chosen_on="validation split",
    patients=412,
    sensitivity=Estimate(0.95, 0.9, 0.98),
    specificity=Estimate(0.9, 0.85, 0.94),
)
CHILDREN = Population("children", (1, 5), ("AP",), "a hospital", 412, 786)
DATA = DatasetDescription("Chest set", CHILDREN, label_source="two radiologists", licence="CC BY 4.0")
RESULTS = {
    "evaluation": {
        "evaluated_on": "Chest set, test split",
        "images": 520,
        "patients": 286,
        "detection": {"auroc": {"value": 0.9123, "low": 0.9, "high": 0.93}},
    },
    "external": {
        "Adults": {"images": 156, "detection": {"auroc": {"value": 0.8524, "low": 0.78, "high": 0.91}}}
    },
    "speed": {"images_per_second": 355.0, "latency_ms": 6.3},
}


@pytest.fixture
def info(tmp_path, capsys):
    bundle = make_bundle(
        tmp_path,
        classes=("clear", "lobar", "diffuse"),
        target=Target("infiltrate", ("lobar", "diffuse"), CodedConcept("409609008", "SCT", "Infiltrate")),
        state="evaluated",
        calibrations=[
            {"operating_points": [asdict(OperatingPoint("balanced", 0.5))]},
            {"population": "children", "operating_points": [asdict(POINT)]},
        ],
        populations=[asdict(CHILDREN)],
        validated=[asdict(CHILDREN)],
        provenance={
            "recipe": "default",
            "data": [
                {"description": asdict(DATA), "fingerprint": "ab12", "images": 4000},
                {"description": {"name": "More"}, "additional": True},
            ],
            "steps": ["trained with the recipe teacher", "distilled with the recipe default"],
        },
        results=RESULTS,
    )

    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(["info", "--bundle", str(tmp_path), *words])
        assert left.value.code == 0
        return bundle, capsys.readouterr().out

    return run


def test_text_names_the_bundle_its_results_and_what_can_be_read(info):
    bundle, text = info()
    for part in (
        bundle.identity,
        "evaluated",
        "clear, lobar, diffuse",
        "infiltrate (lobar or diffuse), SNOMED CT 409609008",
        "balanced (default)",
        "balanced, children (default)",
        "infiltrate at 0.4321 or more",
        "sensitivity 0.9500 [0.9000, 0.9800]",
        "chosen on validation split (412 patients)",
        "1 to 5 years, AP view, a hospital (412 patients, 786 images)",
        "Chest set, children, 1 to 5 years, AP view, a hospital, 4,000 images, CC BY 4.0",
        "additional: More",
        "(1) trained with the recipe teacher; (2) distilled with the recipe default",
        "Chest set, test split (520 images of 286 patients)",
        "0.9123 [0.9000, 0.9300]",
        "Adults (156 images): AUROC 0.8524 [0.7800, 0.9100]",
        "355.0 images a second",
        "onnxruntime",
        "DICOM",
    ):
        assert part in text, part
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_json_holds_the_whole_manifest(info):
    bundle, text = info("--json")
    facts = json.loads(text)
    assert facts["pneumoscope"] == __version__
    manifest = bundle.manifest.model_dump(mode="json")
    assert {name: facts["bundle"][name] for name in manifest} == manifest
    assert facts["formats"]["PNG"]


def test_card_is_the_card_alone(info):
    _, text = info("--card")
    assert text == "# A model for tests\n"


def test_a_draft_can_be_shown(tmp_path, capsys):
    make_bundle(tmp_path, state="draft")
    with pytest.raises(SystemExit) as left:
        main(["info", "--bundle", str(tmp_path)])
    assert left.value.code == 0
    assert "draft" in capsys.readouterr().out


def test_populations_of_one_name_are_all_shown(tmp_path, capsys):
    populations = [asdict(Population("children", (1, 5), hospital=name)) for name in ("here", "there")]
    calibration = {
        "calibrator": {"prior_shift": -8.0},
        "prevalence": 0.004,
        "operating_points": [asdict(OperatingPoint("balanced", 0.00002))],
    }
    make_bundle(tmp_path, validated=populations, calibration=calibration)
    with pytest.raises(SystemExit):
        main(["info", "--bundle", str(tmp_path)])
    text = capsys.readouterr().out
    assert "1 to 5 years, here; 1 to 5 years, there" in text
    assert "at a prevalence of 0.004; shifted to 1.35e-06" in text
    assert "pneumonia at 0.000020 or more" in text


def test_a_card_is_no_json_and_where_there_is_none_that_is_an_error(tmp_path, capsys):
    bundle = make_bundle(tmp_path)
    words = ["info", "--bundle", str(tmp_path), "--card"]
    with pytest.raises(SystemExit) as left:
        main([*words, "--json"])
    assert left.value.code == 2
    manifest = json.loads((bundle.path / "bundle.json").read_text())
    del manifest["files"]["card.md"]
    (bundle.path / "bundle.json").write_text(json.dumps(manifest))
    (bundle.path / "card.md").unlink()
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(words)
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (4, "")
    assert "no model card" in err
