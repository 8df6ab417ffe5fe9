"""Networks in use: ONNX Runtime behind one small protocol."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

# Official builds of ONNX Runtime report their use to Microsoft and keep files under HOME and TMPDIR, from the
# moment they are imported; this alone prevents it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from pneumoscope.errors import BundleError

__all__ = ["OnnxRuntime", "Runtime"]

Floats = npt.NDArray[np.float32]


class Runtime(Protocol):
    """Runs a network on a batch; safe to call from several threads at once."""

    def __call__(self, batch: Floats, outputs: tuple[str, ...]) -> tuple[Floats, ...]:
        """Return the named outputs for a batch of shape (N, C, H, W)."""
        ...


class OnnxRuntime:
    """ONNX Runtime on the CPU.

    Parameters
    ----------
    path : Path
        The ``.onnx`` file.
    threads : int
        Threads inside one call. One is right where several calls run at once.

    Raises
    ------
    BundleError
        If the file is no network that ONNX Runtime can load.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Idle threads must not spin: decoding needs the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The arena keeps the memory of the largest batch for ever; a plain allocator keeps it flat.
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
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
        self._input = self._session.get_inputs()[0].name
        # Sides that are free in the graph are named, not numbered.
        self.input_shape = tuple(self._session.get_inputs()[0].shape)
        self.outputs = tuple(output.name for output in self._session.get_outputs())

    def __call__(self, batch: Floats, outputs: tuple[str, ...]) -> tuple[Floats, ...]:
        """Return the named outputs for a batch of shape (N, C, H, W), float32."""
        return tuple(self._session.run(list(outputs), {self._input: batch}))
