from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from images import grey_levels
from pneumoscope.domain import Explanation, OperatingPoint, Prediction, Radiograph
from pneumoscope.errors import DataError
from pneumoscope.report.canvas import shortened, text_width, wrapped
from pneumoscope.report.overlay import (
    BACKGROUND,
    IMAGE_SIDE,
    LINE,
    MARGIN,
    draw_prediction,
    drawable_names,
    overlay,
    write_png,
)
from predictions import BUNDLES, INFILTRATE, SUBTYPES, Example

POINT = OperatingPoint("balanced", 0.4)


def radiograph(height=200, width=300) -> Radiograph:
    pixels = grey_levels(0, height, width) / np.float32(255)
    return Radiograph(pixels.astype(np.float32), "x.png", "png", height, width)


def predicted(**fields) -> Prediction:
    return replace(SUBTYPES.prediction("x.png", (0.3, 0.5, 0.2)), **fields)


@pytest.mark.parametrize(("height", "width"), [(200, 300), (300, 200), (2000, 1200), (64, 160)])
def test_the_image_keeps_its_aspect(height, width):
    drawn = overlay(radiograph(height, width), None)
    assert max(drawn.shape[:2]) == IMAGE_SIDE
    assert drawn.shape[0] / drawn.shape[1] == pytest.approx(height / width, rel=0.01)
    assert (drawn[..., 0] == drawn[..., 2]).all()


def test_colour_lies_where_the_evidence_is_and_nowhere_else():
    heat = np.zeros((10, 10), np.float32)
    heat[0, 0] = 1
    plain = overlay(radiograph(), None).astype(int)
    drawn = overlay(radiograph(), Explanation("pneumonia", heat, (0.5, 0.5, 1.0, 1.0))).astype(int)
    changed = np.abs(drawn - plain).max(axis=2) > 3
    rows, columns = np.nonzero(changed)
    assert changed.any()
    # The contour is smoothed over one pixel more.
    assert rows.min() >= plain.shape[0] // 2 - 1
    assert columns.min() >= plain.shape[1] // 2 - 1
    assert rows.max() < plain.shape[0] * 0.65


def heat() -> Explanation:
    return Explanation("pneumonia", np.eye(8, dtype=np.float32), (0.1, 0.1, 0.9, 0.9))


def test_the_xray_stands_beside_its_heat_map():
    drawn = draw_prediction(predicted(), radiograph(), heat(), POINT)
    plain, coloured = overlay(radiograph(), None), overlay(radiograph(), heat())
    height, width = plain.shape[:2]
    assert (drawn[:height, :width] == plain).all()
    assert (drawn[:height, -width:] == coloured).all()
    alone = draw_prediction(predicted(), radiograph())
    left = (alone.shape[1] - width) // 2
    assert (alone[:height, left : left + width] == plain).all()
    assert (alone[:height, :left] == BACKGROUND).all()


def test_uncertainty_is_drawn():
    sure = draw_prediction(predicted(prediction_set=("bacterial",)), radiograph())
    unsure = draw_prediction(predicted(prediction_set=(), uncertain=True), radiograph())
    assert sure.shape != unsure.shape or (sure != unsure).any()


BAR = (200, 150, 70)


def panel(drawn: np.ndarray) -> np.ndarray:
    """Return what is below the image."""
    return drawn[round(IMAGE_SIDE * 200 / 300) :]


def bars(drawn: np.ndarray) -> int:
    in_bar = (panel(drawn) == BAR).all(axis=2).any(axis=1)
    return int((np.diff(in_bar.astype(int)) == 1).sum())


def test_the_bar_is_as_long_as_the_probability():
    def bar_pixels(value: float) -> int:
        drawn = draw_prediction(predicted(p_target=value, probabilities={}), radiograph())
        return int((panel(drawn) == BAR).all(axis=2).sum())

    assert bar_pixels(0.0) == 0
    assert bar_pixels(0.8) == pytest.approx(2 * bar_pixels(0.4), rel=0.02)


@pytest.mark.parametrize("example", BUNDLES, ids=lambda example: example.target)
def test_each_class_and_the_target_have_one_bar(example: Example):
    drawn = draw_prediction(example.prediction("x.png", example.positive), radiograph())
    assert bars(drawn) == len({*example.classes, example.target})


def test_many_classes_make_the_image_higher():
    many = Example(tuple(f"a class with a long name {n}" for n in range(12)), "disease", ("x",) * 0)
    few = draw_prediction(INFILTRATE.prediction("x.png", INFILTRATE.positive), radiograph())
    drawn = draw_prediction(many.prediction("x.png", [1 / 12] * 12), radiograph(), None, POINT)
    assert drawn.shape[0] > few.shape[0]
    assert bars(drawn) == 12


@pytest.mark.parametrize("words", [1, 12, 40, 160])
@pytest.mark.parametrize("forced", [False, True])
def test_a_long_caution_is_drawn_whole_beside_bars_and_scale(words, forced):
    reasons = ("lateral_view",) if forced else ("inverted",)
    short, long = (
        draw_prediction(predicted(reasons=given, message=message), radiograph(), heat(), POINT)
        for given, message in (((), ""), (reasons, "caution " * words))
    )
    column = (long.shape[1] - 4 * MARGIN) // 3
    beside = np.s_[: short.shape[0] - MARGIN, MARGIN + column + MARGIN // 2 :]
    assert np.array_equal(short[beside], long[beside])
    assert (long[-MARGIN // 2 :] == BACKGROUND).all()  # below the last line
    lines = words * 60 // column  # a word is at least 60 pixels wide
    assert panel(long).shape[0] > lines * LINE


def test_the_threshold_is_that_of_the_point_of_the_image():
    one, other = (
        draw_prediction(predicted(), radiograph(), None, OperatingPoint("balanced", t)) for t in (0.4, 0.5)
    )
    assert (one != other).any()


def test_the_panel_tells_decisions_and_rejections_apart():
    rejected = Prediction(
        "x.png", "rejected", ("lateral_view",), message="A lateral view: give the frontal one."
    )
    drawings = [
        draw_prediction(predicted(), radiograph(), None, POINT),
        draw_prediction(predicted(decision="no pneumonia"), radiograph(), None, POINT),
        draw_prediction(
            predicted(reasons=("lateral_view",), message="A lateral view."), radiograph(), None, POINT
        ),
        draw_prediction(rejected, radiograph()),
    ]
    assert len({drawing.tobytes() for drawing in drawings}) == 4


def test_long_and_foreign_names_stay_inside_the_panel():
    name = "röntgen-" + "x" * 400 + "\udcff.png"
    drawn = draw_prediction(predicted(path=name), radiograph(), None, POINT)
    assert (drawn[:, -4:] == BACKGROUND).all()
    assert (
        panel(drawn)[:, MARGIN + (drawn.shape[1] - 4 * MARGIN) // 3 :][:, : MARGIN // 2] == BACKGROUND
    ).all()


FOREIGN = Prediction(
    "x.png",
    "ok",
    probabilities={"\u6b63\u5e38": 0.2, "\u80ba\u708e": 0.8},
    target="\u80ba\u708e",
    p_target=0.8,
    finding="\u80ba\u708e",
    decision="\u80ba\u708e",
    prediction_set=("\u80ba\u708e",),
)


def test_names_in_other_scripts_are_numbered():
    shown, explanation = drawable_names(FOREIGN, Explanation(FOREIGN.target, np.eye(8), (0, 0, 1, 1)))
    assert shown.probabilities == {"class 1": 0.2, "class 2": 0.8}
    assert {shown.target, shown.finding, shown.decision, *shown.prediction_set} == {"class 2"}
    assert shown.positive
    assert explanation.finding == "class 2"
    negative, _ = drawable_names(replace(FOREIGN, decision=f"no {FOREIGN.target}"), None)
    assert (negative.decision, negative.positive) == ("no class 2", False)
    rejected, _ = drawable_names(Prediction("x.png", "rejected", target=FOREIGN.target), None)
    assert rejected.target == "target finding"
    accented = predicted(target="pneumonie b\xe9nigne")
    assert drawable_names(accented, None)[0] is accented


@pytest.mark.parametrize("name", ["pneumonie b\xe9nigne", FOREIGN.target])
def test_no_name_of_a_class_is_drawn_as_question_marks(name, monkeypatch):
    drawn, original = [], cv2.putText
    monkeypatch.setattr(cv2, "putText", lambda *words: (drawn.append(words[1]), original(*words)))
    prediction = replace(
        FOREIGN, probabilities={"normal": 0.2, name: 0.8}, target=name, decision=name, prediction_set=(name,)
    )
    draw_prediction(prediction, radiograph(), replace(heat(), finding=name), POINT)
    assert drawn
    assert not [line for line in drawn if "?" in line]


def test_png_is_written_and_a_closed_place_is_one_clear_error(tmp_path):
    drawn = draw_prediction(predicted(), radiograph())
    write_png(drawn, tmp_path / "x.png")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "x.png")), drawn)
    with Image.open(tmp_path / "x.png") as image:
        image.verify()  # also the checksum of the text chunk
    with Image.open(tmp_path / "x.png") as image:
        assert image.text == {"Software": "Pneumoscope"}
    with pytest.raises(DataError, match="cannot write there"):
        write_png(drawn, tmp_path / "gone" / "x.png")


def test_long_names_that_begin_alike_stay_apart():
    names = [f"bacterial pneumonia in the {side} lower lobe" for side in ("left", "right")]
    shown = [shortened(name, 180) for name in names]
    assert all(text_width(name) <= 180 for name in shown)
    uid = "1.2.276.0.7230010.3.1.4.8323329.11566.1517874485.681127.dcm"
    both_lines = shortened(uid, 200, lines=2)
    assert len(wrapped(both_lines, 200)) == 2
    assert both_lines.endswith("681127.dcm")
    assert shortened("normal", 180) == "normal"


def test_names_of_files_and_classes_are_drawn_to_their_end():
    def drawn(name: str, path: str) -> np.ndarray:
        prediction = Prediction(
            path, "ok", probabilities={name: 0.9, "normal": 0.1}, target="pneumonia", p_target=0.9
        )
        return draw_prediction(prediction, radiograph())

    long = "bacterial pneumonia in the lower lobe of the lung"
    assert not np.array_equal(drawn(f"{long} left", "x.png"), drawn(f"{long} right", "x.png"))
    file = "1.2.276.0.7230010.3.1.4.8323329.11566.1517874485.68112"
    assert not np.array_equal(drawn("a", f"{file}1.dcm"), drawn("a", f"{file}2.dcm"))
