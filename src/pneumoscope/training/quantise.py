"""Eight-bit networks: static quantisation of an exported network by ONNX Runtime.

Jacob et al., *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference*,
CVPR 2018. Whether it pays depends on network and processor: `benchmarks/runtimes.py` measures both sides.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from pneumoscope.errors import DataError

__all__ = ["quantise"]

# Images a call while ranges are measured.
BATCH = 16
# The head stays in float: heat maps are features times its weights, as logits are.
OPERATIONS = ["Conv", "Add", "Relu", "MaxPool"]


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Hands out images in batches."""

    def __init__(self, name: str, images: npt.NDArray[np.float32]) -> None:
        starts = range(0, len(images), BATCH)
        self._batches: Iterator[dict[str, npt.NDArray[np.float32]]] = iter(
            [{name: images[start : start + BATCH]} for start in starts]
        )

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        return next(self._batches, None)


def quantise(model_path: Path, out: Path, inputs: npt.NDArray[np.float32]) -> Path:
    """Write a network with 8-bit weights, by channel, and 8-bit activations; its head stays in float.

    Weights are signed and activations unsigned, which processors without VNNI multiply fastest; weights keep
    7 bits, so that there the sum of two products does not overflow 16.

    Parameters
    ----------
    model_path : Path
        A network as `export_onnx` writes it.
    out : Path
        The file to write.
    inputs : ndarray of float32, shape (N, C, H, W)
        Standardised training images in [0, 1], on which the ranges of the activations are measured; a few
        hundred are enough.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    DataError
        If there are no images.
    """
    if not len(inputs):
        raise DataError(f"{model_path}: no images to measure its activations on; give a few hundred")
    name = ort.InferenceSession(str(model_path), providers=["CPUExecutionProvider"]).get_inputs()[0].name
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends the step that was just done
    try:
        with tempfile.TemporaryDirectory() as place:
            plain = Path(place, "plain.onnx")
            # The exported graph has its shapes already; the symbolic pass stumbles over the free batch size.
            quant_pre_process(str(model_path), str(plain), skip_symbolic_shape=True)
            quantize_static(
                str(plain),
                str(out),
                _Images(name, inputs),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                op_types_to_quantize=OPERATIONS,
            )
    finally:
        logger.setLevel(level)
    return out
