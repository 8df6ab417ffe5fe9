"""A small bundle for tests: a random convolution with a pooled-linear head, made without torch."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pneumoscope.domain import Target
from pneumoscope.image.standardise import InputSpec
from pneumoscope.model.bundle import Bundle, write_bundle
from pneumoscope.model.lungs import LUNG_INPUT_SIZE, LUNGS_FILE
from pneumoscope.model.manifest import BundleManifest

__all__ = ["lungs_onnx", "make_bundle", "network_onnx"]

FEATURES, STRIDE = 4, 8


def make_bundle(
    folder: Path,
    *,
    classes: tuple[str, ...] = ("normal", "bacterial", "viral"),
    target: Target | None = None,
    input: InputSpec | None = None,
    seed: int = 0,
    state: str = "calibrated",
    calibration: dict[str, object] | None = None,
    **fields: object,
) -> Bundle:
    """Write a bundle whose weights are random but fixed by the seed.

    Parameters
    ----------
    folder : Path
        Made if absent.
    classes : tuple of str
        In the order of the outputs.
    target : Target, optional
        Pneumonia, of all classes but the first, if not given.
    input : InputSpec, optional
        64 pixels, one channel, if not given.
    seed : int
        Of the weights.
    state : str
        Of the bundle.
    calibration : dict, optional
        Fields of the default calibration: calibrator, operating_points, conformal, conformal_alpha.
    **fields
        Further fields of the manifest.
    """
    spec = input or InputSpec(size=64)
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(len(classes), FEATURES)).astype(np.float32) * 4
    bias = rng.normal(size=len(classes)).astype(np.float32)
    head = io.BytesIO()
    np.savez(head, weight=weight, bias=bias)
    kernel = rng.normal(size=(FEATURES, 1, STRIDE, STRIDE)).astype(np.float32) / STRIDE
    files: dict[str, bytes | Path] = {
        "model.onnx": network_onnx(kernel, weight, bias, spec.size),
        "head.npz": head.getvalue(),
        "card.md": b"# A model for tests\n",
    }
    if spec.needs_lungs:
        files[LUNGS_FILE] = lungs_onnx()
    content = {
        "name": "tiny",
        "state": state,
        "classes": classes,
        "target": target or Target("pneumonia", classes[1:]),
        "input": spec,
        "calibrations": (calibration or {},),
    }
    manifest = BundleManifest.model_validate(content | fields)
    return write_bundle(folder, manifest, files)


def network_onnx(kernel: np.ndarray, weight: np.ndarray, bias: np.ndarray, size: int) -> bytes:
    """Return a network: strided convolution and ReLU (features), their mean and a linear head (logits)."""
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["raw"], strides=[STRIDE, STRIDE]),
        helper.make_node("Relu", ["raw"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"], transB=1),
    ]
    side = size // STRIDE
    shapes = {"logits": ["batch", len(weight)], "features": ["batch", FEATURES, side, side]}
    inputs = {"images": ["batch", kernel.shape[1], size, size]}
    return _model(nodes, inputs, shapes, {"kernel": kernel, "weight": weight, "bias": bias})


def lungs_onnx() -> bytes:
    """Return a segmenter that finds the same two lungs in every image."""
    mask = np.zeros((1, 1, LUNG_INPUT_SIZE, LUNG_INPUT_SIZE), np.float32)
    mask[..., 24:104, 20:58] = mask[..., 24:104, 70:108] = 1
    zero = np.zeros(1, np.float32)
    nodes = [
        helper.make_node("Mul", ["images", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "mask"], ["probability"]),
    ]
    shape = ["batch", 1, LUNG_INPUT_SIZE, LUNG_INPUT_SIZE]
    return _model(nodes, {"images": shape}, {"probability": shape}, {"zero": zero, "mask": mask})


def _model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list],
    outputs: dict[str, list],
    constants: dict[str, np.ndarray],
) -> bytes:
    def described(shapes: dict[str, list]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in shapes.items()]

    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "tiny", described(inputs), described(outputs), initializer=weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()
