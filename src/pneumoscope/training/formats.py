"""The formats that a trained network is written in, beside the bundle, and how each is run again to check it.

They hold the network alone, from a standardised image to logits: neither lung segmenter nor gate,
calibration or thresholds.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError

from pneumoscope.errors import MissingExtraError, PneumoscopeError
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.training.keras_export import export_keras, open_keras
from pneumoscope.training.networks import Network, build_network, load_weights, save_weights
from pneumoscope.training.onnx_export import export_onnx, quantise
from pneumoscope.training.recipe import Recipe

__all__ = ["FORMATS", "Run", "open_network", "run_network", "write_network", "written_files"]

Floats = npt.NDArray[np.float32]
Run = Callable[[Floats], Floats]
"""From standardised images, shape (N, 1, S, S) in [0, 1], to logits, shape (N, K)."""

FORMATS = {
    "onnx": ".onnx",
    "onnx-int8": ".onnx",
    "openvino": ".xml",
    "torchscript": ".pt",
    "keras": ".h5",
    "safetensors": ".safetensors",
}
"""Suffix of each format's file."""

OUTPUTS = ("logits", "features")


def write_network(
    network: Network, recipe: Recipe, to: str, path: Path, *, ranges: Floats | None = None
) -> None:
    """Write a network in one format.

    Parameters
    ----------
    network : Network
        Trained by `recipe`; is put into evaluation mode and moved to the CPU.
    to : str
        One of `FORMATS`.
    path : Path
        The file; its suffix is that of the format. OpenVINO's weights go beside it, with the suffix ``.bin``.
    ranges : ndarray of float32, shape (N, 1, S, S), optional
        Standardised images on which ``onnx-int8`` measures its activations.

    Raises
    ------
    MissingExtraError
        If the packages of the format are not installed.
    PneumoscopeError
        If the file cannot be written, or the format cannot express the network.
    """
    network = network.eval().float().cpu()
    size = recipe.input.size
    try:
        if to == "onnx":
            export_onnx(network, path, size=size, outputs=OUTPUTS)
        elif to == "onnx-int8":
            _write_int8(network, path, size, ranges)
        elif to == "openvino":
            _write_openvino(network, path, size)
        elif to == "torchscript":
            _write_torchscript(network, path, size)
        elif to == "keras":
            export_keras(network, path, size=size)
        else:
            save_weights(network, path, metadata=_metadata(recipe))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise PneumoscopeError(f"{path}: cannot be written ({reason}); name another file") from error


def written_files(path: Path, to: str) -> tuple[Path, ...]:
    """Return the files that make up a network in one format."""
    return (path, path.with_suffix(".bin")) if to == "openvino" else (path,)


def open_network(path: Path, to: str, recipe: Recipe) -> Run:
    """Return a written network, read from its file as a user would read it, on the CPU in float32."""
    if to in ("onnx", "onnx-int8"):
        runtime = OnnxRuntime(path)
        return lambda images: runtime(images, ("logits",))[0]
    if to == "openvino":
        return _open_openvino(path)
    if to == "torchscript":
        with _torchscript_is_kept():
            return run_network(torch.jit.load(str(path), map_location="cpu"))  # type: ignore[no-untyped-call]
    if to == "keras":
        return open_keras(path)
    network = build_network(recipe.network, len(recipe.output_classes), pretrained=False)
    return run_network(load_weights(network, path).eval())


def run_network(network: Any) -> Run:
    """Return a torch module that gives logits and features as a `Run`."""

    @torch.inference_mode()
    def run(images: Floats) -> Floats:
        logits: Floats = network(torch.from_numpy(images))[0].numpy()
        return logits

    return run


def _write_int8(network: Network, path: Path, size: int, ranges: Floats | None) -> None:
    plain = path.with_name(f".{path.stem}.float.onnx")
    try:
        export_onnx(network, plain, size=size, outputs=OUTPUTS)
        quantise(plain, path, np.zeros((0, 1, size, size), np.float32) if ranges is None else ranges)
    finally:
        plain.unlink(missing_ok=True)


def _import_openvino() -> Any:
    """Import OpenVINO without its usage statistics, which it otherwise sends from the import on."""
    # It looks for this package and does without where it is not installed.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingExtraError("OpenVINO's format", "openvino") from error
    return openvino


def _write_openvino(network: Network, path: Path, size: int) -> None:
    openvino = _import_openvino()
    plain = path.with_name(f".{path.stem}.float.onnx")
    try:
        export_onnx(network, plain, size=size, outputs=OUTPUTS)
        # By default the weights would be rounded to 16 bits.
        openvino.save_model(openvino.Core().read_model(str(plain)), str(path), compress_to_fp16=False)
    except RuntimeError as error:
        first_line = str(error).strip().splitlines()[-1]
        raise PneumoscopeError(f"{path}: OpenVINO cannot write it ({first_line})") from error
    finally:
        plain.unlink(missing_ok=True)


def _open_openvino(path: Path) -> Run:
    # Processors with bf16 would compute in it; one stream, as the bundle's own runtime has one thread.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    compiled = _import_openvino().Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda images: request.infer({"images": images})["logits"].copy()


@contextmanager
def _torchscript_is_kept() -> Iterator[None]:
    """Suppress the notes that TorchScript is superseded: it was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        yield


def _write_torchscript(network: Network, path: Path, size: int) -> None:
    example = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    with _torchscript_is_kept(), torch.no_grad():
        # Compared on X-rays later; the tracer's own comparison would run the same example again.
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        # Batch normalisation becomes part of the convolutions.
        frozen = torch.jit.freeze(traced)
        path.write_bytes(frozen.save_to_buffer())


def _metadata(recipe: Recipe) -> dict[str, str]:
    """Return what a weights file says of itself: enough to build its network again."""
    return {
        "format": "pt",
        "recipe": recipe.to_yaml(),
        "classes": json.dumps(recipe.output_classes),
        "size": str(recipe.input.size),
    }
