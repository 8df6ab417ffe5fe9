from __future__ import annotations

import cv2
import numpy as np
import pytest

from bundles import make_bundle
from images import grey_levels
from pneumoscope.domain import Explanation, OperatingPoint, Population
from pneumoscope.image.decode import read_radiograph
from pneumoscope.model.manifest import Calibration
from pneumoscope.predict.predictor import Predictor
from pneumoscope.serve.workers.worker import heatmap_png, preview_jpeg, respond


@pytest.fixture(scope="module")
def predictor(web_bundle):
    return Predictor.load(web_bundle.path, workers=1)


def job(**options):
    return {"name": "a.png", "heatmap": False, "preview": False, "operating_point": "screening"} | options


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_the_response_is_the_prediction(predictor, png):
    head, pieces = respond(predictor, job(), png)
    (prediction,) = predictor.predict_bytes([(png, "a.png")])
    assert head["row"]["target"] == "pneumonia"
    assert head["row"]["p_target"] == pytest.approx(prediction.p_target, abs=1e-6)
    assert head["row"]["probabilities"] == pytest.approx(dict(prediction.probabilities), abs=1e-6)
    assert list(head["row"]["probabilities"]) == ["normal", "bacterial", "viral"]
    assert head["row"]["population"] == prediction.population == "any"
    assert head["row"]["decision"] == prediction.decision == "pneumonia"
    assert head["row"]["uncertain"]  # the bundle for tests keeps every class
    assert head["facts"] == {
        "format": "png",
        "width": 140,
        "height": 120,
        "bits": 8,
        "view": "unknown",
        "modality": None,
        "age_band": None,
    }
    assert head["heatmap"] is None
    assert pieces == [b"", b""]


def test_the_operating_point_makes_the_decision(predictor, png):
    row = respond(predictor, job(operating_point="rule-in"), png)[0]["row"]
    assert (row["decision"], row["operating_point"]) == ("no pneumonia", "rule-in")


def test_a_point_is_that_of_the_population_of_the_image(tmp_path, png):
    """Each population has its own threshold; where it lacks the name, its default point is used."""
    everyone = (OperatingPoint("low", 0.0), OperatingPoint("high", 0.0))
    elderly = (OperatingPoint("low", 1.0, population="elderly"),)
    bundle = make_bundle(
        tmp_path / "bundle",
        calibrations=(
            Calibration(operating_points=everyone),
            Calibration(population="elderly", operating_points=elderly),
        ),
        populations=(Population("elderly", ages=(65, None)),),
        default_operating_point="low",
    )
    unknown = Predictor(bundle, workers=1)
    old = Predictor(bundle, workers=1, population="elderly")
    row = respond(unknown, job(operating_point="high"), png)[0]["row"]
    assert (row["decision"], row["operating_point"], row["population"]) == ("pneumonia", "high", "any")
    row = respond(old, job(operating_point="high"), png)[0]["row"]
    assert (row["decision"], row["operating_point"], row["population"]) == ("no pneumonia", "low", "elderly")


def test_images_are_returned_when_requested(predictor, png):
    head, (heatmap, preview) = respond(predictor, job(heatmap=True, preview=True), png)
    assert head["heatmap"]["finding"] == "pneumonia"
    assert max(decoded(heatmap).shape) == 256
    assert np.abs(decoded(preview).astype(int) - grey_levels()).mean() < 2


def test_an_unreadable_file_has_no_images(predictor):
    head, pieces = respond(predictor, job(heatmap=True, preview=True), b"nothing")
    assert (head["row"]["status"], head["facts"], head["heatmap"]) == ("unreadable", None, None)
    assert pieces == [b"", b""]


def test_a_preview_has_more_pixels_than_the_input(predictor):
    """A JPEG is read at the network's size; the preview has 1,024 pixels."""
    data = cv2.imencode(".jpg", grey_levels(height=1500, width=3000))[1].tobytes()
    reduced = read_radiograph(data, min_side=64)
    assert max(reduced.pixels.shape) < 1024
    assert decoded(preview_jpeg(data, reduced)).shape == (512, 1024)


@pytest.mark.parametrize("inverted", [False, True])
def test_a_preview_read_again_is_corrected_like_the_input(inverted):
    grey = grey_levels(height=1500, width=3000)
    data = cv2.imencode(".jpg", 255 - grey if inverted else grey)[1].tobytes()
    shown = decoded(preview_jpeg(data, read_radiograph(data, min_side=64), inverted=inverted))
    expected = cv2.resize(grey, (1024, 512), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(shown.ravel(), expected.ravel())[0, 1] > 0.9


@pytest.mark.parametrize(("shape", "expected"), [((64, 64), (256, 256)), ((400, 200), (256, 128))])
def test_a_heat_map_keeps_its_shape_and_position(shape, expected):
    evidence = np.zeros(shape, np.float32)
    evidence[: shape[0] // 2, : shape[1] // 2] = 1
    drawn = decoded(heatmap_png(Explanation("pneumonia", evidence, (0, 0, 1, 1))))
    assert drawn.shape == expected
    quarter = drawn[: expected[0] // 2 - 8, : expected[1] // 2 - 8]
    assert quarter.min() == 255
    assert drawn[expected[0] // 2 + 8 :].max() == 0
