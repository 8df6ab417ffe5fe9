from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bundles import make_bundle
from pneumoscope.cli import main
from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.model.bundle import copy_bundle, default_bundle_path, load_bundle, write_bundle


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ward")
    write_phantoms(folder, n=60, size=96, seed=5)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def recalibrate(capsys):
    def run(*words):
        with pytest.raises(SystemExit) as left:
            more = [] if {"--prevalence", "--resamples"} & set(words) else ["--resamples", "100"]
            main(["recalibrate", *map(str, words), *more])
        return left.value.code, *capsys.readouterr()

    return run


def test_before_and_after_are_shown_and_a_new_bundle_is_written(recalibrate, bundle, data, tmp_path):
    code, out, err = recalibrate(bundle.path, data, "--out", tmp_path / "ours", "--copies", 1)
    assert code == 0, err
    head, *rows, last = out.splitlines()
    assert head.split() == ["parent", "recalibrated"]
    shown = {row[:24].strip(): row for row in rows}
    assert {"AUROC", "ECE", "Brier score", "balanced: sensitivity", "rule-in: specificity"} <= set(shown)
    assert "[" in shown["ECE"]
    child = load_bundle(tmp_path / "ours")
    assert last == f"bundle: {tmp_path / 'ours'} ({child.identity})"
    assert child.manifest.provenance.parent == bundle.identity
    assert any(line.startswith("warning: too few images (20 normal") for line in err.splitlines())


def test_a_run_folder_keeps_the_bundle_that_it_has(recalibrate, bundle, data, tmp_path):
    copy_bundle(bundle, tmp_path / "run" / "bundle")
    code, _, err = recalibrate(tmp_path / "run", data, "--out", tmp_path / "run")
    assert code == 4
    assert "holds a bundle already" in err


@pytest.mark.parametrize("method", ["none", "temperature"])
def test_json_holds_what_the_bundle_holds(recalibrate, bundle, data, tmp_path, method):
    code, out, _ = recalibrate(bundle.path, data, "--out", tmp_path / "ours", "--json", "--method", method)
    assert code == 0
    facts = json.loads(out)
    child = load_bundle(tmp_path / "ours")
    own = child.manifest.results.recalibration.model_dump(mode="json")
    assert {name: facts[name] for name in own} == own
    assert facts["bundle"]["parent"] == bundle.identity
    assert facts["bundle"]["identity"] == child.identity
    assert child.manifest.calibrations[0].calibrator.method == method
    if method == "none":
        assert own["parent"]["ece"] == own["recalibrated"]["ece"]


def test_images_that_were_not_evaluated_are_exit_code_3(recalibrate, bundle, tmp_path):
    write_phantoms(tmp_path / "ward", n=66, size=96, seed=6)
    (tmp_path / "ward" / "NORMAL" / "broken.jpeg").write_bytes(b"no image")
    (tmp_path / "ward" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")  # one that a scan leaves out
    code, _, err = recalibrate(bundle.path, tmp_path / "ward", "--out", tmp_path / "ours")
    assert code == 3
    assert "2 images not evaluated" in err


def test_what_cannot_be_done_is_one_line_and_exit_code_4(recalibrate, bundle, data, tmp_path):
    write_phantoms(tmp_path / "few", n=12, size=96, seed=6)
    other = [replace(one, label=one.label.replace("normal", "covid")) for one in load(data)]
    load(data).with_records(other).write(tmp_path / "other.csv")
    for words, message in (
        ((bundle.path, data, "--out", bundle.path), "is the bundle itself"),
        ((bundle.path, tmp_path / "few", "--out", tmp_path / "ours"), "too few to recalibrate on"),
        (
            (bundle.path, tmp_path / "other.csv", "--out", tmp_path / "ours"),
            "error: other.csv: label 'covid'",
        ),
        ((tmp_path / "none", data, "--out", tmp_path / "ours"), "not a bundle"),
    ):
        code, out, err = recalibrate(*words)
        assert (code, out) == (4, "")
        assert len(err.splitlines()) == 1
        assert message in err
    assert not (tmp_path / "ours").exists()


def test_wrong_use_is_exit_code_2(recalibrate, bundle, data, tmp_path):
    for words, message in (
        ((data, "--method", "isotonic"), "--method"),
        ((), "or else --prevalence"),
        ((data, "--prevalence", 0.1), "or else --prevalence"),
        (("--prevalence", 1.5), "above 0 and below 1"),
        (("--prevalence", 0.1, "--method", "vector"), "--method"),
        (("--prevalence", 0.1, "--copies", 0), "--copies"),
        (("--prevalence", 0.1, "--resamples", 1000), "--resamples"),
    ):
        code, _, err = recalibrate(bundle.path, *words, "--out", tmp_path / "ours")
        assert code == 2
        assert message in err


def test_a_prevalence_alone_makes_a_bundle_that_decides_the_same(recalibrate, tmp_path):
    calibration = {
        "calibrator": {"method": "temperature", "scale": (0.5,) * 3, "bias": (0.0,) * 3},
        "prevalence": 0.7,
        "operating_points": [{"name": "balanced", "threshold": 0.6}],
    }
    parent = make_bundle(tmp_path / "parent", calibration=calibration, state="evaluated")
    code, out, _ = recalibrate(parent.path, "--prevalence", 0.1, "--out", tmp_path / "ours", "--json")
    child = load_bundle(tmp_path / "ours")
    assert code == 0
    assert json.loads(out)["bundle"]["parent"] == parent.identity == child.manifest.provenance.parent
    assert child.identity.startswith(parent.identity + "+")
    assert child.manifest.state == "calibrated"
    assert child.manifest.operating_point().threshold < 0.1
    card = (tmp_path / "ours" / "card.md").read_text()
    assert "70% of these images are positive" in card
    assert "a prevalence of 10.0%" in card
    code, _, err = recalibrate(
        make_bundle(tmp_path / "old").path, "--prevalence", 0.1, "--out", tmp_path / "no"
    )
    assert (code, len(err.splitlines())) == (4, 1)
    assert "does not state the prevalence" in err


@pytest.fixture(scope="module")
def shipped():
    if not (default_bundle_path() / "bundle.json").is_file():
        pytest.skip("this checkout ships no bundle")
    return default_bundle_path()


@pytest.mark.slow
def test_adults_without_subtypes_are_calibrated_on_the_target_only(
    recalibrate, shipped, shared_data, tmp_path
):
    # However well the shipped model is calibrated: a parent that predicts pneumonia too often.
    parent = copy_bundle(load_bundle(shipped), tmp_path / "parent")
    calibration = parent.manifest.calibrations[0]
    calibrator = calibration.calibrator.model_copy(update={"odds_bias": 2.0})
    moved = calibration.model_copy(update={"calibrator": calibrator})
    write_bundle(parent.path, parent.manifest.model_copy(update={"calibrations": (moved,)}))
    words = (parent.path, shared_data / "nih-adult", "--out", tmp_path / "ours", "--json")
    code, out, err = recalibrate(*words)
    facts = json.loads(out)
    assert code == (3 if facts["not_evaluated"] else 0), err
    assert facts["target_only"]
    before, after = facts["parent"], facts["recalibrated"]
    assert after["brier"]["high"] < before["brier"]["value"]
    assert after["ece"]["high"] < before["ece"]["low"]
    assert after["prediction_sets"]["coverage"]["normal"]["high"] >= 0.9
    assert after["operating_points"]["screening"]["sensitivity"]["high"] >= 0.98


@pytest.mark.slow
def test_sets_of_children_hold_their_class(recalibrate, shipped, shared_data, tmp_path):
    manifest = load(shared_data / "kermany-224")
    part = Manifest(manifest.records[::10], manifest.root)
    part.write(tmp_path / "part.csv")
    code, out, err = recalibrate(shipped, tmp_path / "part.csv", "--out", tmp_path / "ours", "--json")
    facts = json.loads(out)
    assert code == (3 if facts["not_evaluated"] else 0), err
    assert not facts["target_only"]
    sets = facts["recalibrated"]["prediction_sets"]["coverage"]
    for name in ("normal", "bacterial", "viral"):
        assert sets[name]["high"] >= 0.9
        assert sets[name]["value"] >= 0.84
