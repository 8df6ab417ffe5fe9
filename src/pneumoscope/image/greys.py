"""From a DICOM frame's stored words to grey levels in [0, 1], bright = dense.

The steps are those of PS3.3 C.11 and PS3.4 annex N: stored value, modality LUT, VOI LUT or window,
presentation.
A word has at most 16 bits, so the steps run once over a table of all words and the pixels are looked up
in it: exact, and with no floating-point copy of the image on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.image.frames import Frame

__all__ = ["GreyPipeline", "LookupTable", "Window", "to_grey"]

Values = npt.NDArray[np.float64]

# Without a window, these percentiles of the image become black and white: the extremes belong
# to lead markers and dead detector elements.
PERCENTILES = (0.1, 99.9)
# Rec. 601, as for every other colour image here.
LUMINANCE = (0.299, 0.587, 0.114)
# Rows looked up at a time: the lookup widens its indices to 64 bits.
ROWS = 128


@dataclass(frozen=True, eq=False, slots=True)
class LookupTable:
    """A modality, VOI or palette lookup table.

    Parameters
    ----------
    first : int
        The input that the first entry is for; inputs outside take the nearest entry.
    entries : ndarray of float64, shape (N,)
        Outputs.
    maximum : int
        The largest output that its number of bits allows.
    """

    first: int
    entries: Values
    maximum: int

    def __call__(self, values: Values) -> Values:
        """Look up values of any shape."""
        index = np.clip(np.rint(values) - self.first, 0, self.entries.size - 1)
        outputs: Values = self.entries[index.astype(np.intp)]
        return outputs


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
        The modality and VOI LUT where they are tables; a VOI LUT goes before a window.
    window : Window or None
        The first window.
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
    window: Window | None = None
    padding: tuple[int, int] | None = None
    inverse: bool = False
    palette: tuple[LookupTable, ...] = ()
    color: bool = False


def to_grey(frame: Frame, pipeline: GreyPipeline) -> npt.NDArray[np.float32]:
    """Turn stored words into grey levels.

    Parameters
    ----------
    frame : Frame
        Words of shape (H, W).
    pipeline : GreyPipeline
        The steps.

    Returns
    -------
    ndarray of float32, shape (H, W)
        In [0, 1], bright = dense.

    Raises
    ------
    ValueError
        If the steps give no number for some stored value.
    """
    words = frame.words
    # Header values may be anything; an overflow is detected in the result.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        grey = _grey_table(frame, pipeline)
    if np.isnan(grey).any():
        raise ValueError("its rescale or window values lead to no grey levels")
    table = np.clip(grey, 0, 1).astype(np.float32)
    pixels = np.empty(words.shape, np.float32)
    for row in range(0, words.shape[0], ROWS):
        np.take(table, words[row : row + ROWS], out=pixels[row : row + ROWS], mode="clip")
    return pixels


def _grey_table(frame: Frame, pipeline: GreyPipeline) -> Values:
    """Return the grey level of every possible word; outside [0, 1] where the window cuts it off."""
    stored = _stored_values(frame, pipeline.signed)
    if pipeline.color:
        grey = stored / ((1 << frame.bits) - 1)
    elif pipeline.palette:
        shares = zip(LUMINANCE, pipeline.palette, strict=True)
        grey = sum((share * table(stored) / table.maximum for share, table in shares), np.zeros(stored.shape))
    else:
        values = (
            pipeline.modality(stored) if pipeline.modality else stored * pipeline.slope + pipeline.intercept
        )
        outside = np.zeros(stored.shape, dtype=bool)
        if pipeline.padding is not None:
            outside = (stored >= pipeline.padding[0]) & (stored <= pipeline.padding[1])
        if pipeline.voi:
            grey = pipeline.voi(values) / pipeline.voi.maximum
        elif pipeline.window:
            grey = pipeline.window(values)
        else:
            grey = _stretch(frame.words, values, outside)
        grey = 1 - grey if pipeline.inverse else grey
        grey = np.where(outside, 0, grey)
    return grey


def _stored_values(frame: Frame, signed: bool) -> Values:
    """Return the stored value of every possible word."""
    size = 8 * frame.words.dtype.itemsize
    bits = min(frame.bits, size - frame.shift)
    values = (np.arange(1 << size) >> frame.shift) & ((1 << bits) - 1)
    if signed:
        sign = 1 << (bits - 1)
        values = (values ^ sign) - sign
    return values.astype(np.float64)


def _stretch(
    words: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], values: Values, outside: npt.NDArray[np.bool_]
) -> Values:
    """Map the percentiles of the image to 0 and 1, padding left out."""
    counts = cv2.calcHist([words], [0], None, [values.size], [0, values.size]).ravel().astype(np.float64)
    counts[outside] = 0
    used = np.flatnonzero(counts)
    if used.size == 0:
        return np.zeros(values.shape)
    used = used[np.argsort(values[used], kind="stable")]
    cumulated = np.cumsum(counts[used])
    ends = np.searchsorted(cumulated, np.array(PERCENTILES) / 100 * cumulated[-1])
    low, high = values[used[np.minimum(ends, used.size - 1)]]
    if high <= low:
        low, high = values[used[0]], values[used[-1]]
    if high <= low:
        return np.zeros(values.shape)
    stretched: Values = np.clip((values - low) / (high - low), 0, 1)
    return stretched
