"""Augmented copies of a radiograph: how another device, archive or hospital would show the same chest.

Thresholds are chosen on them as well, so that they do not depend on the look of one set of images. Milder and
more mixed than `corruptions`, which measure where a model fails.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePath

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.domain import Radiograph
from pneumoscope.evaluation.corruptions import contrast, gamma, gaussian_noise, jpeg, write_text

__all__ = ["CHANGES", "augmented_copies"]

Pixels = npt.NDArray[np.float32]
Change = Callable[[Pixels, np.random.Generator], Pixels]

CHANGES_PER_COPY = 3
"""Changes in one copy."""


def augmented_copies(radiograph: Radiograph, count: int, seed: int = 0) -> list[Radiograph]:
    """Return copies of a radiograph, each with three mild changes drawn at random.

    Parameters
    ----------
    radiograph : Radiograph
        Pixels in [0, 1]; not changed.
    count : int
        Copies.
    seed : int
        The same seed and file name give the same copies, on any machine.
    """
    name = zlib.crc32(PurePath(radiograph.source).name.encode("utf-8", "backslashreplace"))
    return [_copy(radiograph, np.random.default_rng([seed, name, number])) for number in range(count)]


def _copy(radiograph: Radiograph, rng: np.random.Generator) -> Radiograph:
    pixels = radiograph.pixels
    # In the order in which they happen: exposure, annotation, storage.
    for index in np.sort(rng.choice(len(CHANGES), CHANGES_PER_COPY, replace=False)):
        changed = CHANGES[index](pixels, rng)
        pixels = np.clip(changed, 0, 1).astype(np.float32, copy=False)
    rows, columns = (new / old for new, old in zip(pixels.shape, radiograph.pixels.shape, strict=True))
    return replace(
        radiograph,
        pixels=pixels,
        # The pixels may be a reduced decode: the original's size grows by the same factor.
        height=max(1, round(radiograph.height * rows)),
        width=max(1, round(radiograph.width * columns)),
    )


def _gamma(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return gamma(pixels, 2 ** rng.uniform(-0.4, 0.4), rng)


def _contrast(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    factor, offset = rng.uniform(0.8, 1.2), np.float32(rng.uniform(-0.06, 0.06))
    return contrast(pixels, factor, rng) + offset


def _noise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return gaussian_noise(pixels, rng.uniform(0.005, 0.03), rng)


def _blur(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Up to one pixel of an image of 224."""
    sigma = rng.uniform(0.1, 1.0) * min(pixels.shape) / 224
    changed: Pixels = cv2.GaussianBlur(pixels, (0, 0), max(sigma, 0.1), borderType=cv2.BORDER_REFLECT_101)
    return changed


def _squeeze(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Another aspect, by up to a tenth either way."""
    height, width = pixels.shape
    target = max(1, round(width * rng.uniform(0.9, 1.1)))
    changed: Pixels = cv2.resize(pixels, (target, height), interpolation=cv2.INTER_LINEAR)
    return changed


def _marker(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Burn the letter of a side into an upper corner, as radiographers do."""
    tall = rng.uniform(0.05, 0.1)
    left, bottom = float(rng.choice([0.04, 0.86])), rng.uniform(0.02, 0.1) + tall
    letter, level = str(rng.choice(["L", "R"])), rng.uniform(0.8, 1.0)
    return write_text(pixels, letter, left=left, bottom=bottom, tall=tall, level=level)


def _border(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Frame the image in black, by up to a twentieth on each side."""
    height, width = pixels.shape
    top, bottom = (round(share * height) for share in rng.uniform(0, 0.05, 2))
    left, right = (round(share * width) for share in rng.uniform(0, 0.05, 2))
    changed: Pixels = cv2.copyMakeBorder(pixels, top, bottom, left, right, cv2.BORDER_CONSTANT, value=0)
    return changed


def _resample(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Make it smaller and large again by filters that may differ."""
    height, width = pixels.shape
    factor = rng.uniform(0.5, 0.9)
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    down, up = rng.choice([cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC], 2)
    coarse = cv2.resize(pixels, small, interpolation=int(down))
    changed: Pixels = cv2.resize(coarse, (width, height), interpolation=int(up))
    return changed


def _jpeg(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return jpeg(pixels, int(rng.integers(40, 91)), rng)


CHANGES: tuple[Change, ...] = (
    _gamma,
    _contrast,
    _noise,
    _blur,
    _squeeze,
    _marker,
    _border,
    _resample,
    _jpeg,
)
"""In the order in which they are applied; ``change(pixels, rng)`` with pixels of shape (H, W) in [0, 1]."""
