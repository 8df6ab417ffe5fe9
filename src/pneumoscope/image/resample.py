"""Resampling of a part of an image, to a fraction of a pixel and without aliasing."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.image.lungs import WHOLE, Box

__all__ = ["resample"]

Pixels = npt.NDArray[np.float32]

KERNELS = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}


def resample(
    samples: npt.NDArray[Any],
    height: int,
    width: int,
    *,
    region: Box = WHOLE,
    extent: tuple[float, float] | None = None,
    resampling: str = "area",
) -> Pixels:
    """Resample a part of an image to (`height`, `width`) without aliasing.

    ``area`` is the mean over what a pixel covers, taken from two points an axis where it shrinks up to
    fourfold, from four where it shrinks more, and from block means beyond eightfold: nearly the exact mean,
    for a fraction of the time. It is linear along an axis that grows.
    The other filters are preceded by a Gaussian of sigma = (scale - 1) / 2, as scikit-image does.

    Parameters
    ----------
    samples : ndarray of uint8 or float32, shape (H, W)
        Grey levels, 0 to 255 or in [0, 1].
    height, width : int
        Of the result.
    region : Box
        The part, as fractions of `extent`.
    extent : tuple of float, optional
        Rows and columns of `samples` that are image, where a scaled decode reaches beyond it; all if not
        given.
    resampling : {"area", "linear", "cubic"}
        See above.

    Returns
    -------
    ndarray of float32, shape (height, width)
        Grey levels in [0, 1].
    """
    rows, columns = extent or samples.shape
    top, left, bottom, right = region[0] * rows, region[1] * columns, region[2] * rows, region[3] * columns
    scale_y, scale_x = (bottom - top) / height, (right - left) / width
    if resampling != "area":
        sigma_y, sigma_x = max(0.0, (scale_y - 1) / 2), max(0.0, (scale_x - 1) / 2)
        samples = _unit(samples)
        if sigma_y > 0 or sigma_x > 0:
            # OpenCV reads sigma 0 as "choose for me", so an axis that does not shrink gets almost none.
            samples = cv2.GaussianBlur(samples, (0, 0), max(sigma_x, 1e-3), sigmaY=max(sigma_y, 1e-3))
        found = _points(samples, (top, left), (scale_y, scale_x), (height, width), KERNELS[resampling])
        return np.clip(found, 0, 1, out=found)
    taps_y, step_y = _plan(scale_y)
    taps_x, step_x = _plan(scale_x)
    if step_y > 1 or step_x > 1:
        blocks = max(1, samples.shape[0] // step_y), max(1, samples.shape[1] // step_x)
        whole = samples[: blocks[0] * step_y, : blocks[1] * step_x]
        samples = cv2.resize(whole, blocks[::-1], interpolation=cv2.INTER_AREA)
        top, left, scale_y, scale_x = top / step_y, left / step_x, scale_y / step_y, scale_x / step_x
    scale, shape = (scale_y / taps_y, scale_x / taps_x), (height * taps_y, width * taps_x)
    points = _unit(_points(samples, (top, left), scale, shape, cv2.INTER_LINEAR))
    if points.shape == (height, width):
        return points
    mean: Pixels = cv2.resize(points, (width, height), interpolation=cv2.INTER_AREA)
    return mean


def _plan(scale: float) -> tuple[int, int]:
    """Return how many points an axis make one pixel, and how many pixels are averaged before."""
    if scale > 4:
        return 4, int(scale / 4)
    return (2, 1) if scale > 1 else (1, 1)


def _points(
    samples: npt.NDArray[Any],
    start: tuple[float, float],
    scale: tuple[float, float],
    shape: tuple[int, int],
    kernel: int,
) -> npt.NDArray[Any]:
    """Sample the image at the centres of a grid whose cells are `scale` pixels and begin at `start`."""
    (top, left), (scale_y, scale_x), (height, width) = start, scale, shape
    found: npt.NDArray[Any]
    if top == left == 0:
        if scale_y == scale_x == 1 and samples.shape == shape:
            return samples
        if kernel == cv2.INTER_LINEAR:
            # Three times quicker than a warp. Pixels beyond the extent come out beyond the shape.
            found = cv2.resize(samples, None, fx=1 / scale_x, fy=1 / scale_y, interpolation=kernel)
            if found.shape[0] >= height and found.shape[1] >= width:
                return found[:height, :width]
    to_source = np.array([[scale_x, 0, left + scale_x / 2 - 0.5], [0, scale_y, top + scale_y / 2 - 0.5]])
    flags = kernel | cv2.WARP_INVERSE_MAP
    found = cv2.warpAffine(samples, to_source, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return found


def _unit(samples: npt.NDArray[Any]) -> Pixels:
    if samples.dtype != np.uint8:
        return samples
    unit: Pixels = np.multiply(samples, np.float32(1 / 255), dtype=np.float32)
    return unit
