from __future__ import annotations

import base64
import re
import tempfile

import cv2
import numpy as np
import pytest

from html_page import Page
from images import grey_levels
from pneumoscope.domain import Explanation, OperatingPoint, Prediction, Radiograph, ViewPosition
from pneumoscope.errors import DataError
from pneumoscope.report.html import open_report
from predictions import BUNDLES, SUBTYPES, Example

POINT = OperatingPoint("balanced", 0.4)
ABOUT = {"Model": "tiny@0123456789ab", "sha256 of model.onnx": "ab" * 32}


def radiograph(height=200, width=300, **fields) -> Radiograph:
    pixels = grey_levels(0, height, width) / np.float32(255)
    return Radiograph(pixels.astype(np.float32), "x.png", "png", height, width, **fields)


def predicted(p: float, path="x.png", **fields) -> Prediction:
    return SUBTYPES.prediction(path, (1 - p, 0.9 * p, 0.1 * p), operating_point="balanced", **fields)


def heat() -> Explanation:
    return Explanation("pneumonia", np.eye(8, dtype=np.float32), (0.1, 0.1, 0.9, 0.9))


def written(tmp_path, *predictions, target="pneumonia") -> tuple[str, Page]:
    path = tmp_path / "report.html"
    with open_report(path, target=target, about=ABOUT) as add:
        for prediction, image, explanation in predictions:
            add(prediction, image, explanation, POINT if prediction.status == "ok" else None)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_one_image_is_a_page_that_stands_alone(tmp_path):
    taken = radiograph(view=ViewPosition.AP, age=4.5)
    prediction = SUBTYPES.prediction("x.png", (0.13, 0.8, 0.07), prediction_set=("bacterial",))
    text, page = written(tmp_path, (prediction, taken, heat()))
    assert not page.open
    assert len(page.addresses) == 2
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert not re.search(r"<script|<link|@import|url\(", text)
    for expected in (
        "pneumonia suspected", "87.0%", "80.0%", "7.0%", "balanced: pneumonia at 40.0% or more", "passed",
        "300 × 200 pixels", "AP, from the header", "1 to 5 years", "class activation map",
        "tiny@0123456789ab", "ab" * 32, "Not a medical device", "at half of the strongest",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert "Worklist" not in page.text
    assert "left:calc(40.00% - 1px)" in text
    for address in page.addresses:
        data = np.frombuffer(base64.b64decode(address.partition(",")[2]), np.uint8)
        height, width = cv2.imdecode(data, cv2.IMREAD_COLOR).shape[:2]
        assert width / height == pytest.approx(1.5, rel=0.01)


def test_a_batch_has_a_worklist_with_images_without_a_prediction_first(tmp_path):
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
    rows = re.findall(r'<tr><td><a class="image" href="#(image-\d)">.*?<span>([^<]*)</span></a>', text)
    assert [name for _, name in rows] == ["side.png", "broken.png", "b.png", "c.png", "a.png"]
    assert page.ids == [anchor for anchor, _ in rows]
    for total in (
        "Pneumonia suspected: 2",
        "no pneumonia detected: 1",
        "rejected: 1",
        "could not be read: 1",
    ):
        assert total in page.text
    # The reason stands in the worklist and in the first line of the image.
    assert page.text.count("rejected: lateral view") == 2
    assert page.text.count("could not be read: truncated") == 2
    assert "The file ends early." in page.text
    assert "lateral view" in page.text


@pytest.mark.parametrize("example", BUNDLES, ids=lambda example: "-".join(example.classes))
def test_classes_and_target_are_those_of_the_bundle(tmp_path, example: Example):
    positive, negative = (example.prediction("x.png", p) for p in (example.positive, example.negative))
    explanation = Explanation(example.target, np.eye(8, dtype=np.float32), (0.1, 0.1, 0.9, 0.9))
    text, page = written(
        tmp_path, (positive, radiograph(), explanation), (negative, radiograph(), None), target=example.target
    )
    for expected in (
        f"{example.target} suspected: 1".capitalize(),
        f"no {example.target} detected: 1",
        f"{example.target} at 40.0% or more",
        f"Evidence for {example.target}",
        f"The probability of {example.target}",
    ):
        assert expected in page.text, expected
    for name in {*example.classes, example.target}:
        assert text.count(f"<span>{name}</span>") == 2
    for name in {"pneumonia", "viral", "normal"} - {*example.classes, example.target}:
        assert name not in page.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prediction_set": ("normal", "viral"), "uncertain": True}, "uncertain, leaning towards pneumonia"),
        ({"prediction_set": (), "uncertain": True}, "uncertain, leaning towards pneumonia"),
        ({"prediction_set": (), "uncertain": True}, "no class reaches"),
        ({"prediction_set": ()}, "pneumonia suspected"),
        ({"prediction_set": ("bacterial", "viral")}, "pneumonia suspected"),
        ({"reasons": ("too_small",)}, "overridden: too small"),
    ],
)
def test_uncertainty_in_words(tmp_path, fields, words):
    _, page = written(tmp_path, (predicted(0.7, **fields), radiograph(), heat()))
    assert words in page.text


AGES = {0.4: "under 1", 1: "1 to 5", 17.9: "6 to 17", 39: "18 to 39", 54: "40 to 64", 91: "65"}


@pytest.mark.parametrize(("age", "band"), AGES.items())
def test_ages_are_bands(tmp_path, age, band):
    _, page = written(tmp_path, (predicted(0.7), radiograph(age=age), heat()))
    assert band in page.text


def test_the_worklist_has_a_thumbnail_of_every_image_that_could_be_read(tmp_path):
    broken = Prediction("broken.png", "unreadable", ("truncated",))
    text, _ = written(
        tmp_path,
        (predicted(0.1, "a.png"), radiograph(2000, 1000), heat()),
        (broken, None, None),
        (predicted(0.9, "b.png"), radiograph(), None),
    )
    worklist = text[text.index("<tbody>") : text.index("</tbody>")]
    images = re.findall(r'<img src="data:image/jpeg;base64,([^"]*)" alt="">', worklist)
    sizes = [cv2.imdecode(np.frombuffer(base64.b64decode(one), np.uint8), 0).shape for one in images]
    assert sizes == [(75, 112), (112, 56)]  # the most suspicious first
    assert max(map(len, images)) < 8000


@pytest.mark.parametrize(
    ("p", "shown", "other"),
    [
        (1.0, ">99.9%", "<0.1%"),
        (0.9996, ">99.9%", "<0.1%"),
        (0.0, "<0.1%", ">99.9%"),
        (0.997, "99.7%", "0.3%"),
    ],
)
def test_no_probability_is_shown_as_certain(tmp_path, p, shown, other):
    text, page = written(tmp_path, (predicted(p), radiograph(), heat()), (predicted(0.5), radiograph(), None))
    assert page.text.count(shown) >= 2  # in the worklist and at the bar
    assert other in page.text
    assert not re.search(r">(100\.0|0\.0)%<", text)


def test_names_cannot_break_the_page(tmp_path):
    name = '<script>alert("$title")</script><!--images-->\udcff.png'
    text, page = written(
        tmp_path, (predicted(0.7, name), radiograph(), heat()), (predicted(0.2), radiograph(), None)
    )
    assert not page.open
    assert "<script" not in text
    assert "<!--" not in text


def test_nothing_is_left_of_a_page_that_was_not_finished(tmp_path):
    with (
        pytest.raises(RuntimeError),
        open_report(tmp_path / "r.html", target="pneumonia", about=ABOUT) as add,
    ):
        add(predicted(0.7), radiograph(), heat())
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with (
        pytest.raises(DataError, match="cannot write there"),
        open_report(tmp_path / "gone" / "r.html", target="pneumonia", about={}),
    ):
        pass


def test_an_error_of_another_file_is_not_blamed_on_the_page(tmp_path):
    with (
        pytest.raises(BrokenPipeError),
        open_report(tmp_path / "r.html", target="pneumonia", about=ABOUT),
    ):
        raise BrokenPipeError
    assert not list(tmp_path.iterdir())


def test_images_wait_beside_the_page_and_in_no_other_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    text, _ = written(tmp_path, (predicted(0.7), radiograph(), heat()))
    assert "pneumonia suspected" in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_full_disk_is_an_error_that_names_the_page(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, before[1]))
    try:
        with pytest.raises(DataError, match=r"report\.html: cannot be written \(File too large\)"):
            written(tmp_path, *[(predicted(0.7), radiograph(), heat())] * 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
