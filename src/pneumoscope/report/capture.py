"""The image of a result for a viewer of an archive: everything that a reader needs stands in it as text.

It shows the X-ray with the heat map and the outlined region beside the result in words, on black, and no
attribute of the patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from pneumoscope.domain import Explanation, OperatingPoint, Population, Prediction, Radiograph
from pneumoscope.report.canvas import (
    ALARM,
    BAR,
    COLOUR_OF,
    FAINT,
    INK,
    TRACK,
    Canvas,
    Colour,
    paragraph,
    shortened,
    text_width,
    wrapped,
    write,
)
from pneumoscope.report.overlay import CONTOUR_AT, METHODS, NUMBERED, colours, drawable_names, overlay
from pneumoscope.report.region import Region
from pneumoscope.report.rows import percent_text, tone
from pneumoscope.report.statements import (
    RESEARCH_USE,
    caution_statements,
    conclusion,
    operating_point_statement,
    population_statement,
    probability_statement,
    rejection_statement,
    set_statement,
)

__all__ = ["Capture", "draw_capture", "draw_notice"]

IMAGE_SIDE = 1024
PANEL_WIDTH = 640
MARGIN = 28
BANNER_HEIGHT = 56
TEXT, SMALL, HEADLINE, BANNER = 16, 13, 26, 20
GAP = 16
BAR_STEP = 54
NOT_A_DEVICE = "Not a medical device: not for any decision about a patient."

BLACK: Colour = (0, 0, 0)
BANNER_BACK: Colour = (24, 62, 92)
BANNER_INK: Colour = (150, 215, 255)
OUTLINE: Colour = (255, 235, 120)


@dataclass(frozen=True, eq=False, slots=True)
class Capture:
    """What is drawn for one image.

    Parameters
    ----------
    prediction : Prediction
    radiograph : Radiograph or None
        The image, or a reduced version of it; None where it was not decoded.
    explanation : Explanation or None
        The heat map.
    region : Region or None
        The strongest region, in pixels of the original.
    point : OperatingPoint or None
        The one that was used.
    validated : sequence of Population
        On whom the model was evaluated.
    caption : str
        Which image of the study this is, without any attribute of the patient.
    side : str
        What is known of the side of the region, such as ``right side of the patient``.
    model : str
        Name and version of model and program.
    """

    prediction: Prediction
    radiograph: Radiograph | None
    explanation: Explanation | None
    region: Region | None
    point: OperatingPoint | None
    validated: Sequence[Population]
    caption: str
    model: str
    side: str = ""


def draw_capture(capture: Capture) -> Canvas:
    """Draw the result of one image.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        Red, green, blue, as DICOM has them.
    """
    prediction, explanation = drawable_names(capture.prediction, capture.explanation)
    numbered = prediction is not capture.prediction
    capture = replace(capture, prediction=prediction, explanation=explanation)
    xray = _xray(capture)
    left = 0 if xray is None else xray.shape[1]
    # As high as its text needs: drawn once on a high canvas, then cut.
    rows = 4096 + BAR_STEP * len(prediction.probabilities)
    panel: Canvas = np.zeros((rows, PANEL_WIDTH, 3), np.uint8)
    bottom = _panel(panel, capture, NUMBERED if numbered else "")
    height = max(bottom + MARGIN, 0 if xray is None else xray.shape[0])
    canvas: Canvas = np.zeros((BANNER_HEIGHT + height, left + PANEL_WIDTH, 3), np.uint8)
    _banner(canvas, RESEARCH_USE)
    if xray is not None:
        top = BANNER_HEIGHT + (height - xray.shape[0]) // 2
        canvas[top : top + xray.shape[0], :left] = xray
    canvas[BANNER_HEIGHT:, left:] = panel[:height]
    return _rgb(canvas)


def draw_notice(title: str, sentences: Sequence[str]) -> Canvas:
    """Draw a text without an image, such as the retraction of a result; red, green, blue."""
    canvas: Canvas = np.zeros((1024, IMAGE_SIDE, 3), np.uint8)
    _banner(canvas, RESEARCH_USE)
    width, y = IMAGE_SIDE - 2 * MARGIN, BANNER_HEIGHT + MARGIN + HEADLINE
    y = paragraph(canvas, MARGIN, y, title, ALARM, width=width, height=HEADLINE) + GAP
    for sentence in sentences:
        y = paragraph(canvas, MARGIN, y, sentence, INK, width=width, height=TEXT) + GAP
    return _rgb(canvas[: max(y + MARGIN, 512)])


def _rgb(canvas: Canvas) -> Canvas:
    return np.ascontiguousarray(canvas[:, :, ::-1])


def _banner(canvas: Canvas, text: str) -> None:
    canvas[:BANNER_HEIGHT] = BANNER_BACK
    write(canvas, MARGIN, BANNER_HEIGHT // 2 + BANNER // 2, text, BANNER_INK, height=BANNER, bold=True)


def _xray(capture: Capture) -> Canvas | None:
    if capture.radiograph is None:
        return None
    image = overlay(capture.radiograph, capture.explanation, side=IMAGE_SIDE)
    if capture.region is not None:
        scale = np.array(image.shape[1::-1]) / (capture.radiograph.width, capture.radiograph.height)
        # With 4 binary digits after the point.
        points = np.rint((capture.region.outline * scale - 0.5) * 16).astype(np.int32)
        cv2.polylines(image, [points[:, None]], True, BLACK, 5, cv2.LINE_AA, 4)
        cv2.polylines(image, [points[:, None]], True, OUTLINE, 2, cv2.LINE_AA, 4)
    return image


def _panel(panel: Canvas, capture: Capture, remark: str) -> int:
    """Write the panel; return where its text ends."""
    prediction, width = capture.prediction, PANEL_WIDTH - 2 * MARGIN
    y = paragraph(panel, MARGIN, MARGIN + TEXT, capture.caption, FAINT, width=width, height=TEXT) + GAP
    for line in wrapped(conclusion(prediction), width, height=HEADLINE, bold=True):
        write(panel, MARGIN, y + GAP, line, COLOUR_OF[tone(prediction)], height=HEADLINE, bold=True)
        y += HEADLINE + GAP
    y += GAP
    if prediction.p_target is None:
        y = paragraph(panel, MARGIN, y + GAP, rejection_statement(prediction), INK, width=width, height=TEXT)
    else:
        y = _result(panel, y + GAP, capture)
    y += GAP
    for text in filter(None, (remark, capture.model, NOT_A_DEVICE)):
        y = paragraph(panel, MARGIN, y, text, FAINT, width=width, height=SMALL)
    return y


def _result(panel: Canvas, y: int, capture: Capture) -> int:
    prediction, width = capture.prediction, PANEL_WIDTH - 2 * MARGIN
    assert prediction.p_target is not None
    threshold = capture.point.threshold if capture.point else None
    y = _bar(panel, y, f"Probability of {prediction.target}", prediction.p_target, threshold)
    for name, value in prediction.probabilities.items():
        if name != prediction.target:
            y = _bar(panel, y, name, value, None)
    sentences = [
        *caution_statements(prediction),
        probability_statement(prediction),
        operating_point_statement(capture.point, prediction.target) if capture.point else "",
        set_statement(prediction),
        population_statement(prediction, capture.validated),
    ]
    cautions = len(caution_statements(prediction))
    for number, sentence in enumerate(sentences):
        if sentence:
            colour = ALARM if number < cautions else INK
            y = paragraph(panel, MARGIN, y, sentence, colour, width=width, height=TEXT) + GAP // 2
    if capture.explanation is not None:
        y = _legend(panel, y + GAP // 2, capture, capture.explanation)
    return y


def _bar(panel: Canvas, y: int, name: str, value: float, threshold: float | None) -> int:
    right, shown = PANEL_WIDTH - MARGIN, percent_text(value)
    room = right - MARGIN - text_width(shown, TEXT) - GAP
    write(panel, MARGIN, y, shortened(name, room, height=TEXT), INK, height=TEXT)
    write(panel, right, y, shown, INK, height=TEXT, align_right=True)
    panel[y + 10 : y + 20, MARGIN:right] = TRACK
    panel[y + 10 : y + 20, MARGIN : MARGIN + round(value * (right - MARGIN))] = BAR
    if threshold is not None:
        x = min(right - 3, MARGIN + round(threshold * (right - MARGIN)))
        panel[y + 5 : y + 25, x : x + 3] = INK
    return y + BAR_STEP


def _legend(panel: Canvas, y: int, capture: Capture, explanation: Explanation) -> int:
    right, width = PANEL_WIDTH - MARGIN, PANEL_WIDTH - 2 * MARGIN
    if capture.region is None:
        where = "No region: the evidence is weak everywhere."
    else:
        side = f" ({capture.side})" if capture.side else ""
        where = f"Strongest evidence, outlined: {capture.region.place}{side}."
    y = paragraph(panel, MARGIN, y, where, INK, width=width, height=TEXT)
    text = (
        f"Colours: {METHODS[explanation.method]} for {explanation.finding}; outlined from {CONTOUR_AT:.0%}."
    )
    y = paragraph(
        panel,
        MARGIN,
        y,
        f"{text} It explains the number; it is no segmentation.",
        FAINT,
        width=width,
        height=SMALL,
    )
    ramp = np.linspace(0, 1, width, dtype=np.float32)[None].repeat(12, axis=0)
    panel[y - 6 : y + 6, MARGIN:right] = colours(ramp)
    write(panel, MARGIN, y + 28, "none", FAINT, height=SMALL)
    write(panel, right, y + 28, "strongest", FAINT, height=SMALL, align_right=True)
    return y + 44 + GAP
