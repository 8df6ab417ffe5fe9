"""The lung segmenter: a small U-Net as ONNX, trained by `pneumoscope train-lungs`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumoscope.image.lungs import LUNG_INPUT_SIZE
from pneumoscope.image.resample import resample
from pneumoscope.model.runtime import OnnxRuntime

__all__ = ["LUNGS_FILE", "LUNG_INPUT_SIZE", "OnnxLungSegmenter"]

LUNGS_FILE = "lungs.onnx"

Floats = npt.NDArray[np.float32]


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

    def __call__(self, pixels: Floats) -> Floats:
        """Return the probability of lung, shape (128, 128), over the whole (H, W) image."""
        one: Floats = self.batch(resample(pixels, LUNG_INPUT_SIZE, LUNG_INPUT_SIZE)[None])[0]
        return one

    def batch(self, pixels: Floats) -> Floats:
        """Return the probability of lung for N squashed images, shape (N, 128, 128), in that shape."""
        (probability,) = self._run(pixels[:, None], ("probability",))
        found: Floats = probability[:, 0]
        return found
