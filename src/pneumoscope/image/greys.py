"""From a DICOM frame's stored words to grey levels in [0, 1], bright = dense.

The steps are those of PS3.3 C.11 and PS3.4 annex N: stored value, modality LUT, VOI LUT or window,
presentation.
A word has at most 16 bits, so the steps run once over a table of all words and the pixels are looked up
in it: exact, and with no floating-point copy of the image on the way. Where the VOI LUT or window hides the
image, the next one is tried, and last a stretch of the values themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumoscope.image.frames import Frame
from pneumoscope.image.levels import BURNT_IN, count_words, hides_image, is_flat, stretch
from pneumoscope.image.lookup import LookupTable
from pneumoscope.image.raster import COLOUR_SIDE, colour_of

__all__ = ["GreyPipeline", "Window", "palette_colour", "to_grey"]

Values = npt.NDArray[np.float64]

# Rec. 601, as for every other colour image here.
LUMINANCE = (0.299, 0.587, 0.114)
# Rows looked up at a time: the lookup widens its indices to 64 bits.
ROWS = 128


@dataclass(frozen=True, slots=True)
class Window:
    """A window with its function: ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID`` (PS3.3 C.11.2.1.2-3)."""

    center: float
    width: float
    function: str = "LINEAR"

    def __call__(self, values: Values) -> Values:
        """Map values to [0, 1]."""
        if self.function == "SIGMOID":
            exponent = np.clip(-4 * (values - self.center) / self.width, -500, 500)
            return 1 / (1 + np.exp(exponent))
        if self.function == "LINEAR_EXACT":
            return np.clip((values - self.center) / self.width + 0.5, 0, 1)
        width = max(self.width - 1, 1e-6)  # a width of 1 is a threshold
        return np.clip((values - (self.center - 0.5)) / width + 0.5, 0, 1)


@dataclass(frozen=True, eq=False, slots=True)
class GreyPipeline:
    """The grey-level steps of a header.

    Parameters
    ----------
    signed : bool
        Stored values are in two's complement.
    slope, intercept : float
        The modality LUT where it is linear.
    modality, voi : LookupTable or None
        The modality and VOI LUT where they are tables; a VOI LUT goes before the windows.
    windows : tuple of Window
        In the header's order; one that hides the image gives way to the next.
    padding : tuple of int or None
        Least and greatest stored value that stand for "outside the image"; they become black.
    inverse : bool
        Low values are shown bright.
    palette : tuple of LookupTable
        Red, green and blue tables, where stored values are colours.
    color : bool
        The words are the luminance of a colour frame: no grey-level step applies.
    """

    signed: bool = False
    slope: float = 1.0
    intercept: float = 0.0
    modality: LookupTable | None = None
    voi: LookupTable | None = None
    windows: tuple[Window, ...] = ()
    padding: tuple[int, int] | None = None
    inverse: bool = False
    palette: tuple[LookupTable, ...] = ()
    color: bool = False


def to_grey(frame: Frame, pipeline: GreyPipeline) -> tuple[npt.NDArray[np.float32], bool]:
    """Turn stored words into grey levels.

    Parameters
    ----------
    frame : Frame
        Words of shape (H, W).
    pipeline : GreyPipeline
        The steps.

    Returns
    -------
    pixels : ndarray of float32, shape (H, W)
        In [0, 1], bright = dense.
    restored : bool
        The first VOI LUT or window of the header hid the image and was not used as stated.

    Raises
    ------
    ValueError
        If the steps give no number for some stored value.
    """
    words = frame.words
    # Header values may be anything; an overflow is detected in the result.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        grey, restored = _grey_table(frame, pipeline)
    if np.isnan(grey).any():
        raise ValueError("its rescale or window values lead to no grey levels")
    table = np.clip(grey, 0, 1).astype(np.float32)
    pixels = np.empty(words.shape, np.float32)
    for row in range(0, words.shape[0], ROWS):
        np.take(table, words[row : row + ROWS], out=pixels[row : row + ROWS], mode="clip")
    return pixels, restored


def palette_colour(frame: Frame, pipeline: GreyPipeline) -> float:
    """Return `pneumoscope.image.raster.colour_of` a frame whose stored values are colours."""
    down, across = (-(-side // COLOUR_SIDE) for side in frame.words.shape)
    stored = _stored_values(frame, pipeline.signed)
    tables = _palette(pipeline, stored, count_words(frame.words))
    values = stored[frame.words[::down, ::across]]
    shares = np.stack([table(values) / table.maximum for table in tables], axis=-1)
    return colour_of(np.rint(shares.clip(0, 1) * 65535).astype(np.uint16))


def _palette(pipeline: GreyPipeline, stored: Values, counts: Values) -> list[LookupTable]:
    low_high = _extremes(stored, counts)
    return [table.aligned(*low_high) for table in pipeline.palette]


def _grey_table(frame: Frame, pipeline: GreyPipeline) -> tuple[Values, bool]:
    """Return the grey level of every possible word, outside [0, 1] where a window cuts it off."""
    stored = _stored_values(frame, pipeline.signed)
    if pipeline.color:
        return stored / ((1 << frame.bits) - 1), False
    counts = count_words(frame.words)
    if pipeline.palette:
        shares = zip(LUMINANCE, _palette(pipeline, stored, counts), strict=True)
        return sum((share * table(stored) / table.maximum for share, table in shares), 0 * stored), False
    low_high = _extremes(stored, counts)
    outside = np.zeros(stored.shape, dtype=bool)
    if pipeline.padding is not None:
        outside = (stored >= pipeline.padding[0]) & (stored <= pipeline.padding[1])
    # A padding range over a whole image is wrong.
    all_outside = not counts[~outside].any() and not is_flat(stored, counts)
    outside &= not all_outside
    counts[outside] = 0
    values = stored * pipeline.slope + pipeline.intercept
    if pipeline.modality:
        looked_up = pipeline.modality.aligned(*low_high)(stored)
        # A table for other pixels maps all of them to its ends.
        if not is_flat(looked_up, counts) or is_flat(stored, counts):
            values = looked_up
    grey, restored = _displayed(values, counts, pipeline)
    grey = 1 - grey if pipeline.inverse else grey
    return np.where(outside, 0, grey), restored or all_outside


def _displayed(values: Values, counts: Values, pipeline: GreyPipeline) -> tuple[Values, bool]:
    """Apply the first of VOI LUT and windows that shows the image, else a stretch of the values."""
    transforms: list[tuple[Values, bool]] = []
    if pipeline.voi:
        table = pipeline.voi.aligned(*_extremes(values, counts))
        transforms.append((table(values) / table.maximum, table.restored))
    transforms += [(window(values), False) for window in pipeline.windows]
    for place, (grey, restored) in enumerate(transforms):
        if not hides_image(values, grey, counts):
            return grey, restored or place > 0
    grey = stretch(values, counts)
    if transforms and hides_image(values, grey, counts):
        grey = stretch(values, counts, BURNT_IN)
    return grey, bool(transforms)


def _extremes(values: Values, counts: Values) -> tuple[float, float]:
    """Return the least and the greatest value that the image has."""
    used = values[counts > 0]
    return (float(used.min()), float(used.max())) if used.size else (0.0, 0.0)


def _stored_values(frame: Frame, signed: bool) -> Values:
    """Return the stored value of every possible word."""
    size = 8 * frame.words.dtype.itemsize
    bits = min(frame.bits, size - frame.shift)
    values = (np.arange(1 << size) >> frame.shift) & ((1 << bits) - 1)
    if signed:
        sign = 1 << (bits - 1)
        values = (values ^ sign) - sign
    return values.astype(np.float64)
