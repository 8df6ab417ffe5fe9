"""Export of networks to Keras, with stock layers only, checked against the network itself.

`torch.export` flattens the backbone into a graph of ATen operations; each becomes the equivalent Keras layer,
with the trained weights in the order of Keras. Normalisation before the backbone and the pooled-linear head
after it are the same for every `Network` and are written out here.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx.node import map_arg

from pneumoscope.errors import MissingExtraError, PneumoscopeError
from pneumoscope.training.keras_layers import HANDLERS, LAST, rejection, with_weights
from pneumoscope.training.networks import Network
from pneumoscope.training.onnx_export import TOLERANCE
from pneumoscope.training.pyramid import PyramidWithExpert

__all__ = ["check_keras", "export_keras", "open_keras"]

EXPERT = "an expert for one population (network.expert)"
ARRAY_WITHOUT_COPY = re.escape(
    "__array__ implementation doesn't accept a copy keyword, so passing copy=False failed."
)


def export_keras(network: Network, path: Path, *, size: int) -> float:
    """Write a network as a Keras model and compare the two on random images.

    The model takes grey images ``[N, size, size, 1]`` float32 in [0, 1] and gives the softmax
    probabilities ``[N, K]`` in the network's class order; they are not calibrated. Its last two layers
    are called ``logits`` and ``probabilities``. It holds no custom and no lambda layer, so that
    ``keras.models.load_model`` needs nothing but the file.

    Parameters
    ----------
    network : Network
        Is put into evaluation mode and moved to the CPU.
    path : Path
        The file to write, named ``.h5``.
    size : int
        Height and width of the images in pixels.

    Returns
    -------
    float
        Largest absolute difference of the probabilities, or of the logits (as a share of the largest
        one where that is above 1), between the network and the file.

    Raises
    ------
    MissingExtraError
        If Keras or h5py is not installed.
    PneumoscopeError
        If the file is not named ``.h5`` or cannot be written, Keras cannot start, the backbone has an
        operation without an equal among Keras layers, or the difference is above `TOLERANCE`; a file
        that differs is removed.
    """
    if path.suffix != ".h5":
        raise PneumoscopeError(f"{path}: name the Keras file so that it ends in .h5")
    keras = _import_keras()
    network = network.eval().float().cpu()
    # On a GPU the two would differ because of its reduced-precision convolutions.
    with keras.device("cpu"), _without_remarks():
        model = _keras_model(keras, network, size)
        try:
            model.save(path)
        except OSError as error:
            raise PneumoscopeError(f"{path}: cannot be written: {' '.join(str(error).split())}") from error
        difference = _difference(keras, network, path, size)
    # Written so that NaN fails as well.
    if not difference <= TOLERANCE:
        path.unlink()
        raise PneumoscopeError(f"{path}: the Keras model would differ from the network by {difference:.1e}")
    return difference


def check_keras(network: Network, *, size: int, trains_expert: bool = False) -> None:
    """Raise what `export_keras` would for a network that Keras has no layers for; before it is trained.

    Parameters
    ----------
    network : Network
        On the CPU.
    size : int
        Height and width of the images in pixels.
    trains_expert : bool
        Whether the network is to have an expert in the end.

    Raises
    ------
    MissingExtraError, PneumoscopeError
        As `export_keras`.
    """
    if trains_expert:
        raise rejection(EXPERT)
    keras, was_training = _import_keras(), network.training
    try:
        with keras.device("cpu"), _without_remarks():
            _keras_model(keras, network.eval(), size)
    finally:
        network.train(was_training)


def _import_keras() -> Any:
    """Import Keras on the torch backend, unless the user has chosen another or has imported it already.

    Keras reads its backend from the environment once, at import, with TensorFlow as the default; torch is the
    only backend that is certain to be installed.
    """
    backend = os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import h5py  # noqa: F401  (Keras itself imports without it and fails only when it writes)
        import keras
    except ImportError as error:
        if error.name in ("keras", "h5py"):
            raise MissingExtraError("Keras export", "keras") from error
        raise PneumoscopeError(
            f"Keras cannot start with KERAS_BACKEND={backend} ({error}); set KERAS_BACKEND=torch"
        ) from error
    return keras


class _NotTheLegacyNote(logging.Filter):
    """Drops the remark that HDF5 is the older format of Keras: the user chose that format."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("You are saving your model as an HDF5 file")


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Suppress two remarks of Keras that the user can do nothing about."""
    logger, note = logging.getLogger("absl"), _NotTheLegacyNote()
    logger.addFilter(note)
    try:
        with warnings.catch_warnings():
            # Keras turns torch tensors into arrays by `np.array`, for which they lack NumPy 2's argument.
            warnings.filterwarnings("ignore", ARRAY_WITHOUT_COPY, DeprecationWarning)
            yield
    finally:
        logger.removeFilter(note)


def _keras_model(keras: Any, network: Network, size: int) -> Any:
    """Return normalisation, backbone and head as one functional model."""
    if isinstance(network.backbone, PyramidWithExpert) and network.backbone.started:
        raise rejection(EXPERT)
    layers = keras.layers
    mean, std = _array(network.mean).ravel(), _array(network.std).ravel()
    images = keras.Input((size, size, 1), name="images")
    x = images
    if mean.size > 1:
        x = layers.Concatenate(axis=-1, name="grey_to_rgb")([x] * mean.size)
    # Lists, because Keras writes them into the file's configuration; it takes the variance.
    normalise = layers.Normalization(
        axis=-1, mean=mean.tolist(), variance=(std.astype(np.float64) ** 2).tolist(), name="normalise"
    )
    x = _translate(keras, network, normalise(x), size)
    x = layers.GlobalAveragePooling2D(data_format=LAST, name="pool")(x)
    if network.dropout.p > 0:
        x = layers.Dropout(network.dropout.p, name="dropout")(x)
    head = layers.Dense(network.head.out_features, name="logits")
    logits = with_weights(head, x, [_array(network.head.weight).T, _array(network.head.bias)])
    return keras.Model(images, layers.Softmax(name="probabilities")(logits), name="pneumoscope")


def _translate(keras: Any, network: Network, x: Any, size: int) -> Any:
    """Rebuild the backbone on the Keras tensor `x`, operation by operation; return its features."""
    example = torch.zeros(2, network.mean.numel(), size, size)
    with torch.no_grad():
        program = torch.export.export(network.backbone, (example,))
    signature = program.graph_signature
    stored = {**program.constants, **program.state_dict}
    origin = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    values: dict[torch.fx.Node, Any] = {}
    used: Counter[str] = Counter()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = _array(stored[origin[node.name]]) if node.name in origin else x
        elif node.op == "call_function":
            operation = str(node.target)  # as in "aten.relu_.default"
            # In-place operations are as good as the others: whoever reads the tensor after one already
            # refers to its result in the exported graph.
            overload = operation.removeprefix("aten.").replace("_.", ".")
            if overload not in HANDLERS:
                raise rejection(operation)
            name = overload.split(".")[0]
            used[name] += 1
            arguments = node.normalized_arguments(program.graph_module, normalize_to_only_use_kwargs=True)
            given = map_arg(arguments.kwargs, values.__getitem__)
            values[node] = HANDLERS[overload](keras, f"{name}_{used[name]}", **given)
    (result,) = program.graph.output_node().args[0]
    return values[result]


def _difference(keras: Any, network: Network, path: Path, size: int) -> float:
    """Read the file as a user would and return its largest difference from the network."""
    images = torch.rand(3, 1, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits, _ = network(images)
    found_logits, found = _both_outputs(keras, path).predict(images.permute(0, 2, 3, 1).numpy(), verbose=0)
    # Rounding grows with the logits, which noise instead of a radiograph may drive far from zero.
    scale = max(1.0, float(logits.abs().max()))
    apart = np.abs(logits.numpy() - found_logits) / scale, np.abs(logits.softmax(dim=1).numpy() - found)
    return float(np.max(apart))


def _both_outputs(keras: Any, path: Path) -> Any:
    """Return the model of a file with its logits and its probabilities as outputs."""
    model = keras.models.load_model(path, compile=False)
    return keras.Model(model.input, [model.get_layer("logits").output, model.output])


def open_keras(path: Path) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """Return the network of a file that `export_keras` wrote, from images (N, 1, S, S) to logits (N, K)."""
    keras = _import_keras()
    with keras.device("cpu"), _without_remarks():
        model = _both_outputs(keras, path)

    def run(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with keras.device("cpu"), _without_remarks():
            logits: npt.NDArray[np.float32] = model.predict_on_batch(images.transpose(0, 2, 3, 1))[0]
        return np.asarray(logits)

    return run


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    return tensor.detach().cpu().numpy()
