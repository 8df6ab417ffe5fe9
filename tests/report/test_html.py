from __future__ import annotations

import base64
import re

import cv2
import numpy as np
import pytest

from html_page import Page
from images import grey_levels
from pneumoscope.domain import Explanation, OperatingPoint, Prediction, Radiograph, ViewPosition
from pneumoscope.errors import DataError
from pneumoscope.report.html import open_report

POINT = OperatingPoint("balanced", 0.4)
ABOUT = {"Model": "tiny@0123456789ab", "sha256 of model.onnx": "ab" * 32}


def radiograph(height=200, width=300, **fields) -> Radiograph:
    pixels = grey_levels(0, height, width) / np.float32(255)
    return Radiograph(pixels.astype(np.float32), "x.png", "png", height, width, **fields)


def predicted(p: float, path="x.png", **fields) -> Prediction:
    decision = "pneumonia" if p >= POINT.threshold else "no pneumonia"
    values = {"p_normal": 1 - p, "p_pneumonia": p, "decision": decision, "operating_point": "balanced"}
    return Prediction(path, "ok", **{**values, **fields})


def heat() -> Explanation:
    return Explanation("pneumonia", np.eye(8, dtype=np.float32), (0.1, 0.1, 0.9, 0.9))


def written(tmp_path, *answers) -> tuple[str, Page]:
    path = tmp_path / "report.html"
    with open_report(path, about=ABOUT, operating_point=POINT) as add:
        for answer in answers:
            add(*answer)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_one_image_is_a_page_that_stands_alone(tmp_path):
    taken = radiograph(view=ViewPosition.AP, age=4.5)
    answer = predicted(0.87, p_bacterial=0.8, p_viral=0.07, prediction_set=("bacterial",))
    text, page = written(tmp_path, (answer, taken, heat()))
    assert not page.open
    assert len(page.addresses) == 2
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert not re.search(r"<script|<link|@import|url\(", text)
    for expected in (
        "pneumonia suspected", "87.0%", "80.0%", "7.0%", "balanced: pneumonia from 40.0% on", "passed",
        "300 × 200 pixels", "AP, as its header states", "1 to 5 years", "class activation map",
        "tiny@0123456789ab", "ab" * 32, "Not a medical device", "at half of that",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert "Worklist" not in page.text
    assert "left:calc(40.00% - 1px)" in text
    for address in page.addresses:
        data = np.frombuffer(base64.b64decode(address.partition(",")[2]), np.uint8)
        height, width = cv2.imdecode(data, cv2.IMREAD_COLOR).shape[:2]
        assert width / height == pytest.approx(1.5, rel=0.01)


def test_a_batch_has_a_worklist_most_suspicious_first_and_what_nobody_saw_before(tmp_path):
    rejected = Prediction(
        "side.png", "rejected", ("lateral_view",), message="A lateral view: give the frontal one."
    )
    broken = Prediction("broken.png", "unreadable", ("truncated",), message="The file ends early.")
    text, page = written(
        tmp_path,
        (predicted(0.1, "a.png"), radiograph(), heat()),
        (rejected, radiograph(), None),
        (predicted(0.9, "b.png"), radiograph(), heat()),
        (broken, None, None),
        (predicted(0.5, "c.png"), radiograph(), heat()),
    )
    assert not page.open
    rows = re.findall(r'<tr><td><a href="#(image-\d)">([^<]*)</a>', text)
    assert [name for _, name in rows] == ["side.png", "broken.png", "b.png", "c.png", "a.png"]
    assert page.ids == [anchor for anchor, _ in rows]
    assert "2 pneumonia suspected" in page.text
    assert "The file ends early." in page.text
    assert "lateral view" in page.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prediction_set": ("normal", "viral")}, "uncertain, leaning towards pneumonia"),
        ({"prediction_set": (), "set_coverage": 0.9}, "uncertain, leaning towards pneumonia"),
        ({"prediction_set": (), "set_coverage": 0.9}, "no class is as probable"),
        ({"prediction_set": ()}, "pneumonia suspected"),
        ({"prediction_set": ("bacterial", "viral")}, "pneumonia suspected"),
        ({"reasons": ("too_small",)}, "overridden: too small"),
    ],
)
def test_doubt_is_said_in_words(tmp_path, fields, words):
    _, page = written(tmp_path, (predicted(0.7, **fields), radiograph(), heat()))
    assert words in page.text


AGES = {0.4: "under 1", 1: "1 to 5", 17.9: "6 to 17", 54: "18 to 64", 91: "65"}


@pytest.mark.parametrize(("age", "band"), AGES.items())
def test_ages_are_bands(tmp_path, age, band):
    _, page = written(tmp_path, (predicted(0.7), radiograph(age=age), heat()))
    assert band in page.text


def test_names_cannot_break_the_page(tmp_path):
    name = '<script>alert("$title")</script><!--images-->\udcff.png'
    text, page = written(
        tmp_path, (predicted(0.7, name), radiograph(), heat()), (predicted(0.2), radiograph(), None)
    )
    assert not page.open
    assert "<script" not in text
    assert "<!--" not in text


def test_nothing_is_left_of_a_page_that_was_not_finished(tmp_path):
    with pytest.raises(RuntimeError), open_report(tmp_path / "r.html", about=ABOUT) as add:
        add(predicted(0.7), radiograph(), heat())
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with (
        pytest.raises(DataError, match="cannot write there"),
        open_report(tmp_path / "gone" / "r.html", about={}),
    ):
        pass
