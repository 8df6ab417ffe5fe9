"""Whether a display transform shows an image, and a robust replacement where it does not.

A file may be sound and yet hide its image: a window that belongs to other pixels leaves nearly everything
black or white, and 12-bit samples in a 16-bit file leave everything almost black.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

__all__ = [
    "BURNT_IN",
    "count_words",
    "depth_of",
    "hides_image",
    "is_flat",
    "percentiles",
    "stretch",
    "white_of",
]

Values = npt.NDArray[np.float64]
Counts = npt.NDArray[np.float64]

# Without a window, these percentiles of the image become black and white: the extremes belong
# to lead markers and dead detector elements.
PERCENTILES = (0.1, 99.9)
# Percentiles inside of which burnt-in letters do not lie.
BURNT_IN = (1.0, 99.0)
# Bit depths of X-ray detectors, and of the files made from them.
DEPTHS = (8, 10, 12, 14, 16)
# An image has at least so many different values; fewer are a mask, text or a blank exposure.
LEAST_VALUES = 64
# This share of the value range at either end may be cut off: collimation, air, metal.
ENDS = 0.02
# Of the pixels in between, radiographs with their own window clip up to 3% and spread the others over 42% or
# more of the grey levels; half that window clips up to 74%. On 12-bit radiographs a CT or 8-bit window clips
# 86% or more, and a 16-bit window spreads them over 5%.
MOST_CLIPPED = 0.8
LEAST_SPREAD = 0.2


def count_words(words: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> Counts:
    """Return how often each possible word occurs, shape (256,) or (65536,)."""
    size = 1 << (8 * words.dtype.itemsize)
    counts: Counts = cv2.calcHist([words], [0], None, [size], [0, size]).ravel().astype(np.float64)
    return counts


def percentiles(values: Values, counts: Counts, shares: tuple[float, float] = PERCENTILES) -> Values:
    """Return percentiles of values that occur `counts` times each; at least one count is not zero."""
    used = np.flatnonzero(counts)
    used = used[np.argsort(values[used], kind="stable")]
    cumulated = np.cumsum(counts[used])
    ends = np.searchsorted(cumulated, np.array(shares) / 100 * cumulated[-1])
    found: Values = values[used[np.minimum(ends, used.size - 1)]]
    return found


def stretch(values: Values, counts: Counts, shares: tuple[float, float] = PERCENTILES) -> Values:
    """Map two percentiles of an image to 0 and 1.

    Parameters
    ----------
    values : ndarray of float64, shape (N,)
        The value of each word.
    counts : ndarray of float64, shape (N,)
        How often it occurs in the image; 0 for padding.
    shares : tuple of float
        The percentiles.

    Returns
    -------
    ndarray of float64, shape (N,)
        In [0, 1]; all zero for an image of one value.
    """
    used = counts > 0
    if not used.any():
        return np.zeros(values.shape)
    low, high = percentiles(values, counts, shares)
    if high <= low:
        low, high = values[used].min(), values[used].max()
    if high <= low:
        return np.zeros(values.shape)
    stretched: Values = np.clip((values - low) / (high - low), 0, 1)
    return stretched


def is_flat(values: Values, counts: Counts) -> bool:
    """Return whether an image has fewer different values than a radiograph."""
    return np.unique(values[counts > 0]).size < LEAST_VALUES


def hides_image(values: Values, grey: Values, counts: Counts) -> bool:
    """Return whether grey levels leave nearly everything clipped or flat although the values are not.

    Parameters
    ----------
    values, counts : ndarray of float64, shape (N,)
        As for `stretch`.
    grey : ndarray of float64, shape (N,)
        The grey level of each word; in [0, 1] after clipping.
    """
    if not counts.any():
        return False
    low, high = percentiles(values, counts, BURNT_IN)
    used = counts > 0
    if np.count_nonzero(used & (values >= low) & (values <= high)) < LEAST_VALUES:
        return False
    margin = ENDS * (high - low)
    inner = used & (values > low + margin) & (values < high - margin)
    if not inner.any():
        return False
    shown, weights = np.clip(grey[inner], 0, 1), counts[inner]
    clipped = weights[(shown < 1 / 255) | (shown > 254 / 255)].sum() / weights.sum()
    darkest, brightest = percentiles(shown, weights, BURNT_IN)
    return bool(clipped > MOST_CLIPPED or brightest - darkest < LEAST_SPREAD)


def depth_of(largest: float) -> int:
    """Return the number of bits of the narrowest detector depth that holds a value."""
    return next((bits for bits in DEPTHS if largest < 1 << bits), DEPTHS[-1])


def white_of(samples: npt.NDArray[Any], white: int) -> tuple[int, int, bool]:
    """Find the black and white of samples that may leave most of their range unused.

    Parameters
    ----------
    samples : ndarray of uint8 or uint16, shape (H, W)
        Grey levels.
    white : int
        The sample value that stands for white by the file's format.

    Returns
    -------
    black, white : int
        The sample values that become 0 and 1: those of the file, those of a narrower depth where the
        upper bits are unused, or percentiles.
    restored : bool
        They are not those of the file.
    """
    largest = int(samples.max()) if samples.dtype == np.uint16 else 255
    if white <= 255 or largest == 0:
        return 0, white, False
    # Two unused bits are no accident; a single one may be a dark image.
    narrow = (1 << depth_of(largest)) - 1
    if 4 * narrow < white:
        return 0, narrow, True
    counts = count_words(samples)
    values = np.arange(counts.size, dtype=np.float64)
    if not hides_image(values, values / white, counts):
        return 0, white, False
    low, high = percentiles(values, counts, BURNT_IN)
    narrow = (1 << depth_of(high)) - 1
    if narrow < white and not hides_image(values, values / narrow, counts):
        return 0, narrow, True
    return int(low), int(high), True
