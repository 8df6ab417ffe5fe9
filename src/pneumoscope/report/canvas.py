"""Text on an image, drawn with OpenCV: lines, paragraphs and the colours of a dark reading room."""

from __future__ import annotations

import unicodedata

import cv2
import numpy as np
import numpy.typing as npt

__all__ = [
    "ALARM",
    "BAR",
    "CALM",
    "COLOUR_OF",
    "FAINT",
    "INK",
    "LINE",
    "TEXT_HEIGHT",
    "TRACK",
    "Canvas",
    "Colour",
    "can_be_drawn",
    "paragraph",
    "shortened",
    "text_width",
    "wrapped",
    "write",
]

Canvas = npt.NDArray[np.uint8]
"""Blue, green, red; shape (H, W, 3)."""

Colour = tuple[int, int, int]
"""Blue, green, red, as OpenCV has them."""

INK: Colour = (238, 236, 232)
FAINT: Colour = (158, 150, 142)
TRACK: Colour = (66, 58, 52)
BAR: Colour = (200, 150, 70)
ALARM: Colour = (70, 110, 245)
CALM: Colour = (130, 190, 90)
COLOUR_OF = {"alarm": ALARM, "calm": CALM, "doubt": INK}
"""Of a result, by its `pneumoscope.report.rows.tone`."""

TEXT_HEIGHT = 14
LINE = 25


def paragraph(
    canvas: Canvas, left: int, y: int, text: str, colour: Colour, *, width: int, height: int = TEXT_HEIGHT
) -> int:
    """Write a text in lines of at most `width` pixels, the first baseline at `y`; return the next."""
    for line in wrapped(text, width, height=height):
        write(canvas, left, y, line, colour, height=height)
        y += LINE * height // TEXT_HEIGHT
    return y


def wrapped(text: str, width: int, *, height: int = TEXT_HEIGHT, bold: bool = False) -> list[str]:
    """Break text into lines of at most `width` pixels; a word that is longer is broken too."""

    def fits(line: str) -> bool:
        return text_width(line, height, bold=bold) <= width

    lines = [""]
    for word in _drawable(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if fits(longer):
            lines[-1] = longer
            continue
        lines.append("")
        for letter in word:
            if not fits(lines[-1] + letter):
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line] or [""]


def shortened(text: str, width: int, *, lines: int = 1, height: int = TEXT_HEIGHT) -> str:
    """Return a text for so many lines of `width` pixels; what is too much goes from the middle.

    The end stays: it tells names apart that begin alike, such as those of files.
    """
    shown, kept = text, len(text)
    while kept and len(wrapped(shown, width, height=height)) > lines:
        kept -= 1
        shown = f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"
    return shown


def can_be_drawn(text: str) -> bool:
    """Return whether OpenCV's fonts have a text, but for accents and a few characters."""
    lost = _drawable(text).count("?") - text.count("?")
    return 4 * lost <= len(text)


def _drawable(text: str) -> str:
    """Remove accents, and replace other characters that OpenCV's fonts do not have."""
    letters = (one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    return "".join(letters).encode("ascii", "replace").decode("ascii")


def text_width(text: str, height: int = TEXT_HEIGHT, *, bold: bool = False) -> int:
    """Return the width of a line in pixels."""
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, 2 if bold else 1
    (width, _), _ = cv2.getTextSize(text, font, _font_scale(height), thickness)
    return int(width)


def _font_scale(height: int) -> float:
    return height / 21  # capitals of this font are 21 pixels high at scale 1


def write(
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
        x -= text_width(shown, height, bold=bold)
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, 2 if bold else 1
    cv2.putText(canvas, shown, (x, y), font, _font_scale(height), colour, thickness, cv2.LINE_AA)
