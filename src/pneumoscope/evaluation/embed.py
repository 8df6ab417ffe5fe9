"""Plots and X-rays as text that stands inside an HTML page, with no file beside it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from pneumoscope.evaluation import plots
from pneumoscope.image.decode import read_radiograph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["inline_svg", "thumbnail"]

JPEG_QUALITY = 82
PIXELS_PER_INCH = 101  # text of 9 points comes out at 12.6 pixels, in every plot alike
THUMBNAIL_SIDE = 360
_THEME = {plots.INK: "var(--ink)", plots.MUTED: "var(--muted)", plots.GRID: "var(--line)"}


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """Return a figure as an ``<svg>`` element that follows the page's theme.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Drawn with the inks of `pneumoscope.evaluation.plots`.
    name : str
        Unique on the page: prefix of the ids inside, which would clash between figures.
    label : str
        What the plot shows, for those who hear the page.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in _THEME.items():
        svg = svg.replace(colour, variable)
    # The page sets the width; the view box keeps the shape.
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    widest = round(figure.get_figwidth() * PIXELS_PER_INCH)
    return f'{head} style="max-width:{widest}px" role="img" aria-label="{label}">{rest}'


def thumbnail(path: Path) -> str:
    """Return an X-ray as a small JPEG in a data URI, at its own aspect.

    Raises
    ------
    UnreadableImageError
        If it cannot be read (any more).
    """
    radiograph = read_radiograph(path, min_side=THUMBNAIL_SIDE)
    scale = THUMBNAIL_SIDE / min(radiograph.pixels.shape)
    width, height = (max(1, round(side * min(scale, 1))) for side in radiograph.pixels.shape[::-1])
    grey = cv2.resize(radiograph.pixels, (width, height), interpolation=cv2.INTER_AREA)
    levels = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")
