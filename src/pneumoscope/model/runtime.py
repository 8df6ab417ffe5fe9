"""ONNX Runtime behind one small class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

# Official builds of ONNX Runtime send telemetry and write files under HOME and TMPDIR as soon as they are
# imported; only this variable prevents it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort
from pydantic import TypeAdapter, ValidationError

from pneumoscope.domain import Population
from pneumoscope.errors import BundleError

__all__ = ["EXPERT", "OF_POPULATION", "Device", "OnnxRuntime", "has_cuda"]

Floats = npt.NDArray[np.float32]
Device = Literal["cpu", "cuda"]
"""Where a network runs."""

EXPERT, OF_POPULATION = "expert", "of_population"
"""Key of a file's metadata that states the population of its expert, and the input that says which images
are known to be of it."""

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

# Images per pass on the CPU: the activations of a few stay in its cache, and the arena, which keeps the
# memory of the largest pass, stays small.
PASS = 4


def has_cuda() -> bool:
    """Return whether this ONNX Runtime was built for CUDA; the package onnxruntime-gpu is."""
    return CUDA in ort.get_available_providers()


class OnnxRuntime:
    """A network, one thread a call on the CPU; safe to call from several threads at once.

    Parameters
    ----------
    path : Path
        The ``.onnx`` file.
    device : {"cpu", "cuda"}
        Where it runs.

    Attributes
    ----------
    expert : Population or None
        For whose images the network has layers of their own.

    Raises
    ------
    BundleError
        If the file is no network that ONNX Runtime can load, or there is no such device.
    """

    def __init__(self, path: Path, device: Device = "cpu") -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # several calls run at once
        options.inter_op_num_threads = 1
        # Idle threads must not spin: decoding needs the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        if device == "cuda" and not has_cuda():
            raise BundleError(f"{path}: cannot run on a GPU here; install onnxruntime-gpu, or use the CPU")
        providers = [CUDA, CPU] if device == "cuda" else [CPU]
        try:
            self._session = ort.InferenceSession(str(path), options, providers=providers)
        except (
            ort.capi.onnxruntime_pybind11_state.Fail,
            ort.capi.onnxruntime_pybind11_state.InvalidProtobuf,
            ort.capi.onnxruntime_pybind11_state.InvalidGraph,
            ort.capi.onnxruntime_pybind11_state.NoSuchFile,
            ort.capi.onnxruntime_pybind11_state.InvalidArgument,
            ort.capi.onnxruntime_pybind11_state.NotImplemented,
        ) as error:
            first_line = str(error).splitlines()[0]
            raise BundleError(f"{path}: not a network that ONNX Runtime can load ({first_line})") from error
        if device == "cuda" and CUDA not in self._session.get_providers():  # it falls back without an error
            raise BundleError(f"{path}: CUDA cannot be used; check driver and CUDA libraries, or use the CPU")
        self._device = device
        self._input = self._session.get_inputs()[0].name
        # Sides that are free in the graph are named, not numbered.
        self.input_shape = tuple(self._session.get_inputs()[0].shape)
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        self.expert = _whose_expert(path, self._session.get_modelmeta().custom_metadata_map)

    def __call__(
        self, batch: Floats, outputs: tuple[str, ...], of_population: Floats | None = None
    ) -> tuple[Floats, ...]:
        """Return the named outputs for a batch of shape (N, C, H, W), float32.

        Where the network has an expert, `of_population`, shape (N,), is 1 for images that are known to be of
        its population, -1 for those known to be of another, and 0 where the network is to choose.
        """
        feed = {self._input: batch}
        if self.expert and of_population is not None:
            feed[OF_POPULATION] = of_population
        if self._device == "cuda" or len(batch) <= PASS:
            return self._run(feed, outputs)
        starts = range(0, len(batch), PASS)
        parts = ({name: rows[start : start + PASS] for name, rows in feed.items()} for start in starts)
        found = zip(*(self._run(part, outputs) for part in parts), strict=True)
        return tuple(np.concatenate(arrays) for arrays in found)

    def _run(self, feed: dict[str, Floats], outputs: tuple[str, ...]) -> tuple[Floats, ...]:
        return tuple(self._session.run(list(outputs), feed))


def _whose_expert(path: Path, metadata: dict[str, str]) -> Population | None:
    if EXPERT not in metadata:
        return None
    try:
        return TypeAdapter(Population).validate_json(metadata[EXPERT])
    except ValidationError as error:
        raise BundleError(f"{path}: does not state whose expert it has; export the bundle again") from error
