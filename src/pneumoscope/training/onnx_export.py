"""Export of networks to ONNX, checked against the network itself, and their weights in 16 or 8 bits.

Jacob et al., *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference*,
CVPR 2018. Whether 8 bits pay depends on network and processor; `benchmarks/runtimes.py` measures it.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from pneumoscope.domain import Population
from pneumoscope.errors import DataError, PneumoscopeError
from pneumoscope.model.runtime import EXPERT, OF_POPULATION, OnnxRuntime

__all__ = ["TOLERANCE", "export_onnx", "halve", "quantise", "relative_difference"]

TOLERANCE = 1e-3
"""Largest difference allowed between the network and its export, as a share of its largest output above 1."""

OPSET = 18
BATCH = torch.export.Dim("batch", min=1)
# Images per call while the ranges of activations are measured.
RANGE_BATCH = 16
# The head stays in float32: heat maps are features times its weights, and logits must agree with them.
# Clip is ReLU6; left out, it would keep activations in float32 between each convolution and the next.
QUANTISED = ["Conv", "Add", "Clip", "Relu", "MaxPool"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's log of its own progress, and warnings that say nothing to a user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch 2.12 copies a tree specification in a way that torch itself calls deprecated.
            warnings.filterwarnings(
                "ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning
            )
            # Both inputs of a network with an expert have the same batch size, and so the same name for it.
            warnings.filterwarnings(
                "ignore", "# The axis name: batch will not be used, since it shares the same"
            )
            yield
    finally:
        logger.setLevel(level)


def export_onnx(
    network: nn.Module, path: Path, *, size: int, outputs: tuple[str, ...], expert: Population | None = None
) -> float:
    """Write a network as ONNX with a dynamic batch size and compare the two on random images.

    Parameters
    ----------
    network : nn.Module
        Takes ``[N, 1, size, size]`` float32 in [0, 1]; is put into evaluation mode.
    path : Path
        The file to write, weights included, once it agrees with the network.
    outputs : tuple of str
        Names of the outputs.
    expert : Population, optional
        Whose expert the network has: the file states it, and has a second input, ``of_population``, which may
        be left out.

    Returns
    -------
    float
        Largest difference over all outputs; where an output exceeds 1, as a share of its largest value,
        since rounding grows with it.

    Raises
    ------
    PneumoscopeError
        If the network gives values that are not finite, or the difference is above `TOLERANCE`; no file is
        written then.
    """
    network = network.eval().float().cpu()
    images = torch.rand(3, 1, size, size, generator=torch.Generator().manual_seed(0))
    known = [torch.full((len(images),), side) for side in (1.0, -1.0)] if expert else []
    cases: list[tuple[Tensor, ...]] = [(images,), *((images, one) for one in known)]
    expected = [_results(network, case) for case in cases]
    if not all(bool(one.isfinite().all()) for case in expected for one in case):
        raise PneumoscopeError(
            f"{path}: the network gives values that are not finite; train it again, with a lower lr"
        )
    # Written beside first: where the export fails or differs, the path has no file, or the one it had.
    draft = path.with_name(f".{path.name}.new")
    try:
        _write(network, cases[-1], draft, outputs)
        if expert:
            _name_expert(draft, expert)
        runtime = OnnxRuntime(draft)
        found = [runtime(case[0].numpy(), outputs, *(one.numpy() for one in case[1:])) for case in cases]
        pairs = [pair for case in zip(expected, found, strict=True) for pair in zip(*case, strict=True)]
        difference = float(np.max([relative_difference(one.numpy(), other) for one, other in pairs]))
        # Written so that NaN fails as well.
        if not difference <= TOLERANCE:
            raise PneumoscopeError(
                f"{path}: would differ from the network by {difference:.1e}; it is not written"
            )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return difference


@torch.inference_mode()
def _results(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    result = network(*inputs)
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _name_expert(path: Path, population: Population) -> None:
    """State whose expert an ONNX file has, and give its second input a value to be left out."""
    model = onnx.load(path)
    graph = model.graph
    del graph.value_info[:]  # of a batch, where the value that stands for all images is one
    (second,) = (one for one in graph.input if one.name == OF_POPULATION)
    second.type.tensor_type.shape.dim[0].dim_param = "batch_or_1"
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), OF_POPULATION))
    stated = {"name": population.name, "ages": population.ages, "views": population.views}
    helper.set_model_props(model, {EXPERT: json.dumps(stated)})
    onnx.save(model, path)


class _Rectifier(nn.Module):
    """ReLU, or ReLU6, as one operation that is not in place."""

    def __init__(self, limit: float | None) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) if self.limit is None else torch.clamp(x, 0, self.limit)


@contextmanager
def _plain_rectifiers(network: nn.Module) -> Iterator[None]:
    """Replace each ReLU and ReLU6, which the exporter takes apart at length where they are in place.

    The graph is the same. The export of EfficientNet-Lite0 takes a quarter less time.
    """
    replaced = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if type(child) in (nn.ReLU, nn.ReLU6)
    ]
    for parent, name, child in replaced:
        setattr(parent, name, _Rectifier(6 if isinstance(child, nn.ReLU6) else None))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


def _write(network: nn.Module, inputs: tuple[Tensor, ...], path: Path, outputs: tuple[str, ...]) -> None:
    with _quiet(), _plain_rectifiers(network):
        torch.onnx.export(
            network,
            inputs,
            str(path),
            input_names=["images", OF_POPULATION][: len(inputs)],
            output_names=list(outputs),
            opset_version=OPSET,
            dynamic_shapes=tuple({0: BATCH} for _ in inputs),
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    _strip_traces(path)


def relative_difference(expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> float:
    """Return the largest difference of two outputs, as a share of the largest expected value above 1."""
    return float(np.abs(expected - found).max()) / max(1.0, float(np.abs(expected).max()))


def _strip_traces(path: Path) -> None:
    """Remove the exporter's stack traces from an ONNX file: they name the folders of this machine."""
    model = onnx.load(path)
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(model, path)


def halve(model_path: Path, out: Path) -> Path:
    """Write a network whose convolutions have weights of 16 bits: half the file, computed in float32.

    The runtime turns the weights into float32 once, when it loads the file. The head stays as it is.

    Parameters
    ----------
    model_path : Path
        A network as `export_onnx` writes it.
    out : Path
        The file to write.

    Returns
    -------
    Path
        `out`.
    """
    model = onnx.load(model_path)
    graph = model.graph
    kernels = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    casts = []
    for stored in graph.initializer:
        if stored.name not in kernels or stored.data_type != TensorProto.FLOAT:
            continue
        used, name = stored.name, f"{stored.name}_16_bits"
        stored.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(stored).astype(np.float16), name))
        casts.append(helper.make_node("Cast", [name], [used], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, out)
    return out


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Images in batches."""

    def __init__(self, name: str, images: npt.NDArray[np.float32]) -> None:
        starts = range(0, len(images), RANGE_BATCH)
        self._batches: Iterator[dict[str, npt.NDArray[np.float32]]] = iter(
            [{name: images[start : start + RANGE_BATCH]} for start in starts]
        )

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        return next(self._batches, None)


def quantise(model_path: Path, out: Path, inputs: npt.NDArray[np.float32]) -> Path:
    """Write a network with 8-bit weights, by channel, and 8-bit activations; its head stays in float32.

    Weights are signed and activations unsigned, which is fastest on processors without VNNI; weights keep 7
    bits, so that the sum of two products does not overflow 16 bits there.

    Parameters
    ----------
    model_path : Path
        A network as `export_onnx` writes it.
    out : Path
        The file to write.
    inputs : ndarray of float32, shape (N, C, H, W)
        Standardised training images in [0, 1] on which the ranges of the activations are measured; a few
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
    logger.setLevel(logging.ERROR)  # ONNX Runtime recommends the step that was just done
    try:
        with tempfile.TemporaryDirectory() as place:
            plain = Path(place, "plain.onnx")
            # The exported graph has its shapes already; symbolic inference fails on the dynamic batch size.
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
                op_types_to_quantize=QUANTISED,
            )
    finally:
        logger.setLevel(level)
    return out
