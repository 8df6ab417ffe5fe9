"""Whether heat maps show what the network goes by: insertion and deletion curves.

Petsiuk et al., *RISE: Randomized Input Sampling for Explanation of Black-box Models*, BMVC 2018: the area
under the probability while the image is uncovered, or covered, from the map's strongest place to its
weakest. What is covered shows another patient's normal chest, in the same frame. RISE covers with a heavy
blur; these curves are made too, but a chest without detail is no healthy chest: networks tend to call it
pneumonia, and then little rises or falls.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.evaluation.scores import FloatArray
from pneumoscope.image.standardise import Standardised
from pneumoscope.predict.occlusion import LogOdds, blurred

__all__ = ["CURVES", "STEPS", "curve", "faithfulness"]

Floats = npt.NDArray[np.float32]

STEPS = 20
"""Steps of a curve."""

CURVES = ("insertion", "insertion_other", "insertion_blur", "deletion", "deletion_other", "deletion_blur")
"""What is measured: with the image's own map, another patient's, and its own under blur."""


def faithfulness(
    log_odds: LogOdds, seen: Standardised, chest: Standardised, heat: Floats, other: Floats | None
) -> dict[str, Any]:
    """Return the areas under insertion and deletion curves of one map, and the curves.

    Parameters
    ----------
    log_odds : callable
        The network.
    seen : Standardised
        Its input.
    chest : Standardised
        A normal image of another patient, to cover with.
    heat : ndarray of float32, shape (h, w)
        The map over the content of the input.
    other : ndarray of float32 or None
        The map of another patient, for comparison.

    Returns
    -------
    dict
        By name: areas in [0, 1]; curves, shape (`STEPS` + 1,), under the name with ``_curve``; and
        ``p_blurred``, the probability that the network gives the blurred image.
    """
    blur = blurred(seen.pixels)
    row: dict[str, Any] = {"p_blurred": float(_probability(log_odds(blur[None]))[0])}
    cover = _in_frame_of(seen, chest)
    for suffix, one, covered in (("", heat, cover), ("_other", other, cover), ("_blur", heat, blur)):
        if one is None:
            continue
        for name in ("insertion", "deletion"):
            values = curve(log_odds, seen, covered, one, insert=name == "insertion")
            row[f"{name}{suffix}"] = float(np.trapezoid(values, dx=1 / STEPS))
            row[f"{name}{suffix}_curve"] = values
    return row


def _in_frame_of(seen: Standardised, chest: Standardised) -> Floats:
    """Bring a chest's content to where another input has its own."""
    (top, left, bottom, right), (rows, columns) = _content(seen), _slices(chest)
    cover, shape = seen.pixels.copy(), (right - left, bottom - top)
    for channel, source in zip(cover, chest.pixels, strict=True):
        channel[top:bottom, left:right] = cv2.resize(source[rows, columns], shape)
    return cover


def _content(seen: Standardised) -> tuple[int, int, int, int]:
    top, left, bottom, right = (round(edge * seen.pixels.shape[-1]) for edge in seen.content)
    return top, left, bottom, right


def _slices(seen: Standardised) -> tuple[slice, slice]:
    top, left, bottom, right = _content(seen)
    return slice(top, bottom), slice(left, right)


def curve(log_odds: LogOdds, seen: Standardised, cover: Floats, heat: Floats, *, insert: bool) -> FloatArray:
    """Return the probability of pneumonia while the image is uncovered or covered along a map.

    Parameters
    ----------
    log_odds : callable
        The network.
    seen : Standardised
        Its input.
    cover : ndarray of float32, shape (C, S, S)
        What shows where the image is covered.
    heat : ndarray of float32, shape (h, w)
        The map over the content of the input. Where it is level, the order is random but fixed.
    insert : bool
        Uncover the image; else cover it bit by bit.

    Returns
    -------
    ndarray of float64, shape (`STEPS` + 1,)
        At 0, 1/STEPS, …, 1 of the content's area.
    """
    side = seen.pixels.shape[-1]
    rows, columns = _slices(seen)
    shape = (columns.stop - columns.start, rows.stop - rows.start)
    fitting: Floats = cv2.resize(heat, shape, interpolation=cv2.INTER_LINEAR)
    ties = np.random.default_rng(0).permutation(fitting.size)
    rank = np.empty(fitting.size, np.int64)
    rank[np.lexsort((ties, -fitting.ravel()))] = np.arange(fitting.size)
    depth = np.full((side, side), 2.0)  # borders never change
    depth[rows, columns] = (rank.reshape(fitting.shape) + 0.5) / fitting.size
    reached = (depth <= np.linspace(0, 1, STEPS + 1)[:, None, None])[:, None]
    images = np.where(reached == insert, seen.pixels, cover).astype(np.float32)
    return _probability(log_odds(images))


def _probability(log_odds: FloatArray) -> FloatArray:
    p: FloatArray = 1 / (1 + np.exp(-log_odds))
    return p
