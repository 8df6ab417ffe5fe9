from __future__ import annotations

import cv2
import numpy as np
import pytest

from images import grey_levels
from pneumoscope.domain import Explanation
from pneumoscope.image.decode import read_radiograph
from pneumoscope.predict.predictor import Predictor
from pneumoscope.serve.web.worker import answer, heatmap_png, preview_jpeg


@pytest.fixture(scope="module")
def predictor(web_bundle):
    return Predictor.load(web_bundle.path, workers=1)


def job(**wishes):
    return {"name": "a.png", "heatmap": False, "preview": False, "operating_point": "screening"} | wishes


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_the_answer_is_that_of_predict(predictor, png):
    head, pieces = answer(predictor, job(), png)
    prediction = predictor.predict_bytes(png, "a.png")
    assert head["row"]["p_pneumonia"] == pytest.approx(prediction.p_pneumonia, abs=1e-6)
    assert head["row"]["decision"] == prediction.decision == "pneumonia"
    assert head["row"]["uncertain"]  # the bundle for tests rules nothing out
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
    row = answer(predictor, job(operating_point="rule-in"), png)[0]["row"]
    assert (row["decision"], row["operating_point"]) == ("no pneumonia", "rule-in")


def test_images_come_when_they_are_asked_for(predictor, png):
    head, (heatmap, preview) = answer(predictor, job(heatmap=True, preview=True), png)
    assert head["heatmap"]["finding"] == "pneumonia"
    assert max(decoded(heatmap).shape) == 256
    assert np.abs(decoded(preview).astype(int) - grey_levels()).mean() < 2


def test_an_unreadable_file_has_no_images(predictor):
    head, pieces = answer(predictor, job(heatmap=True, preview=True), b"nothing")
    assert (head["row"]["status"], head["facts"], head["heatmap"]) == ("unreadable", None, None)
    assert pieces == [b"", b""]


def test_a_preview_shows_more_than_the_network_saw(predictor):
    """A JPEG is read at the network's size; people see 1,024 pixels of it."""
    data = cv2.imencode(".jpg", grey_levels(height=1500, width=3000))[1].tobytes()
    reduced = read_radiograph(data, min_side=64)
    assert max(reduced.pixels.shape) < 1024
    assert decoded(preview_jpeg(data, reduced)).shape == (512, 1024)


@pytest.mark.parametrize("turned", [False, True])
def test_a_preview_read_anew_is_turned_as_the_models_image_was(turned):
    grey = grey_levels(height=1500, width=3000)
    data = cv2.imencode(".jpg", 255 - grey if turned else grey)[1].tobytes()
    shown = decoded(preview_jpeg(data, read_radiograph(data, min_side=64), turned=turned))
    wanted = cv2.resize(grey, (1024, 512), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(shown.ravel(), wanted.ravel())[0, 1] > 0.9


@pytest.mark.parametrize(("shape", "expected"), [((64, 64), (256, 256)), ((400, 200), (256, 128))])
def test_a_heat_map_keeps_its_shape_and_its_place(shape, expected):
    evidence = np.zeros(shape, np.float32)
    evidence[: shape[0] // 2, : shape[1] // 2] = 1
    drawn = decoded(heatmap_png(Explanation("pneumonia", evidence, (0, 0, 1, 1))))
    assert drawn.shape == expected
    quarter = drawn[: expected[0] // 2 - 8, : expected[1] // 2 - 8]
    assert quarter.min() == 255
    assert drawn[expected[0] // 2 + 8 :].max() == 0
