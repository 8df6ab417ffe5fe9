from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from bundles import make_bundle
from images import grey_levels
from pneumoscope.cli import main, progress
from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.data.split import split
from pneumoscope.model.bundle import load_bundle, write_bundle
from pneumoscope.model.manifest import BundleManifest


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    manifest = split(write_phantoms(folder, n=36, size=128, seed=5))
    manifest.write(folder / "split.csv")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def evaluate(bundle, capsys):
    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(["evaluate", "--bundle", str(bundle.path), *map(str, words)])
        return left.value.code, *capsys.readouterr()

    return run


def test_a_folder_is_evaluated_with_report_metrics_and_intervals(evaluate, data, bundle, tmp_path):
    code, out, err = evaluate(data, "--out", tmp_path / "out", "--resamples", 100)
    assert code == 0, err
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "metrics.json", "report.html", "confusion_matrix.png",
    }  # fmt: skip
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["images"] == 36
    auroc = metrics["detection"]["auroc"]
    assert f"[{auroc['low']:.3f}, {auroc['high']:.3f}]" in out
    assert f"report: {tmp_path / 'out' / 'report.html'}" in out
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert bundle.identity in report


def test_one_side_of_a_split_can_be_evaluated_as_json(evaluate, data, tmp_path):
    words = (data / "split.csv", "--out", tmp_path / "out", "--split", "train", "--resamples", 100, "--json")
    code, out, _ = evaluate(*words)
    assert code == 0
    metrics = json.loads(out)
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert 20 < metrics["images"] < 36


def test_images_that_the_bundle_was_trained_on_are_warned_of_and_never_signed(data, tmp_path, capsys):
    trained_on = [{"fingerprint": load(data / "split.csv").fingerprint()}]
    trained = make_bundle(tmp_path / "bundle", provenance={"data": trained_on})
    before = (trained.path / "bundle.json").read_bytes()

    def run(*words):
        facts = ("--bundle", trained.path, "--out", tmp_path / "out", "--resamples", 100)
        with pytest.raises(SystemExit) as left:
            # Quiet: steps that take longer than a second, on a busy machine, are no lines.
            main(["evaluate", str(data / "split.csv"), "--quiet", *map(str, (*facts, *words))])
        return left.value.code, capsys.readouterr().err

    for side, which in (([], "all of it"), (["--split", "val"], "its split val")):
        code, err = run(*side)
        assert code == 0
        (warning,) = err.splitlines()
        assert warning.startswith("warning: ")
        assert f"trained on this data set, so that results on {which} are optimistic; evaluate" in warning
        assert "are optimistic" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        for option in (["--sign"], ["--add-to-card", "another set"]):
            code, err = run(*side, *option)
            assert code == 4
            assert "nothing is written into the bundle" in err
            assert (trained.path / "bundle.json").read_bytes() == before
    assert run("--split", "test", "--sign") == (0, "")


def test_images_that_were_not_evaluated_are_exit_code_3(evaluate, data, tmp_path):
    write_phantoms(tmp_path / "data", n=18, size=128, seed=6)
    (tmp_path / "data" / "NORMAL" / "broken.jpeg").write_bytes(b"no image")
    code, _, err = evaluate(tmp_path / "data", "--out", tmp_path / "out", "--resamples", 100)
    assert code == 3
    assert "1 image not evaluated; see the report" in err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data, tmp: (data, "--split", "test"), "no images to evaluate in split 'test'"),
        (lambda data, tmp: (tmp / "nowhere",), "nowhere"),
        (lambda data, tmp: (_other_label(tmp),), "label 'covid' is none of the classes"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line_and_exit_code_4(evaluate, data, tmp_path, make, message):
    code, out, err = evaluate(*make(data, tmp_path), "--out", tmp_path / "out", "--resamples", 100)
    assert (code, out) == (4, "")
    (line,) = err.splitlines()
    assert message in line


def _other_label(folder):
    manifest = write_phantoms(folder / "other", n=6, size=128)
    (folder / "other" / "NORMAL").rename(folder / "other" / "COVID")
    for number, path in enumerate(sorted((folder / "other" / "COVID").iterdir())):
        path.rename(path.with_name(f"{number}.jpeg"))
    del manifest
    return folder / "other"


def test_no_bundle_is_one_line(capsys, data, tmp_path):
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(data), "--bundle", str(tmp_path), "--out", str(tmp_path / "out")])
    assert left.value.code == 4
    assert "not a bundle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--sign"], "--bundle"), (["--add-to-card", "x"], "--bundle"), (["--images", "3"], "--robustness")],
)
def test_options_that_could_only_surprise_are_wrong_use(data, tmp_path, capsys, words, message):
    """The bundle that ships is not written into; --images limits those of --robustness only."""
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(data), "--out", str(tmp_path), *words])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--add-to-card", " "], 2, "--add-to-card"),
        (["--boxes", "nope.csv"], 4, "nope.csv: cannot be read"),
        (["--masks", "nope"], 2, "--masks"),
    ],
)
def test_what_is_wrong_is_said_before_an_image_is_read(
    evaluate, data, tmp_path, monkeypatch, words, code, message
):
    from pneumoscope.evaluation import bundles

    monkeypatch.setattr(bundles, "load", lambda *_, **__: pytest.fail("began to list the images"))
    left, _, err = evaluate(data, "--out", tmp_path / "out", *words)
    assert left == code
    assert message in err


def test_a_folder_that_cannot_be_written_is_reported_before_evaluating(evaluate, data, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = evaluate(data, "--out", tmp_path / "file")
    assert (code, out) == (4, "")
    assert err.startswith(f"error: {tmp_path / 'file'}: cannot make this folder")


def test_wrong_use_is_exit_code_2(evaluate, data, tmp_path):
    code, _, err = evaluate(data, "--out", tmp_path, "--resamples", 5)
    assert code == 2
    assert "--resamples" in err


def test_labels_without_subtypes_are_evaluated_as_the_target(evaluate, data, tmp_path):
    manifest = Manifest.read(data / "split.csv")
    records = [
        replace(record, label="normal" if record.label == "normal" else "pneumonia") for record in manifest
    ]
    manifest.with_records(records).write(data / "two.csv")
    code, out, _ = evaluate(data / "two.csv", "--out", tmp_path / "out", "--resamples", 100, "--json")
    assert code == 0
    assert json.loads(out)["classes"] == ["normal", "pneumonia"]


def test_maps_are_measured_and_signed_into_the_bundle(data, tmp_path, capsys):
    own = make_bundle(tmp_path / "own")
    first = next(record for record in Manifest.read(data / "split.csv") if record.label != "normal")
    (tmp_path / "boxes.csv").write_text(f"path,x,y,width,height\n{first.path},0,0,9999,9999\n")
    words = ["--bundle", own.path, "--out", tmp_path / "out", "--resamples", 100, "--curves", 2, "--sign"]
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(data / "split.csv"), "--boxes", str(tmp_path / "boxes.csv"), *map(str, words)])
    out, err = capsys.readouterr()
    assert left.value.code == 0, err
    assert "Pointing game" in out
    assert "Deletion" in out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["localisation"]["boxes"]["images"] == 1
    assert "| Pointing game | 1 |" in (own.path / "card.md").read_text(encoding="utf-8")


def test_robustness_is_measured_shown_and_written(evaluate, data, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "STEP_SECONDS", 0.0)  # steps are named however fast the machine is
    words = ("--robustness", "--images", 9, "--resamples", 100)
    code, out, err = evaluate(data, "--out", tmp_path / "out", *words)
    assert code == 0, err
    assert "corruptions" in err.splitlines()
    assert "gaussian blur" in out
    robustness = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))["robustness"]
    assert robustness["images"] == 9
    assert len(robustness["medmnist_c"]["corruptions"]) == 13
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Corruptions of MedMNIST-C" in page
    assert "gamma corr down" in page


def test_external_results_are_added_to_the_card_and_removed_when_decisions_change(data, tmp_path, capsys):
    own = make_bundle(tmp_path / "own")
    write_phantoms(tmp_path / "adults", n=24, size=128, seed=9)

    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(["evaluate", *map(str, words), "--bundle", str(own.path), "--resamples", "100"])
        return left.value.code, capsys.readouterr().err

    assert run(data / "split.csv", "--out", tmp_path / "a", "--sign")[0] == 0
    validated = load_bundle(own.path).manifest.validated
    assert run(tmp_path / "adults", "--out", tmp_path / "b", "--add-to-card", "grown-ups")[0] == 0
    signed = load_bundle(own.path)
    assert signed.manifest.state == "evaluated"
    assert signed.manifest.validated == validated  # an external validation adds none
    assert "| grown-ups | 24 |" in signed.card
    assert signed.manifest.results.speed.images_per_second > 0
    assert "## Speed" in signed.card
    assert "36 images of" in signed.card  # the bundle's own results stay
    assert signed.manifest.results.external["grown-ups"].images == 24
    assert run(data / "split.csv", "--out", tmp_path / "c", "--sign")[0] == 0
    assert "| grown-ups | 24 |" in load_bundle(own.path).card
    calibration = {"operating_points": ({"name": "balanced", "threshold": 0.9},)}
    fields = {**load_bundle(own.path).manifest.model_dump(), "calibrations": (calibration,)}
    write_bundle(own.path, BundleManifest.model_validate(fields))
    assert run(data / "split.csv", "--out", tmp_path / "d", "--sign")[0] == 0
    assert "grown-ups" not in load_bundle(own.path).card
    code, err = run(data, "--out", tmp_path / "e", "--sign", "--add-to-card", "x")
    assert code == 2
    assert "--add-to-card" in err


def test_a_draft_is_not_evaluated(data, tmp_path, capsys):
    draft = make_bundle(tmp_path / "draft", state="draft")
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(data), "--bundle", str(draft.path), "--out", str(tmp_path / "out")])
    assert left.value.code == 4
    assert "draft" in capsys.readouterr().err


def test_results_do_not_go_among_the_images(evaluate, data):
    for out in (data, data / "NORMAL", data / "new" / ".." / "results"):
        code, _, err = evaluate(data, "--out", out)
        assert code == 2
        assert "--out" in err
        assert "lies in the data" in " ".join(err.replace("│", " ").split())
    assert not (data / "metrics.json").exists()


@pytest.mark.parametrize("name", ["recipe.yaml", "inputs.json"])
def test_the_report_of_a_run_is_not_replaced(evaluate, data, tmp_path, name):
    (tmp_path / name).write_text("")
    (tmp_path / "report.html").write_text("of the run")
    code, _, err = evaluate(data, "--out", tmp_path, "--resamples", 100)
    assert code == 2
    assert "is a run folder, whose own report" in " ".join(err.replace("│", " ").split())
    assert (tmp_path / "report.html").read_text() == "of the run"


def test_lungs_on_black_are_evaluated_with_the_boxes_of_their_manifest(evaluate, tmp_path):
    rows = ["path,label,patient_id,width,height,boxes"]
    for number in range(4):
        pixels = np.zeros((140, 160), np.uint8)
        for left in (40, 90):
            pixels[40:100, left : left + 30] = grey_levels(number, 60, 30) // 2 + 60
        cv2.imwrite(str(tmp_path / f"{number}.png"), pixels)
        label, box = ("viral", '"0.2,0.25,0.3,0.5"') if number % 2 else ("normal", "")
        rows.append(f"{number}.png,{label},{number},160,140,{box}")
    table = tmp_path / "lungs.csv"
    table.write_text("\n".join(rows))
    out = tmp_path / "out"
    assert evaluate(table, "--out", out)[0] == 4
    code, _, _ = evaluate(table, "--out", out, "--boxes", table, "--curves", 0, "--lungs-only", "inverted")
    assert code == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["evaluated_on"].endswith("all 4 images; lungs only (inverted), the gate overridden")
    assert "the gate overridden" in (out / "report.html").read_text(encoding="utf-8")
    boxes = metrics["localisation"]["boxes"]
    assert (boxes["images"], boxes["without_image"]) == (2, 0)
    assert 0 < boxes["box_area"]["value"] < 0.2
    code, _, line = evaluate(table, "--out", out, "--lungs-only", "inverted", "--sign")
    assert code == 2
    assert "--add-to-card, not --sign" in line
