"""From a radiograph to the input of a network: the only preprocessing code there is.

Training and prediction call the same `standardise` with the same `InputSpec`, which is part of the bundle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from pneumoscope.domain import Radiograph
from pneumoscope.image.lungs import LUNG_INPUT_SIZE, WHOLE, Box, LungField, LungSegmenter, lung_field
from pneumoscope.image.resample import resample

__all__ = [
    "InputSpec",
    "Standardised",
    "crop",
    "extent",
    "find_lungs",
    "lung_view",
    "mask_of_input",
    "rotated_box",
    "standardise",
    "standardise_with_lungs",
]

Pixels = npt.NDArray[np.float32]


class InputSpec(BaseModel):
    """How an image is prepared for one network.

    The steps run in this order: lung box, crop, resize, denoise, contrast, grey-level window, lung mask.

    Parameters
    ----------
    size : int
        Height and width in pixels of the network's input.
    fit : {"squash", "pad"}
        Whether the image is stretched to a square, or padded with black borders.
    resampling : {"area", "linear", "cubic"}
        Filter for downsampling; ``linear`` and ``cubic`` are preceded by a Gaussian against aliasing.
    denoise : {"none", "median", "gaussian", "bilateral", "nlm"}
        Filter on the resized image.
    contrast : {"none", "equalize", "clahe"}
        Histogram equalisation, whole or contrast-limited in 8 by 8 tiles.
    lungs : {"none", "crop", "mask", "crop_and_mask"}
        How the lung fields are used.
    lung_margin : float
        Share of the lung box added on each side of a crop.
    window : {"full", "image", "lungs"}
        Grey levels unchanged, or stretched between the 1st and 99th percentile of the image, or of
        the lungs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=224, ge=16, le=1024)
    fit: Literal["squash", "pad"] = "squash"
    resampling: Literal["area", "linear", "cubic"] = "area"
    denoise: Literal["none", "median", "gaussian", "bilateral", "nlm"] = "none"
    contrast: Literal["none", "equalize", "clahe"] = "none"
    lungs: Literal["none", "crop", "mask", "crop_and_mask"] = "none"
    lung_margin: float = Field(default=0.05, ge=0.0, le=0.5)
    window: Literal["full", "image", "lungs"] = "full"

    @property
    def needs_lungs(self) -> bool:
        """Whether a lung segmenter is needed."""
        return self.lungs != "none" or self.window == "lungs"

    @property
    def decode_side(self) -> int:
        """Pixels on the shorter side that decoding must keep: twice the input.

        With these a DCT-scaled JPEG gives the same input as a full one within one grey level, also where a
        lung crop follows.
        """
        return 2 * self.size


@dataclass(frozen=True, eq=False, slots=True)
class Standardised:
    """A network's input and where in the image it came from.

    Parameters
    ----------
    pixels : ndarray of float32, shape (1, S, S)
        Grey levels in [0, 1]; one channel.
    region : Box
        The part of the image that fills the input, before borders.
    content : Box
        The part of the input inside the borders.
    lungs : LungField or None
        The lung fields; None where the spec needs none.
    quarter_turns : int
        By which the image was rotated before, counterclockwise; region, content and lungs are those of the
        rotated image.
    """

    pixels: Pixels
    region: Box
    content: Box
    lungs: LungField | None
    quarter_turns: int = 0


def rotated_box(box: Box, quarter_turns: int) -> Box:
    """Return a part of an image, in fractions, after the image was rotated counterclockwise."""
    for _ in range(quarter_turns % 4):
        top, left, bottom, right = box
        box = (1 - right, top, 1 - left, bottom)
    return box


def standardise(
    radiograph: Radiograph, spec: InputSpec, segment: LungSegmenter | None = None
) -> Standardised:
    """Prepare an image for the network.

    Parameters
    ----------
    radiograph : Radiograph
        Any size.
    spec : InputSpec
        The one that the network was trained with.
    segment : LungSegmenter, optional
        Needed where `spec.needs_lungs`.

    Returns
    -------
    Standardised
        With pixels of shape (1, `spec.size`, `spec.size`).

    Raises
    ------
    ValueError
        If the spec needs lungs and no segmenter is given.
    """
    if not spec.needs_lungs:
        return standardise_with_lungs(radiograph, spec, None)
    if segment is None:
        raise ValueError("this input spec needs a lung segmenter, and none was given")
    return standardise_with_lungs(radiograph, spec, find_lungs(radiograph, segment))


def find_lungs(radiograph: Radiograph, segment: LungSegmenter) -> LungField:
    """Find the lung fields of an image with a segmenter."""
    view = lung_view(radiograph)
    return lung_field(segment(view), view=view)


def lung_view(radiograph: Radiograph) -> Pixels:
    """Return the input of a lung segmenter: the whole image, shape (128, 128)."""
    return resample(radiograph.pixels, LUNG_INPUT_SIZE, LUNG_INPUT_SIZE, extent=extent(radiograph))


def standardise_with_lungs(radiograph: Radiograph, spec: InputSpec, lungs: LungField | None) -> Standardised:
    """Standardise an image whose lung fields are known: for many images they are found in one batch.

    Parameters
    ----------
    lungs : LungField or None
        Of this image; None where the spec needs none.
    """
    region = lungs.padded_box(spec.lung_margin) if lungs and spec.lungs.startswith("crop") else WHOLE
    pixels, content = _fit(radiograph, region, spec)
    pixels = _denoise(pixels, spec.denoise)
    pixels = _contrast(pixels, spec.contrast)
    mask = mask_of_input(lungs, region, content, spec.size) if lungs and lungs.plausible else None
    if mask is not None and not mask.any():  # a strip so thin that no pixel of it is lung
        mask = None
    pixels = _window(pixels, spec.window, content, mask)
    if mask is not None and spec.lungs in ("mask", "crop_and_mask"):
        pixels = np.where(mask, pixels, np.float32(0))
    pixels = np.clip(pixels, 0, 1)  # filters round beyond it
    return Standardised(np.ascontiguousarray(pixels[None]), region, content, lungs)


def crop(image: Pixels, region: Box) -> Pixels:
    """Return the part of an (H, W) image inside a box of fractions; never less than one pixel."""
    if region == WHOLE:
        return image
    height, width = image.shape
    top, left = min(round(region[0] * height), height - 1), min(round(region[1] * width), width - 1)
    bottom = max(top + 1, round(region[2] * height))
    right = max(left + 1, round(region[3] * width))
    return image[top:bottom, left:right]


def extent(radiograph: Radiograph) -> tuple[float, float]:
    """Return the rows and columns of the pixels that are image, whole or fractions.

    A JPEG that was decoded at a half, a quarter or an eighth of its size ends in a row and a column that
    reach beyond the original by a part of a pixel.
    """
    height, width = radiograph.pixels.shape
    return (
        radiograph.height / max(1, round(radiograph.height / height)),
        radiograph.width / max(1, round(radiograph.width / width)),
    )


def _fit(radiograph: Radiograph, region: Box, spec: InputSpec) -> tuple[Pixels, Box]:
    """Fit a part of the image to the square input; return it with the box that is not border."""
    height = width = side = spec.size
    if spec.fit == "pad":
        # Of the original: a DCT-scaled image has nearly, not exactly, its aspect ratio.
        rows, columns = (
            radiograph.height * (region[2] - region[0]),
            radiograph.width * (region[3] - region[1]),
        )
        height = max(1, round(side * min(1.0, rows / columns)))
        width = max(1, round(side * min(1.0, columns / rows)))
    pixels = resample(
        radiograph.pixels,
        height,
        width,
        region=region,
        extent=extent(radiograph),
        resampling=spec.resampling,
    )
    if height == width == side:
        return pixels, WHOLE
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side), np.float32)
    square[top : top + height, left : left + width] = pixels
    return square, (top / side, left / side, (top + height) / side, (left + width) / side)


def _to_bytes(pixels: Pixels) -> npt.NDArray[np.uint8]:
    return np.rint(pixels * 255).astype(np.uint8)


def _to_floats(grey: npt.NDArray[np.uint8]) -> Pixels:
    return grey.astype(np.float32) / np.float32(255)


def _denoise(pixels: Pixels, method: str) -> Pixels:
    quiet: Pixels = pixels
    if method == "median":
        quiet = cv2.medianBlur(pixels, 3)
    elif method == "gaussian":
        quiet = cv2.GaussianBlur(pixels, (3, 3), 0)
    elif method == "bilateral":
        quiet = cv2.bilateralFilter(pixels, d=5, sigmaColor=0.1, sigmaSpace=2)
    elif method == "nlm":
        grey = cv2.fastNlMeansDenoising(_to_bytes(pixels), h=5, templateWindowSize=5, searchWindowSize=11)
        quiet = _to_floats(grey)
    return quiet


def _contrast(pixels: Pixels, method: str) -> Pixels:
    if method == "none":
        return pixels
    grey = _to_bytes(pixels)
    if method == "equalize":
        flat = cv2.equalizeHist(grey)
    else:
        flat = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(grey)
    return _to_floats(flat)


def _pixel_box(box: Box, size: int) -> tuple[slice, slice]:
    top, left, bottom, right = (round(side * size) for side in box)
    return slice(top, bottom), slice(left, right)


def mask_of_input(lungs: LungField, region: Box, content: Box, size: int) -> npt.NDArray[np.bool_]:
    """Resample the lung mask to the network's input.

    Parameters
    ----------
    lungs : LungField
    region, content : Box
        As in `Standardised`.
    size : int
        Side of the input in pixels.

    Returns
    -------
    ndarray of bool, shape (size, size)
        False on borders.
    """
    rows, columns = _pixel_box(content, size)
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    mask = np.zeros((size, size), bool)
    mask[rows, columns] = resample(lungs.mask.astype(np.float32), *shape, region=region) >= 0.5
    return mask


def _window(pixels: Pixels, window: str, content: Box, mask: npt.NDArray[np.bool_] | None) -> Pixels:
    """Stretch grey levels between the 1st and 99th percentile of the lungs, or of the image."""
    if window == "full":
        return pixels
    inside = (
        pixels[mask] if window == "lungs" and mask is not None else pixels[_pixel_box(content, len(pixels))]
    )
    low, high = _percentiles(inside.ravel())
    if high - low < 1 / 255:  # a flat image has nothing to stretch
        return pixels
    stretched = (pixels - low) / (high - low)
    return np.clip(stretched, 0, 1, out=stretched)


def _percentiles(values: Pixels) -> tuple[np.float32, np.float32]:
    """1st and 99th percentile by nearest rank; a partial sort, ten times quicker than `np.percentile`."""
    low, high = round(0.01 * (values.size - 1)), round(0.99 * (values.size - 1))
    ranked = np.partition(values, (low, high))
    return ranked[low], ranked[high]
