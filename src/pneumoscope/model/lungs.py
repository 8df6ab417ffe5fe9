"""The lung segmenter in use: a small U-Net as ONNX, trained by `pneumoscope train-lungs`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumoscope.image.standardise import resize
from pneumoscope.model.runtime import OnnxRuntime

__all__ = ["LUNGS_FILE", "LUNG_INPUT_SIZE", "OnnxLungSegmenter"]

LUNGS_FILE = "lungs.onnx"
LUNG_INPUT_SIZE = 128


class OnnxLungSegmenter:
    """Lung probability from a U-Net on the squashed picture.

    Parameters
    ----------
    path : Path
        An ONNX file that takes ``[N, 1, 128, 128]`` in [0, 1] and gives ``probability`` of that shape.
    """

    def __init__(self, path: Path) -> None:
        self._run = OnnxRuntime(path)

    def __call__(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the probability of lung, shape (128, 128), over the whole (H, W) picture."""
        small = resize(pixels, LUNG_INPUT_SIZE, LUNG_INPUT_SIZE)
        (probability,) = self._run(small[None, None], ("probability",))
        one: npt.NDArray[np.float32] = probability[0, 0]
        return one
