"""Networks to ONNX, with the export checked against the network it came from."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from pneumoscope.errors import PneumoscopeError
from pneumoscope.model.runtime import OnnxRuntime

__all__ = ["TOLERANCE", "export_onnx", "strip_traces"]

TOLERANCE = 1e-3
"""Largest difference allowed between the network and its export, as a share of its largest output above 1."""

OPSET = 18


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from people what the exporter says about its own progress and its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch 2.12 copies a tree specification in a way that it calls deprecated itself.
            warnings.filterwarnings(
                "ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning
            )
            yield
    finally:
        logger.setLevel(level)


def export_onnx(network: nn.Module, path: Path, *, size: int, outputs: tuple[str, ...]) -> float:
    """Write a network as ONNX with a free batch size and compare the two on random images.

    Parameters
    ----------
    network : nn.Module
        Takes ``[N, 1, size, size]`` float32 in [0, 1]; is put into evaluation mode.
    path : Path
        The file to write; weights inside it.
    outputs : tuple of str
        Names of the outputs.

    Returns
    -------
    float
        Largest difference over all outputs; where an output exceeds 1, as a share of its largest value,
        since rounding grows with it.

    Raises
    ------
    PneumoscopeError
        If the difference is above `TOLERANCE`.
    """
    network = network.eval().float().cpu()
    images = torch.rand(3, 1, size, size, generator=torch.Generator().manual_seed(0))
    with _quiet():
        torch.onnx.export(
            network,
            (images,),
            str(path),
            input_names=["images"],
            output_names=list(outputs),
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    strip_traces(path)
    with torch.inference_mode():
        expected = network(images)
    wanted = (expected,) if isinstance(expected, Tensor) else tuple(expected)
    found = OnnxRuntime(path)(images.numpy(), outputs)
    difference = max(_difference(a.numpy(), b) for a, b in zip(wanted, found, strict=True))
    if difference > TOLERANCE:
        raise PneumoscopeError(f"{path}: differs from the network by {difference:.1e}; do not use it")
    return difference


def _difference(expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> float:
    return float(np.abs(expected - found).max()) / max(1.0, float(np.abs(expected).max()))


def strip_traces(path: Path) -> None:
    """Take the exporter's stack traces out of an ONNX file: they name the folders of this machine."""
    model = onnx.load(path)
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(model, path)
