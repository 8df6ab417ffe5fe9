"""The image of a prediction: the X-ray with its heat map, the probabilities and the decision.

Drawn with OpenCV and numpy only, so that it works in the base install.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.data.walk import SOFTWARE
from pneumoscope.domain import ANY_POPULATION, Explanation, OperatingPoint, Prediction, Radiograph
from pneumoscope.errors import CAUTIONS, DataError
from pneumoscope.report.canvas import (
    ALARM,
    BAR,
    CALM,
    FAINT,
    INK,
    LINE,
    TRACK,
    Canvas,
    Colour,
    paragraph,
    text_width,
    wrapped,
    write,
)
from pneumoscope.report.rows import decision_text, plain_text, reason_text

__all__ = [
    "CONTOUR_AT",
    "METHODS",
    "Canvas",
    "colour_at",
    "colours",
    "draw_prediction",
    "overlay",
    "write_png",
]

IMAGE_SIDE = 720  # pixels on the longer side of the X-ray
PANEL_WIDTH, PANEL_HEIGHT = 340, 540  # the least height, with `PANEL_BARS` bars
MARGIN = 18
TEXT_WIDTH = PANEL_WIDTH - 2 * MARGIN
HEADLINE_HEIGHT = 20
BAR_HEIGHT, PANEL_BARS = 44, 4

BACKGROUND: Colour = (24, 20, 18)

STRONGEST_TINT = 0.55
PNG_HEADER = 33  # bytes of signature and IHDR
CONTOUR_AT = 0.5
"""Evidence at which the contour is drawn, in [0, 1]."""

METHODS = {"cam": "class activation map", "occlusion": "occlusion sensitivity"}
"""Names of the methods of an `Explanation`."""

NOT_FOR_DIAGNOSIS = "Research only. Not for diagnosis."


def overlay(radiograph: Radiograph, explanation: Explanation | None, *, side: int = IMAGE_SIDE) -> Canvas:
    """Return an X-ray with a heat map over it.

    The opacity of the colour grows with the evidence, so that the X-ray stays readable; a contour is drawn at
    `CONTOUR_AT`.

    Parameters
    ----------
    radiograph : Radiograph
        Drawn at its own aspect ratio.
    explanation : Explanation or None
        The heat map; the X-ray alone if None.
    side : int
        Pixels on the longer side.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        Blue, green, red.
    """
    # The original's size gives the aspect: a scaled decode may be a pixel off.
    scale = side / max(radiograph.height, radiograph.width)
    height, width = (max(1, round(side * scale)) for side in (radiograph.height, radiograph.width))
    shrinking = max(radiograph.pixels.shape) > side
    method = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    grey = np.clip(cv2.resize(radiograph.pixels, (width, height), interpolation=method), 0, 1)
    image = np.repeat((grey * 255)[:, :, None], 3, axis=2).astype(np.float32)
    if explanation is None:
        return image.astype(np.uint8)
    evidence = np.zeros((height, width), np.float32)
    top, bottom = (round(explanation.region[edge] * height) for edge in (0, 2))
    left, right = (round(explanation.region[edge] * width) for edge in (1, 3))
    shape = (max(1, right - left), max(1, bottom - top))
    fine = np.clip(cv2.resize(explanation.heatmap, shape, interpolation=cv2.INTER_LINEAR), 0, 1)
    evidence[top : top + shape[1], left : left + shape[0]] = fine
    tint = STRONGEST_TINT * evidence[:, :, None]
    mixed = ((1 - tint) * image + tint * colours(evidence)).astype(np.uint8)
    outlines, _ = cv2.findContours(
        (evidence >= CONTOUR_AT).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    cv2.drawContours(mixed, outlines, -1, INK, 1, cv2.LINE_AA)
    return mixed


def draw_prediction(
    prediction: Prediction,
    radiograph: Radiograph,
    explanation: Explanation | None = None,
    point: OperatingPoint | None = None,
) -> Canvas:
    """Draw the X-ray with its heat map beside the probabilities and the decision, or why there is none.

    Parameters
    ----------
    prediction : Prediction
        Of any classes and any target.
    radiograph : Radiograph
        The image that was predicted or rejected.
    explanation : Explanation, optional
        The heat map.
    point : OperatingPoint, optional
        The one that was used for this prediction; its threshold is marked on the bar of the target.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        Blue, green, red.
    """
    image = overlay(radiograph, explanation)
    more_bars = max(0, len(_bars(prediction)) - PANEL_BARS)
    panel_height = max(image.shape[0], PANEL_HEIGHT + more_bars * BAR_HEIGHT)
    canvas: Canvas = np.full((panel_height, image.shape[1] + PANEL_WIDTH, 3), BACKGROUND, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    left = image.shape[1] + MARGIN
    y = _heading(canvas, left, prediction)
    reasons = prediction.message or ", ".join(map(reason_text, prediction.reasons))
    if prediction.p_target is None:
        paragraph(canvas, left, y, reasons, INK, width=TEXT_WIDTH)
    else:
        y = _probabilities(canvas, left, y, prediction, point)
        if prediction.reasons:
            forced = any(reason not in CAUTIONS for reason in prediction.reasons)
            lead = "Rejected, but predicted on request. " if forced else ""
            y = paragraph(canvas, left, y, f"{lead}{reasons}", ALARM, width=TEXT_WIDTH) + LINE // 2
        if explanation is not None:
            _legend(canvas, left, y, explanation)
    bottom = panel_height - MARGIN
    write(canvas, left, bottom - LINE, prediction.bundle, FAINT)
    write(canvas, left, bottom, NOT_FOR_DIAGNOSIS, FAINT)
    return canvas


def write_png(image: Canvas, path: Path) -> None:
    """Write an image as PNG, with a text chunk that marks it as drawn by Pneumoscope.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    _, data = cv2.imencode(".png", image)
    png = data.tobytes()
    mark = b"tEXt" + SOFTWARE
    chunk = struct.pack(">I", len(SOFTWARE)) + mark + struct.pack(">I", zlib.crc32(mark))
    try:
        path.write_bytes(png[:PNG_HEADER] + chunk + png[PNG_HEADER:])
    except OSError as error:
        raise DataError(f"{path}: cannot write there ({error.strerror}); name another folder") from error


def colour_at(evidence: float) -> Colour:
    """Return the colour of evidence in [0, 1]: blue, green, red."""
    blue, green, red = colours(np.array([[evidence]], np.float32))[0, 0].tolist()
    return blue, green, red


def colours(evidence: npt.NDArray[np.float32]) -> Canvas:
    """Colour evidence in [0, 1] from dark violet to yellow: perceptually even, safe for the colour-blind."""
    levels = np.rint(evidence * 255).astype(np.uint8)
    coloured: Canvas = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    return coloured


def _heading(canvas: Canvas, left: int, prediction: Prediction) -> int:
    y, width = MARGIN + LINE, TEXT_WIDTH
    for line in wrapped(plain_text(Path(prediction.path).name), width)[:2]:
        write(canvas, left, y, line, FAINT)
        y += LINE
    colour = INK
    if prediction.positive is not None and not prediction.uncertain:
        colour = ALARM if prediction.positive else CALM
    y += LINE // 2
    for line in wrapped(decision_text(prediction), width, height=HEADLINE_HEIGHT, bold=True)[:3]:
        write(canvas, left, y, line, colour, height=HEADLINE_HEIGHT, bold=True)
        y += LINE + 6
    return y + LINE // 2


def _bars(prediction: Prediction) -> list[tuple[str, float]]:
    """Return names and values of the bars: the target, then the classes in order."""
    if prediction.p_target is None:
        return []
    classes = [item for item in prediction.probabilities.items() if item[0] != prediction.target]
    return [(prediction.target, prediction.p_target), *classes]


def _probabilities(
    canvas: Canvas, left: int, y: int, prediction: Prediction, point: OperatingPoint | None
) -> int:
    right = canvas.shape[1] - MARGIN
    for number, (name, value) in enumerate(_bars(prediction)):
        shown = f"{value:.1%}"
        write(canvas, left, y, wrapped(name, right - left - text_width(shown) - MARGIN)[0], INK)
        write(canvas, right, y, shown, INK, align_right=True)
        canvas[y + 8 : y + 16, left:right] = TRACK
        canvas[y + 8 : y + 16, left : left + round(value * (right - left))] = BAR
        if number == 0 and point is not None:
            x = min(right - 2, left + round(point.threshold * (right - left)))
            canvas[y + 4 : y + 20, x : x + 2] = INK
        y += BAR_HEIGHT
    if point is not None:
        population = "" if point.population == ANY_POPULATION else f", {point.population}"
        y = paragraph(
            canvas, left, y, f"| {point.name}: {point.threshold:.1%}{population}", FAINT, width=TEXT_WIDTH
        )
    if prediction.prediction_set or prediction.uncertain:
        classes = ", ".join(prediction.prediction_set) or "no class"
        y = paragraph(canvas, left, y, f"not ruled out: {classes}", FAINT, width=TEXT_WIDTH)
    return y + LINE // 2


def _legend(canvas: Canvas, left: int, y: int, explanation: Explanation) -> None:
    right = canvas.shape[1] - MARGIN
    ramp = np.linspace(0, 1, right - left, dtype=np.float32)[None].repeat(10, axis=0)
    y = paragraph(canvas, left, y, f"evidence for {explanation.finding}", INK, width=TEXT_WIDTH)
    y = paragraph(
        canvas,
        left,
        y,
        f"{METHODS[explanation.method]}; contour at {CONTOUR_AT:.0%}",
        FAINT,
        width=TEXT_WIDTH,
    )
    canvas[y - 4 : y + 6, left:right] = colours(ramp)
    at = left + round(CONTOUR_AT * (right - left))
    canvas[y - 8 : y + 10, at : at + 2] = INK
    write(canvas, left, y + 28, "none", FAINT)
    write(canvas, right, y + 28, "strongest", FAINT, align_right=True)
