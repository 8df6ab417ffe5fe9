"""The image of a prediction: the X-ray beside its heat map, the probabilities and the decision.

Drawn with OpenCV and numpy only, so that it works in the base install.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.data.drafts import replacing
from pneumoscope.data.walk import SOFTWARE
from pneumoscope.domain import ANY_POPULATION, Explanation, OperatingPoint, Prediction, Radiograph
from pneumoscope.errors import CAUTIONS
from pneumoscope.report.canvas import (
    ALARM,
    BAR,
    COLOUR_OF,
    FAINT,
    INK,
    LINE,
    TRACK,
    Canvas,
    Colour,
    can_be_drawn,
    shortened,
    text_width,
    wrapped,
    write,
)
from pneumoscope.report.rows import outcome_text, percent_text, plain_text, reason_text, threshold_text, tone

__all__ = [
    "CONTOUR_AT",
    "METHODS",
    "NUMBERED",
    "Canvas",
    "colour_at",
    "colours",
    "draw_prediction",
    "drawable_names",
    "overlay",
    "write_png",
]

IMAGE_SIDE = 560  # pixels on the longer side of the X-ray
LEAST_WIDTH = 900
PANEL_HEIGHT = 300  # below the images; grows with bars and texts, and what is not used is cut off
GAP, MARGIN = 6, 28
HEADLINE_HEIGHT = 21
BAR_HEIGHT = 44

BACKGROUND: Colour = (24, 20, 18)
CAUTION: Colour = (90, 190, 240)

STRONGEST_TINT = 0.55
PNG_HEADER = 33  # bytes of signature and IHDR
CONTOUR_AT = 0.5
"""Evidence at which the contour is drawn, in [0, 1]."""

METHODS = {"cam": "class activation map", "occlusion": "occlusion sensitivity"}
"""Names of the methods of an `Explanation`."""

NOT_FOR_DIAGNOSIS = "Research only. Not for diagnosis."
NUMBERED = "Names in letters that cannot be drawn are given by their number in the order of the model."
"""To be written beside what `drawable_names` has changed."""


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
    """Draw the X-ray beside its heat map, and below them the decision, the probabilities and the scale.

    Parameters
    ----------
    prediction : Prediction
        Of any classes and any target.
    radiograph : Radiograph
        The image that was predicted or rejected.
    explanation : Explanation, optional
        The heat map; the X-ray alone without one.
    point : OperatingPoint, optional
        The one that was used for this prediction; its threshold is marked on the bar of the target.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        Blue, green, red.
    """
    named = prediction
    prediction, explanation = drawable_names(prediction, explanation)
    images = [overlay(radiograph, None)]
    if explanation is not None:
        images.append(overlay(radiograph, explanation))
    drawn = sum(image.shape[1] for image in images) + GAP * (len(images) - 1)
    top, width = images[0].shape[0], max(drawn, LEAST_WIDTH)
    texts = len(prediction.path) + len(prediction.message) + sum(map(len, prediction.probabilities))
    height = top + PANEL_HEIGHT + BAR_HEIGHT * len(prediction.probabilities) + LINE * (texts // 12)
    canvas: Canvas = np.full((height, width, 3), BACKGROUND, np.uint8)
    left = (width - drawn) // 2
    for image in images:
        canvas[:top, left : left + image.shape[1]] = image
        left += image.shape[1] + GAP
    column = (width - 4 * MARGIN) // 3
    columns = [_Column(canvas, MARGIN + n * (column + MARGIN), column, top + MARGIN + LINE) for n in range(3)]
    _decision(columns[0], prediction)
    if prediction.p_target is not None:
        _probabilities(columns[1], prediction, point)
    if explanation is not None:
        _legend(columns[2], explanation)
    columns[2].write(prediction.bundle, FAINT)
    columns[2].write(NOT_FOR_DIAGNOSIS, FAINT)
    if prediction is not named:
        columns[2].write(NUMBERED, FAINT)
    return canvas[: max(column.y for column in columns) - LINE + MARGIN]


def drawable_names(
    prediction: Prediction, explanation: Explanation | None
) -> tuple[Prediction, Explanation | None]:
    """Replace names of classes and target in scripts that OpenCV's fonts do not have, as ``class 2``.

    Returns
    -------
    Prediction, Explanation or None
        The given ones where all names can be drawn.
    """
    names = {prediction.target: "target finding"}
    names |= {name: f"class {number}" for number, name in enumerate(prediction.probabilities, start=1)}
    names = {name: shown for name, shown in names.items() if not can_be_drawn(name)}
    if not names:
        return prediction, explanation

    def of(name: str) -> str:
        return names.get(name, name)

    target, positive = of(prediction.target), prediction.positive
    prediction = replace(
        prediction,
        probabilities={of(name): value for name, value in prediction.probabilities.items()},
        target=target,
        finding=None if prediction.finding is None else of(prediction.finding),
        decision=None if positive is None else target if positive else f"no {target}",
        prediction_set=tuple(map(of, prediction.prediction_set)),
    )
    if explanation is not None:
        explanation = replace(explanation, finding=of(explanation.finding))
    return prediction, explanation


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
    with replacing(path, "wb") as file:
        file.write(png[:PNG_HEADER] + chunk + png[PNG_HEADER:])


def colour_at(evidence: float) -> Colour:
    """Return the colour of evidence in [0, 1]: blue, green, red."""
    blue, green, red = colours(np.array([[evidence]], np.float32))[0, 0].tolist()
    return blue, green, red


def colours(evidence: npt.NDArray[np.float32]) -> Canvas:
    """Colour evidence in [0, 1] from dark violet to yellow: perceptually even, safe for the colour-blind."""
    levels = np.rint(evidence * 255).astype(np.uint8)
    coloured: Canvas = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    return coloured


@dataclass(slots=True)
class _Column:
    """A part of the canvas that is written from top to bottom; `y` is the next baseline."""

    canvas: Canvas
    left: int
    width: int
    y: int

    @property
    def right(self) -> int:
        return self.left + self.width

    def write(self, text: str, colour: Colour) -> None:
        for line in wrapped(text, self.width):
            write(self.canvas, self.left, self.y, line, colour)
            self.y += LINE

    def headline(self, text: str, colour: Colour) -> None:
        self.y += LINE // 3
        for line in wrapped(text, self.width, height=HEADLINE_HEIGHT, bold=True)[:3]:
            write(self.canvas, self.left, self.y, line, colour, height=HEADLINE_HEIGHT, bold=True)
            self.y += LINE + 6


def _decision(column: _Column, prediction: Prediction) -> None:
    """Write the name of the file, the decision, and why there is none or what to know about it."""
    name = plain_text(Path(prediction.path).name)
    column.write(shortened(name, column.width, lines=2), FAINT)
    column.headline(outcome_text(prediction), COLOUR_OF[tone(prediction)])
    reasons = prediction.message or ", ".join(map(reason_text, prediction.reasons))
    if prediction.p_target is None:
        column.write(reasons, INK)
        return
    if prediction.prediction_set or prediction.uncertain:
        classes = ", ".join(prediction.prediction_set) or "no class"
        column.write(f"not ruled out: {classes}", FAINT)
    if prediction.reasons:
        forced = any(reason not in CAUTIONS for reason in prediction.reasons)
        lead = "Rejected, but predicted on request. " if forced else ""
        column.write(f"{lead}{reasons}", ALARM if forced else CAUTION)


def _probabilities(column: _Column, prediction: Prediction, point: OperatingPoint | None) -> None:
    """Draw a bar for the target, then for each class in order."""
    canvas, left, right = column.canvas, column.left, column.right
    classes = [item for item in prediction.probabilities.items() if item[0] != prediction.target]
    for number, (name, value) in enumerate([(prediction.target, prediction.p_target or 0.0), *classes]):
        y, shown = column.y, percent_text(value)
        write(canvas, left, y, shortened(name, column.width - text_width(shown) - MARGIN), INK)
        write(canvas, right, y, shown, INK, align_right=True)
        canvas[y + 8 : y + 16, left:right] = TRACK
        canvas[y + 8 : y + 16, left : left + round(value * column.width)] = BAR
        if number == 0 and point is not None:
            x = min(right - 2, left + round(point.threshold * column.width))
            canvas[y + 4 : y + 20, x : x + 2] = INK
        column.y += BAR_HEIGHT
    if point is not None:
        population = "" if point.population == ANY_POPULATION else f", {point.population}"
        column.write(f"| threshold {point.name}: {threshold_text(point.threshold)}{population}", FAINT)


def _legend(column: _Column, explanation: Explanation) -> None:
    """Draw the scale of the heat map."""
    canvas, left, right = column.canvas, column.left, column.right
    column.write(f"evidence for {explanation.finding}", INK)
    column.write(f"{METHODS[explanation.method]}; contour at {CONTOUR_AT:.0%}", FAINT)
    y = column.y
    canvas[y - 4 : y + 6, left:right] = colours(
        np.linspace(0, 1, column.width, dtype=np.float32)[None].repeat(10, axis=0)
    )
    at = left + round(CONTOUR_AT * column.width)
    canvas[y - 8 : y + 10, at : at + 2] = INK
    write(canvas, left, y + 28, "none", FAINT)
    write(canvas, right, y + 28, "strongest", FAINT, align_right=True)
    column.y = y + 28 + 2 * LINE - LINE // 2
