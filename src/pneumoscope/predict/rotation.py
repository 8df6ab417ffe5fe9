"""Images that are rotated by 90, 180 or 270 degrees: recognised by the gate's own statistics.

Around the lungs, an upright chest resembles the radiographs that the gate was fitted on, and a rotated one
does not. Of an image that resembles them little the other three orientations are described too, and the most
similar one is taken if it leaves no doubt. Nothing is trained for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pneumoscope.domain import Radiograph
from pneumoscope.image.standardise import extent

__all__ = ["QUARTER_TURNS", "may_be_rotated", "rotated", "rotation_to_upright"]

QUARTER_TURNS = (1, 2, 3)
"""Counterclockwise, by which an image can be rotated."""

# Novelties, chosen on 850 images of four sources: nine of ten upright ones have less than the first, and all
# but one of a hundred less than the second.
DOUBTFUL = 1.6
CONVINCING = 3.0
# Of the given orientation's novelty: so much less the other must have.
LESS = 0.75


def may_be_rotated(novelty: float) -> bool:
    """Return whether the other orientations of an image with this novelty are worth a look."""
    return not novelty <= DOUBTFUL


def rotated(radiograph: Radiograph, quarter_turns: int) -> Radiograph:
    """Return an image rotated counterclockwise by so many quarter turns."""
    height, width = radiograph.height, radiograph.width
    # What reaches beyond the original would lie at the wrong side after the rotation.
    rows, columns = (math.floor(side) for side in extent(radiograph))
    pixels = np.ascontiguousarray(np.rot90(radiograph.pixels[:rows, :columns], quarter_turns))
    if quarter_turns % 2:
        height, width = width, height
    return replace(radiograph, pixels=pixels, height=height, width=width)


def rotation_to_upright(given: float, others: Mapping[int, float]) -> int | None:
    """Return the quarter turns, counterclockwise, that make an image upright; None where it is not clear.

    Parameters
    ----------
    given : float
        Novelty of the image as it was given.
    others : mapping of int to float
        Its novelty after each number of quarter turns.
    """
    best = min(others, key=others.__getitem__)
    return best if others[best] <= min(CONVINCING, LESS * given) else None
