"""The image of an answer: the X-ray with its heat map, the probabilities, the decision.

Drawn with OpenCV and numpy alone, so that it works in the base install.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Explanation, OperatingPoint, Prediction, Radiograph
from pneumoscope.errors import CAUTIONS, DataError
from pneumoscope.report.rows import plain_text

__all__ = ["CONTOUR_AT", "Canvas", "colour_at", "draw_answer", "overlay", "write_png"]

Canvas = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

IMAGE_SIDE = 720  # pixels on the longer side of the X-ray
PANEL_WIDTH, PANEL_HEIGHT = 340, 540  # the least height
MARGIN = 18
LINE = 24
TEXT_HEIGHT = 13

# Blue, green, red, as OpenCV has them.
BACKGROUND: Colour = (24, 20, 18)
INK: Colour = (238, 236, 232)
FAINT: Colour = (158, 150, 142)
TRACK: Colour = (66, 58, 52)
BAR: Colour = (200, 150, 70)
ALARM: Colour = (70, 110, 245)
CALM: Colour = (130, 190, 90)

STRONGEST_TINT = 0.55
CONTOUR_AT = 0.5
"""Evidence at which a line is drawn, in [0, 1]."""

METHODS = {"cam": "class activation map", "occlusion": "occlusion sensitivity"}
NOT_FOR_DIAGNOSIS = "Research only. Not for diagnosis."


def overlay(radiograph: Radiograph, explanation: Explanation | None, *, side: int = IMAGE_SIDE) -> Canvas:
    """Lay a heat map over an X-ray.

    The tint grows with the evidence and is absent where there is none, so that the X-ray stays readable;
    a contour is drawn at `CONTOUR_AT`.

    Parameters
    ----------
    radiograph : Radiograph
        At its own aspect.
    explanation : Explanation or None
        Without one the X-ray alone is drawn.
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
    mixed = ((1 - tint) * image + tint * _colours(evidence)).astype(np.uint8)
    outlines, _ = cv2.findContours(
        (evidence >= CONTOUR_AT).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    cv2.drawContours(mixed, outlines, -1, INK, 1, cv2.LINE_AA)
    return mixed


def draw_answer(
    prediction: Prediction,
    radiograph: Radiograph,
    explanation: Explanation | None = None,
    operating_point: OperatingPoint | None = None,
) -> Canvas:
    """Draw the X-ray with its heat map beside the probabilities and the decision, or the rejection's reason.

    Parameters
    ----------
    prediction : Prediction
        The answer.
    radiograph : Radiograph
        The image that it speaks of.
    explanation : Explanation, optional
        The heat map.
    operating_point : OperatingPoint, optional
        Its threshold is marked on the bar for pneumonia.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        Blue, green, red.
    """
    image = overlay(radiograph, explanation)
    panel_height = max(image.shape[0], PANEL_HEIGHT)
    canvas: Canvas = np.full((panel_height, image.shape[1] + PANEL_WIDTH, 3), BACKGROUND, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    left = image.shape[1] + MARGIN
    y = _heading(canvas, left, prediction)
    if prediction.p_pneumonia is None:
        y = _paragraph(canvas, left, y, prediction.message or ", ".join(prediction.reasons), INK)
    else:
        y = _probabilities(canvas, left, y, prediction, operating_point)
        if prediction.reasons:
            overridden = any(reason not in CAUTIONS for reason in prediction.reasons)
            lead = "Predicted all the same. " if overridden else ""
            y = _paragraph(canvas, left, y, f"{lead}{prediction.message}", ALARM)
        if explanation is not None:
            _legend(canvas, left, y, explanation)
    bottom = panel_height - MARGIN
    _text(canvas, left, bottom - LINE, prediction.bundle, FAINT)
    _text(canvas, left, bottom, NOT_FOR_DIAGNOSIS, FAINT)
    return canvas


def write_png(image: Canvas, path: Path) -> None:
    """Write a image as PNG.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    _, data = cv2.imencode(".png", image)
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise DataError(f"{path}: cannot write there ({error.strerror}); name another folder") from error


def colour_at(evidence: float) -> Colour:
    """Return the colour of evidence in [0, 1]: blue, green, red."""
    blue, green, red = _colours(np.array([[evidence]], np.float32))[0, 0].tolist()
    return blue, green, red


def _colours(evidence: npt.NDArray[np.float32]) -> Canvas:
    """Colour evidence in [0, 1] from dark violet to yellow: perceptually even, safe for the colour-blind."""
    levels = np.rint(evidence * 255).astype(np.uint8)
    coloured: Canvas = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    return coloured


def _heading(canvas: Canvas, left: int, prediction: Prediction) -> int:
    y = MARGIN + LINE
    for line in _wrapped(plain_text(Path(prediction.path).name), PANEL_WIDTH - 2 * MARGIN)[:2]:
        _text(canvas, left, y, line, FAINT)
        y += LINE
    headline, colour = prediction.decision or prediction.status, INK
    if prediction.decision is not None:
        colour = ALARM if prediction.decision == "pneumonia" else CALM
    y += LINE // 2
    _text(canvas, left, y, headline, colour, height=22, bold=True)
    if prediction.uncertain:
        _text(canvas, left, y + LINE, "uncertain", INK)
    return y + 2 * LINE


def _probabilities(
    canvas: Canvas, left: int, y: int, prediction: Prediction, operating_point: OperatingPoint | None
) -> int:
    rows = (
        ("pneumonia", prediction.p_pneumonia),
        ("normal", prediction.p_normal),
        ("bacterial", prediction.p_bacterial),
        ("viral", prediction.p_viral),
    )
    right = canvas.shape[1] - MARGIN
    for name, value in rows:
        if value is None:
            continue
        _text(canvas, left, y, name, INK)
        _text(canvas, right, y, f"{value:.1%}", INK, align_right=True)
        bar = slice(y + 8, y + 16)
        canvas[bar, left:right] = TRACK
        canvas[bar, left : left + round(value * (right - left))] = BAR
        if name == "pneumonia" and operating_point is not None:
            x = min(right - 2, left + round(operating_point.threshold * (right - left)))
            canvas[y + 4 : y + 20, x : x + 2] = INK
        y += 44
    if operating_point is not None:
        _text(canvas, left, y, f"| {operating_point.name}: {operating_point.threshold:.1%}", FAINT)
        y += LINE
    if prediction.prediction_set or prediction.uncertain:
        kept = ", ".join(prediction.prediction_set) or "no class"
        y = _paragraph(canvas, left, y, f"not ruled out: {kept}", FAINT)
    return y + LINE // 2


def _legend(canvas: Canvas, left: int, y: int, explanation: Explanation) -> None:
    right = canvas.shape[1] - MARGIN
    ramp = np.linspace(0, 1, right - left, dtype=np.float32)[None].repeat(10, axis=0)
    _text(canvas, left, y, f"evidence for {explanation.finding}", INK)
    y = _paragraph(canvas, left, y + LINE, f"{METHODS[explanation.method]}; line at {CONTOUR_AT:.0%}", FAINT)
    canvas[y - 4 : y + 6, left:right] = _colours(ramp)
    at = left + round(CONTOUR_AT * (right - left))
    canvas[y - 8 : y + 10, at : at + 2] = INK
    _text(canvas, left, y + 28, "none", FAINT)
    _text(canvas, right, y + 28, "strongest", FAINT, align_right=True)


def _paragraph(canvas: Canvas, left: int, y: int, text: str, colour: Colour) -> int:
    for line in _wrapped(text, PANEL_WIDTH - 2 * MARGIN):
        _text(canvas, left, y, line, colour)
        y += LINE
    return y


def _wrapped(text: str, width: int) -> list[str]:
    """Break text into lines of at most `width` pixels; a word that is longer is broken too."""
    lines = [""]
    for word in _drawable(text).split():
        for part in _broken(word, width):
            longer = f"{lines[-1]} {part}".strip()
            if _text_width(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(part)
    return [line for line in lines if line]


def _broken(word: str, width: int) -> list[str]:
    parts = [""]
    for letter in word:
        if _text_width(parts[-1] + letter) > width:
            parts.append("")
        parts[-1] += letter
    return parts


def _drawable(text: str) -> str:
    """Replace what OpenCV's fonts do not have."""
    return text.encode("ascii", "replace").decode("ascii")


def _text_width(text: str, height: int = TEXT_HEIGHT, *, bold: bool = False) -> int:
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, 2 if bold else 1
    (width, _), _ = cv2.getTextSize(text, font, _font_scale(height), thickness)
    return int(width)


def _font_scale(height: int) -> float:
    return height / 21  # capitals of this font are 21 pixels high at scale 1


def _text(
    canvas: Canvas,
    x: int,
    y: int,
    text: str,
    colour: Colour,
    *,
    height: int = TEXT_HEIGHT,
    bold: bool = False,
    align_right: bool = False,
) -> None:
    """Write one line with its baseline at `y`, starting or ending at `x`."""
    shown = _drawable(text)
    if align_right:
        x -= _text_width(shown, height, bold=bold)
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, 2 if bold else 1
    cv2.putText(canvas, shown, (x, y), font, _font_scale(height), colour, thickness, cv2.LINE_AA)
