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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx.node import map_arg

from pneumoscope.errors import MissingExtraError, PneumoscopeError
from pneumoscope.training.networks import Network
from pneumoscope.training.onnx_export import TOLERANCE

__all__ = ["export_keras", "open_keras"]

LAST = "channels_last"
ARRAY_WITHOUT_COPY = re.escape(
    "__array__ implementation doesn't accept a copy keyword, so passing copy=False failed."
)

Handler = Callable[..., Any]
Shape = Sequence[int]


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
    logits = _with_weights(head, x, [_array(network.head.weight).T, _array(network.head.bias)])
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
            if overload not in _HANDLERS:
                raise _rejection(operation)
            name = overload.split(".")[0]
            used[name] += 1
            arguments = node.normalized_arguments(program.graph_module, normalize_to_only_use_kwargs=True)
            given = map_arg(arguments.kwargs, values.__getitem__)
            values[node] = _HANDLERS[overload](keras, f"{name}_{used[name]}", **given)
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


def _rejection(what: str) -> PneumoscopeError:
    return PneumoscopeError(f"Keras export: this network uses {what}, which has no equal among Keras layers")


def _with_weights(layer: Any, x: Any, weights: list[Any]) -> Any:
    """Call the layer, which makes its variables, and fill them with the weights that are not None."""
    result = layer(x)
    layer.set_weights([weight for weight in weights if weight is not None])
    return result


def _zero_padded(keras: Any, name: str, x: Any, padding: Shape) -> Any:
    """Pad explicitly: Keras's ``same`` pads unevenly where the stride is above one, torch never does."""
    if not any(padding):
        return x
    rows, columns = padding
    sides = ((rows, rows), (columns, columns))
    return keras.layers.ZeroPadding2D(sides, data_format=LAST, name=f"{name}_padding")(x)


# One function for each ATen operation, with the arguments that the operation's schema names; features
# arrive as Keras tensors, weights as arrays.


def _conv2d(
    keras: Any,
    name: str,
    *,
    input: Any,
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32] | None,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    groups: int,
) -> Any:
    if groups != 1:
        raise _rejection("a grouped convolution")
    layer = keras.layers.Conv2D(
        weight.shape[0],
        weight.shape[2:],
        strides=tuple(stride),
        dilation_rate=tuple(dilation),
        padding="valid",
        use_bias=bias is not None,
        data_format=LAST,
        name=name,
    )
    # torch: [out, in, rows, columns]; Keras: [rows, columns, in, out].
    return _with_weights(
        layer, _zero_padded(keras, name, input, padding), [weight.transpose(2, 3, 1, 0), bias]
    )


def _batch_norm(
    keras: Any,
    name: str,
    *,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: float,
    eps: float,
    **_: Any,
) -> Any:
    if running_mean is None:
        raise _rejection("batch normalisation without running statistics")
    layer = keras.layers.BatchNormalization(
        axis=-1,
        # Keras's momentum is the share of the old value, torch's that of the new one.
        momentum=1 - momentum,
        epsilon=eps,
        scale=weight is not None,
        center=bias is not None,
        name=name,
    )
    return _with_weights(layer, input, [weight, bias, running_mean, running_var])


def _relu(keras: Any, name: str, *, input: Any) -> Any:
    return keras.layers.ReLU(name=name)(input)


def _max_pool2d(
    keras: Any,
    name: str,
    *,
    input: Any,
    kernel_size: Shape,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    ceil_mode: bool,
) -> Any:
    if any(step != 1 for step in dilation):
        raise _rejection("dilated max pooling")
    # torch pads with minus infinity; zero is the same behind a ReLU, where every network in use has its
    # padded pooling. For any other network the comparison at the end would reject the file.
    x = _zero_padded(keras, name, input, padding)
    return _pooled(keras.layers.MaxPooling2D, name, x, kernel_size, stride, ceil_mode)


def _avg_pool2d(
    keras: Any,
    name: str,
    *,
    input: Any,
    kernel_size: Shape,
    stride: Shape,
    padding: Shape,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    if divisor_override is not None or (any(padding) and not count_include_pad):
        raise _rejection("average pooling with a divisor of its own")
    x = _zero_padded(keras, name, input, padding)
    return _pooled(keras.layers.AveragePooling2D, name, x, kernel_size, stride, ceil_mode)


def _pooled(layer: Any, name: str, x: Any, kernel: Shape, stride: Shape, ceil_mode: bool) -> Any:
    steps = tuple(stride or kernel)
    left = [(length - k) % step for length, k, step in zip(x.shape[1:3], kernel, steps, strict=True)]
    if ceil_mode and any(left):
        raise _rejection(f"pooling with ceil_mode on {x.shape[1]} by {x.shape[2]} values")
    return layer(tuple(kernel), strides=steps, padding="valid", data_format=LAST, name=name)(x)


def _pad(keras: Any, name: str, *, input: Any, pad: Shape, mode: str = "constant", value: Any = None) -> Any:
    if mode != "constant" or value or len(pad) != 4 or min(pad) < 0:
        raise _rejection("padding by other than zeros around the image")
    left, right, top, bottom = pad
    sides = ((top, bottom), (left, right))
    return keras.layers.ZeroPadding2D(sides, data_format=LAST, name=name)(input)


def _cat(keras: Any, name: str, *, tensors: list[Any], dim: int = 0) -> Any:
    if dim not in (1, -3):
        raise _rejection("concatenation along another axis than the channels")
    return keras.layers.Concatenate(axis=-1, name=name)(tensors)


def _add(keras: Any, name: str, *, input: Any, other: Any, alpha: float = 1) -> Any:
    if alpha != 1 or not keras.backend.is_keras_tensor(other):
        raise _rejection("addition of a constant")
    return keras.layers.Add(name=name)([input, other])


def _identity(_keras: Any, _name: str, *, input: Any, **_: Any) -> Any:
    """Return the input: dropout inside a backbone does nothing in use."""
    return input


_HANDLERS: dict[str, Handler] = {
    "conv2d.default": _conv2d,
    "batch_norm.default": _batch_norm,
    "relu.default": _relu,
    "max_pool2d.default": _max_pool2d,
    "avg_pool2d.default": _avg_pool2d,
    "pad.default": _pad,
    "cat.default": _cat,
    "add.Tensor": _add,
    "dropout.default": _identity,
}
