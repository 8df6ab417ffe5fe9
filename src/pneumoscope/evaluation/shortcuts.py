"""What goes with a label by accident: burnt-in letters, exposure text, tubes, borders.

A network that reads the room and not the lungs changes its mind when these come or go (Zech et al., Variable
generalization performance of a deep learning model to detect pneumonia in chest radiographs, PLOS Medicine
2018). `SHORTCUTS` adds each to every image, and one takes away whatever stands near the edge.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.evaluation.corruptions import Corruption

__all__ = ["SHORTCUTS", "write_text"]

Pixels = npt.NDArray[np.float32]

CAPITAL = 21.0
"""Pixels that a capital of OpenCV's font is high at scale 1."""


def write_text(pixels: Pixels, text: str, *, left: float, bottom: float, tall: float, level: float) -> Pixels:
    """Return a copy of a image with bright text burnt in, as technicians do.

    Parameters
    ----------
    pixels : ndarray of float32, shape (H, W)
        In [0, 1].
    text : str
        One line.
    left, bottom : float
        Where its first letter stands, as shares of width and height.
    tall : float
        Height of a capital, as a share of the image's height.
    level : float
        Its grey level, in [0, 1].
    """
    height, width = pixels.shape
    capital = tall * height
    scale, thick = capital / CAPITAL, max(1, round(capital / 8))
    ink = np.zeros(pixels.shape, np.uint8)
    start = (round(left * width), round(bottom * height))
    cv2.putText(ink, text, start, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)
    return _cover(pixels, ink, level)


def _cover(pixels: Pixels, ink: npt.NDArray[np.uint8], level: float) -> Pixels:
    share = ink.astype(np.float32) / np.float32(255)
    covered: Pixels = pixels + share * (np.float32(level) - pixels)
    return covered


def _letter(pixels: Pixels, tall: float, _: np.random.Generator) -> Pixels:
    return write_text(pixels, "R", left=0.05, bottom=0.06 + tall, tall=tall, level=0.95)


def _exposure(pixels: Pixels, tall: float, _: np.random.Generator) -> Pixels:
    first = write_text(pixels, "70 kV", left=0.7, bottom=0.03 + tall, tall=tall, level=0.9)
    return write_text(first, "3.2 mAs", left=0.7, bottom=0.05 + 2.4 * tall, tall=tall, level=0.9)


def _tube(pixels: Pixels, wide: float, _: np.random.Generator) -> Pixels:
    """Draw a line from the upper edge down beside the spine, as a feeding tube runs."""
    height, width = pixels.shape
    down = np.linspace(0, 0.9, 40)
    across = 0.5 + 0.03 * np.sin(5 * down) + 0.08 * np.maximum(0, down - 0.6)
    points = np.rint(np.stack([across * width, down * height], axis=1)).astype(np.int32)
    ink = np.zeros(pixels.shape, np.uint8)
    cv2.polylines(ink, [points], False, 255, max(1, round(wide * width)), cv2.LINE_AA)
    return _cover(pixels, ink, 0.9)


def _border(pixels: Pixels, share: float, _: np.random.Generator) -> Pixels:
    """Frame the image in black; it grows."""
    rows, columns = (round(share * side) for side in pixels.shape)
    framed: Pixels = cv2.copyMakeBorder(
        pixels, rows, rows, columns, columns, cv2.BORDER_CONSTANT, value=(0.0,)
    )
    return framed


def _edge_erased(pixels: Pixels, share: float, _: np.random.Generator) -> Pixels:
    """Blacken what lies near the edge, and with it what was burnt in there."""
    height, width = pixels.shape
    rows, columns = round(share * height), round(share * width)
    erased = np.zeros_like(pixels)
    inside = np.s_[rows : height - rows, columns : width - columns]
    erased[inside] = pixels[inside]
    return erased


SHORTCUTS = (
    Corruption("letter", (0.04, 0.06, 0.08, 0.10, 0.12), _letter),
    Corruption("exposure_text", (0.02, 0.03, 0.04, 0.05, 0.06), _exposure),
    Corruption("tube", (0.006, 0.009, 0.012, 0.016, 0.02), _tube),
    Corruption("black_border", (0.02, 0.04, 0.06, 0.08, 0.10), _border),
    Corruption("edge_erased", (0.02, 0.03, 0.04, 0.05, 0.06), _edge_erased),
)
"""Heights of capitals, width of the tube, width of the border: all as shares of the image's side."""
