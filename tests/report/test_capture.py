"""The image of a result for viewers of archives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pneumoscope.domain import Explanation, OperatingPoint, Population, Prediction, Radiograph
from pneumoscope.report import capture as module
from pneumoscope.report.capture import (
    BANNER_HEIGHT,
    IMAGE_SIDE,
    PANEL_WIDTH,
    Capture,
    draw_capture,
    draw_notice,
)
from pneumoscope.report.region import strongest_region
from predictions import BUNDLES, SUBTYPES

HEIGHT, WIDTH = 240, 200


def radiograph() -> Radiograph:
    pixels = np.tile(np.linspace(0.1, 0.9, WIDTH, dtype=np.float32), (HEIGHT, 1))
    return Radiograph(pixels, "x", "dicom", HEIGHT, WIDTH)


def capture(**fields) -> Capture:
    heat = np.zeros((32, 32), np.float32)
    heat[8:16, 4:12] = 1
    explanation = Explanation("pneumonia", heat, (0, 0, 1, 1))
    values = {
        "prediction": SUBTYPES.prediction("x", SUBTYPES.positive),
        "radiograph": radiograph(),
        "explanation": explanation,
        "region": strongest_region(explanation, HEIGHT, WIDTH),
        "point": OperatingPoint("balanced", 0.4),
        "validated": (Population("children", (1, 5)),),
        "caption": "Source: image 1",
        "model": "Model tiny@0",
    }
    return Capture(**(values | fields))


def test_names_in_other_scripts_are_numbered(written):
    name = "\u80ba\u708e"
    prediction = replace(
        SUBTYPES.prediction("x", SUBTYPES.positive),
        **{"probabilities": {"normal": 0.2, name: 0.8}, "target": name, "decision": name},
    )
    draw_capture(capture(prediction=prediction, explanation=replace(capture().explanation, finding=name)))
    text = " ".join(written)
    assert name not in text
    assert "class 2" in text
    assert "number in the order of the model" in text


@pytest.fixture
def written(monkeypatch) -> list[str]:
    """All lines of text that are drawn, in order."""
    lines: list[str] = []
    original = module.write

    def write(canvas, x, y, text, colour, **options):
        assert x >= 0 and y <= canvas.shape[0], text
        lines.append(text)
        original(canvas, x, y, text, colour, **options)

    for name in ("pneumoscope.report.capture.write", "pneumoscope.report.canvas.write"):
        monkeypatch.setattr(name, write)
    return lines


def test_it_is_rgb_with_the_image_beside_the_panel():
    drawn = draw_capture(capture())
    assert drawn.dtype == np.uint8 and drawn.flags.c_contiguous
    left = round(IMAGE_SIDE * WIDTH / HEIGHT)
    assert drawn.shape[1] == left + PANEL_WIDTH and drawn.shape[0] >= BANNER_HEIGHT + IMAGE_SIDE
    red, _, blue = drawn[5, 5].tolist()
    assert red > blue, "the banner is amber"
    image = drawn[BANNER_HEIGHT + 100 : BANNER_HEIGHT + IMAGE_SIDE, left - 40 : left - 10]
    assert (image[..., 0] == image[..., 2]).all() and image.mean() > 150, "grey where there is no evidence"


def test_the_region_is_outlined_over_the_image():
    plain, outlined = draw_capture(capture(region=None)), draw_capture(capture())
    height = min(plain.shape[0], outlined.shape[0])
    changed = np.argwhere(
        (plain[:height] != outlined[:height]).any(axis=2)[:, : round(IMAGE_SIDE * WIDTH / HEIGHT)]
    )
    top = (outlined.shape[0] - BANNER_HEIGHT - IMAGE_SIDE) // 2 + BANNER_HEIGHT
    (first_row, first_column), (last_row, last_column) = changed.min(axis=0), changed.max(axis=0)
    assert (first_row - top, last_row - top) == pytest.approx((256, 512), abs=12)
    assert (first_column, last_column) == pytest.approx((107, 320), abs=12)


def test_everything_a_reader_needs_is_in_words(written):
    draw_capture(capture(side="right side of the patient"))
    text = " ".join(written)
    for words in (
        "AI result, research use, not verified",
        "Pneumonia suspected",
        "Probability of pneumonia",
        "of 100 images like those",
        "Operating point balanced: a probability of 40.0% or more counts as pneumonia",
        "Evaluated on: children, 1 to 5 years.",
        "Strongest evidence, outlined: left half of the image, middle third (right side of the patient).",
        "It explains the number; it is no segmentation.",
        "Model tiny@0",
        "Not a medical device",
    ):
        assert words in text, words


def test_a_rejection_says_why(written):
    rejected = Prediction("x", "rejected", ("lateral_view",), message="A lateral view: give a frontal X-ray.")
    draw_capture(capture(prediction=rejected, explanation=None, region=None, point=None))
    text = " ".join(written)
    assert "Not predicted: image rejected" in text and "A lateral view: give a frontal X-ray." in text
    assert "Probability" not in text and "Strongest" not in text


def test_without_an_image_the_panel_stands_alone():
    unread = Prediction("x", "unreadable", ("corrupt",), message="damaged")
    drawn = draw_capture(
        capture(prediction=unread, radiograph=None, explanation=None, region=None, point=None)
    )
    assert drawn.shape[1] == PANEL_WIDTH


@pytest.mark.parametrize("bundle", BUNDLES)
def test_any_classes_fit(bundle, written):
    prediction = bundle.prediction("x", bundle.negative, reasons=("population_not_validated", "inverted"))
    drawn = draw_capture(capture(prediction=prediction))
    assert drawn.shape[0] < 2000
    for name in bundle.classes:
        assert any(name in line for line in written)


def test_as_many_classes_as_there_are_fit(written):
    shares = {f"class {number}": 1 / 90 for number in range(90)}
    prediction = replace(SUBTYPES.prediction("x", SUBTYPES.positive), probabilities=shares)
    draw_capture(capture(prediction=prediction))
    assert "class 89" in " ".join(written)


def test_long_names_are_wrapped_and_cut(written):
    many = {
        f"class number {number} with a very long name indeed, longer than the panel is wide": 0.01
        for number in range(30)
    }
    prediction = replace(
        SUBTYPES.prediction("x", SUBTYPES.positive), probabilities=many, prediction_set=tuple(many)
    )
    drawn = draw_capture(capture(prediction=prediction, model="M" * 400))
    assert drawn.shape[0] < 4096
    assert max(len(line) for line in written) < 120


def test_the_name_of_the_file_is_not_drawn(written):
    draw_capture(
        capture(prediction=SUBTYPES.prediction("/in/Mueller_Juergen_19610203.dcm", SUBTYPES.positive))
    )
    assert not any("Mueller" in line for line in written)


def test_a_notice(written):
    drawn = draw_notice("AI result retracted", ["Do not use it.", "Reason: " + "because " * 40])
    assert drawn.shape[1] == IMAGE_SIDE and drawn.shape[0] >= 512
    assert "AI result retracted" in " ".join(written) and "Do not use it." in " ".join(written)
