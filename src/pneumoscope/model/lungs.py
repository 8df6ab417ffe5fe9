"""The lung segmenter: a small U-Net as ONNX, trained by `pneumoscope train-lungs`."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.image.lungs import LUNG_INPUT_SIZE
from pneumoscope.image.resample import resample
from pneumoscope.model.runtime import OnnxRuntime

__all__ = ["LUNGS_FILE", "LUNG_INPUT_SIZE", "LungsOnBlack", "OnnxLungSegmenter"]

LUNGS_FILE = "lungs.onnx"

Floats = npt.NDArray[np.float32]

BLACK = 8 / 255
"""Grey levels up to here are black where only the lungs are left."""


class OnnxLungSegmenter:
    """Lung probability from a U-Net on the squashed image.

    Parameters
    ----------
    path : Path
        An ONNX file that takes ``[N, 1, 128, 128]`` in [0, 1] and gives ``probability`` of that shape.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._run = OnnxRuntime(path)

    @cached_property
    def identity(self) -> str:
        """The sha256 of its file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def __call__(self, pixels: Floats) -> Floats:
        """Return the probability of lung, shape (128, 128), over the whole (H, W) image."""
        one: Floats = self.batch(resample(pixels, LUNG_INPUT_SIZE, LUNG_INPUT_SIZE)[None])[0]
        return one

    def batch(self, pixels: Floats) -> Floats:
        """Return the probability of lung for N squashed images, shape (N, 128, 128), in that shape."""
        (probability,) = self._run(pixels[:, None], ("probability",))
        found: Floats = probability[:, 0]
        return found


class LungsOnBlack:
    """The lungs of an image of which nothing else is left: all that is not black.

    Some published data sets have only that; a segmenter that was trained on whole radiographs does not know
    such images.

    Parameters
    ----------
    inverted : bool
        Whether the grey levels inside the lungs are inverted, air bright and opacities dark.
    """

    def __init__(self, *, inverted: bool = False) -> None:
        self.inverted = inverted

    @property
    def identity(self) -> str:
        """What the lungs that it finds depend on."""
        return f"lungs on black{', inverted' if self.inverted else ''}"

    def corrected(self, pixels: Floats) -> Floats:
        """Return grey levels, shape (H, W), with air dark inside the lungs and black around them."""
        # A margin is cut off the edge, where JPEG mixes lung and black.
        shown = cv2.erode(_shown(pixels), np.ones((5, 5), np.uint8)) > 0
        levels = 1 - pixels if self.inverted else pixels
        # The darkest place of a lung stays lighter than what is around it.
        return np.where(shown, np.maximum(levels, 2 * BLACK), 0).astype(np.float32)

    def batch(self, pixels: Floats) -> Floats:
        """Return 1 inside the lungs and 0 outside for N squashed images, shape (N, 128, 128)."""
        return np.stack([_shown(one) for one in pixels]).astype(np.float32)


def _shown(pixels: Floats) -> npt.NDArray[np.uint8]:
    """Return what is not black, without specks, shape (H, W)."""
    shown = (pixels > BLACK).astype(np.uint8)
    opened: npt.NDArray[np.uint8] = cv2.morphologyEx(shown, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return opened
