from __future__ import annotations

import os
from collections import Counter

import cv2
import numpy as np
import pytest

from bundles import make_bundle
from images import write_image
from pneumoscope.errors import BundleError, DataError, UnreadableImageError
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.standardise import InputSpec, standardise
from pneumoscope.model.manifest import Calibrator, GateLimits
from pneumoscope.predict.calibration import calibrate
from pneumoscope.predict.predictor import Predictor

POINTS = [{"name": "balanced", "threshold": 0.5}, {"name": "never", "threshold": 1.0}]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("tiny"), operating_points=POINTS, conformal=(0.3, 0.3, 0.3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(30):
        write_image(folder / f"{number:02}.png", seed=number)
    (folder / "03.png").write_bytes(b"")
    (folder / "05.png").write_text("no image")
    write_image(folder / "07.png", height=20, width=20)
    (folder / "09.png").write_bytes((folder / "08.png").read_bytes()[:200])
    return folder


def test_every_image_is_a_row_in_order_and_one_bad_file_stops_nothing(bundle, folder):
    found = Predictor.load(bundle.path, workers=3).predict(folder)
    assert [one.path for one in found] == sorted(str(path) for path in folder.iterdir())
    assert Counter(one.status for one in found) == {"ok": 26, "unreadable": 3, "rejected": 1}
    assert found[3].reasons == ("empty_file",)
    assert found[5].reasons == ("not_an_image",)
    assert found[7].reasons == ("too_small",)
    for one in found:
        assert (one.p_pneumonia is None) == (one.decision is None) == bool(one.reasons)
        assert bool(one.message) == bool(one.reasons)
        assert one.bundle == bundle.identity


def test_the_answer_is_the_calibrated_network_on_the_standardised_image(tmp_path):
    calibrator = Calibrator(method="vector", scale=(0.7, 1.2, 1.0), bias=(0.1, 0.0, -0.2))
    bundle = make_bundle(tmp_path, calibrator=calibrator)
    image = write_image(tmp_path / "x.png", seed=5)
    predictor = Predictor.load(tmp_path)
    (score,) = predictor.scores_iter(image)
    pixels = standardise(read_radiograph(image), bundle.manifest.input).pixels
    (logits,) = predictor._network(pixels[None], ("logits",))
    np.testing.assert_array_equal(score.logits, logits[0])
    (one,) = predictor.predict(image)
    normal, bacterial, viral = calibrate(logits[0], calibrator)
    assert (one.p_normal, one.p_bacterial, one.p_viral) == pytest.approx((normal, bacterial, viral))
    assert one.p_pneumonia == pytest.approx(bacterial + viral)
    assert one.finding == ("normal", "bacterial", "viral")[int(np.argmax([normal, bacterial, viral]))]


def test_threads_and_company_do_not_change_an_answer(bundle, folder):
    alone = Predictor.load(bundle.path, workers=1)
    together = {one.path: one for one in Predictor.load(bundle.path, workers=4).predict(folder)}
    for path in sorted(folder.iterdir())[:10]:
        (one,) = alone.predict(str(path))
        other = together[one.path]
        assert (one.status, one.finding) == (other.status, other.finding)
        assert one.p_pneumonia == pytest.approx(other.p_pneumonia, abs=1e-6)


def test_images_in_memory_are_predicted_as_files_are(bundle, folder):
    predictor = Predictor.load(bundle.path, workers=1)
    paths = [str(folder / f"{number:02}.png") for number in (0, 1, 7)]
    in_memory = predictor.predict_radiographs([read_radiograph(path) for path in paths])
    assert in_memory == predictor.predict(paths)
    assert [one.status for one in in_memory] == ["ok", "ok", "rejected"]


def test_two_classes_have_no_kinds_of_pneumonia(tmp_path):
    make_bundle(tmp_path, findings=("normal", "pneumonia"))
    (one,) = Predictor.load(tmp_path).predict(write_image(tmp_path / "x.png"))
    assert one.p_bacterial is None
    assert one.p_viral is None
    assert one.p_normal + one.p_pneumonia == pytest.approx(1)


def test_the_operating_point_moves_the_decision_and_nothing_else(bundle, folder):
    path = folder / "00.png"
    (default,) = Predictor.load(bundle.path).predict(path)
    (never,) = Predictor.load(bundle.path, operating_point="never").predict(path)
    assert default.operating_point == "balanced"
    assert default.decision == ("pneumonia" if default.p_pneumonia >= 0.5 else "no pneumonia")
    assert (never.operating_point, never.decision) == ("never", "no pneumonia")
    assert never.p_pneumonia == default.p_pneumonia
    with pytest.raises(BundleError, match="no operating point 'always'"):
        Predictor.load(bundle.path, operating_point="always")


def test_force_predicts_what_the_gate_rejects_and_keeps_the_reason(bundle, folder):
    predictor = Predictor.load(bundle.path, force=True)
    rejected, empty = predictor.predict([folder / "07.png", folder / "03.png"])
    assert (rejected.status, rejected.reasons) == ("ok", ("too_small",))
    assert rejected.p_pneumonia is not None
    assert empty.status == "unreadable"


def test_bytes_are_predicted_like_the_file_they_came_from(bundle, folder):
    predictor = Predictor.load(bundle.path)
    path = folder / "02.png"
    (from_file,) = predictor.predict(path)
    from_bytes = predictor.predict_bytes(path.read_bytes(), "upload.png")
    assert from_bytes.path == "upload.png"
    assert from_bytes.p_pneumonia == from_file.p_pneumonia
    assert predictor.predict_bytes(b"nothing", "x.png").status == "unreadable"


def test_an_examination_agrees_with_the_prediction_and_explains_it(bundle, folder):
    predictor = Predictor.load(bundle.path)
    path = folder / "02.png"
    found = predictor.examine(path)
    assert found.prediction == predictor.predict(path)[0]
    assert found.radiograph.pixels.shape == (120, 140)
    assert found.explanation.heatmap.shape == (64, 64)
    assert 0 <= found.explanation.heatmap.min() <= found.explanation.heatmap.max() <= 1
    rejected, unreadable = predictor.examine(folder / "07.png"), predictor.examine(folder / "03.png")
    assert rejected.radiograph is not None
    assert rejected.explanation is rejected.logits is None
    assert unreadable.radiograph is None
    assert predictor.examine(path.read_bytes()).prediction.path == "<bytes>"
    assert [one.prediction for one in predictor.examine_iter(folder)] == predictor.predict(folder)


def test_lungs_are_found_where_the_input_asks_for_them(tmp_path):
    spec = InputSpec(size=64, lungs="crop", window="lungs")
    make_bundle(tmp_path, input=spec, gate=GateLimits(min_lung_certainty=0))
    found = Predictor.load(tmp_path).examine(write_image(tmp_path / "x.png"))
    assert found.prediction.status == "ok"
    top, left, bottom, right = found.explanation.region
    assert 0 < top < bottom < 1
    assert 0 < left < right < 1


def test_a_folder_without_images_and_a_missing_file_are_rows(bundle, tmp_path):
    found = Predictor.load(bundle.path).predict([tmp_path, tmp_path / "gone.png"])
    assert [(one.status, one.reasons) for one in found] == [("unreadable", ("not_found",))] * 2
    with pytest.raises(DataError):
        (tmp_path / "m.csv").write_text("file\nx.png\n")
        Predictor.load(bundle.path).predict(tmp_path / "m.csv")


def test_a_network_that_answers_nonsense_is_an_error_and_not_an_answer(tmp_path, bundle, folder):
    predictor = Predictor.load(make_bundle(tmp_path, findings=("normal", "pneumonia")).path)
    predictor.bundle = bundle  # three findings, two logits
    with pytest.raises(BundleError, match="3 finite logits"):
        predictor.predict(folder / "00.png")


def test_opencv_does_not_start_threads_of_its_own(bundle):
    Predictor.load(bundle.path)
    assert cv2.getNumThreads() == 1
    with pytest.raises(ValueError, match="workers"):
        Predictor.load(bundle.path, workers=0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_closed_folder_is_a_row(bundle, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    (one,) = Predictor.load(bundle.path).predict(tmp_path)
    closed.chmod(0o700)
    assert one.reasons == ("no_permission",)


def test_real_radiographs_pass_the_gate_and_other_modalities_do_not(bundle, shared_data):
    predictor = Predictor.load(bundle.path)
    chests = sorted((shared_data / "kermany-original").rglob("*.jpeg"))[:12]
    assert {one.status for one in predictor.predict(chests)} == {"ok"}
    for name in ("CT1_UNC.dcm", "MR1_UNC.dcm", "US1_RLE.dcm"):
        (one,) = predictor.predict(shared_data / "dicom" / name)
        assert one.reasons == ("not_a_chest_radiograph",)


def test_errors_that_are_items_keep_their_own_path(bundle):
    error = UnreadableImageError("folder", "not_found", "nothing in it")
    (score,) = Predictor.load(bundle.path)._scores([(error, None)])
    assert (score.path, score.message) == ("folder", "nothing in it")
