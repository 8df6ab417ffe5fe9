"""Operations of PyTorch as stock Keras layers, for `pneumoscope.training.keras_export`.

One function for each ATen operation, with the arguments that the operation's schema names; features arrive as
Keras tensors, weights as arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.errors import PneumoscopeError

__all__ = ["HANDLERS", "LAST", "rejection", "with_weights"]

LAST = "channels_last"

Handler = Callable[..., Any]
Shape = Sequence[int]


def rejection(what: str) -> PneumoscopeError:
    """Return the error for an operation that Keras has no layer for."""
    return PneumoscopeError(
        f"Keras export: this network uses {what}, which has no equal among Keras layers; use the bundle or "
        "ONNX, or another network"
    )


def with_weights(layer: Any, x: Any, weights: list[Any]) -> Any:
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
    options = {
        "strides": tuple(stride),
        "dilation_rate": tuple(dilation),
        "padding": "valid",
        "use_bias": bias is not None,
        "data_format": LAST,
        "name": name,
    }
    inputs, outputs = input.shape[-1], weight.shape[0]
    if groups == 1:
        layer = keras.layers.Conv2D(outputs, weight.shape[2:], **options)
        # torch: [out, in, rows, columns]; Keras: [rows, columns, in, out].
        kernel = weight.transpose(2, 3, 1, 0)
    elif groups == inputs:
        each = outputs // inputs
        layer = keras.layers.DepthwiseConv2D(weight.shape[2:], depth_multiplier=each, **options)
        # torch: [in times each, 1, rows, columns]; Keras: [rows, columns, in, each].
        kernel = weight.reshape(inputs, each, *weight.shape[2:]).transpose(2, 3, 0, 1)
    else:
        raise rejection("a convolution in groups of several channels")
    return with_weights(layer, _zero_padded(keras, name, input, padding), [kernel, bias])


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
        raise rejection("batch normalisation without running statistics")
    layer = keras.layers.BatchNormalization(
        axis=-1,
        # Keras's momentum is the share of the old value, torch's that of the new one.
        momentum=1 - momentum,
        epsilon=eps,
        scale=weight is not None,
        center=bias is not None,
        name=name,
    )
    return with_weights(layer, input, [weight, bias, running_mean, running_var])


def _relu(keras: Any, name: str, *, input: Any) -> Any:
    return keras.layers.ReLU(name=name)(input)


def _hardtanh(keras: Any, name: str, *, input: Any, min_val: float = -1, max_val: float = 1) -> Any:
    if min_val != 0:
        raise rejection("hardtanh below zero")
    return keras.layers.ReLU(max_value=float(max_val), name=name)(input)


def _relu6(keras: Any, name: str, *, input: Any) -> Any:
    return keras.layers.ReLU(max_value=6.0, name=name)(input)


def _upsample_nearest(
    keras: Any,
    name: str,
    *,
    input: Any,
    output_size: Shape | None,
    scale_factors: Sequence[float] | None,
) -> Any:
    sides = input.shape[1:3]
    wanted = output_size or [
        int(side * factor) for side, factor in zip(sides, scale_factors or (), strict=True)
    ]
    if any(size % side for size, side in zip(wanted, sides, strict=True)):
        raise rejection(f"enlarging {sides[0]} by {sides[1]} values to {wanted[0]} by {wanted[1]}")
    factors = tuple(size // side for size, side in zip(wanted, sides, strict=True))
    return keras.layers.UpSampling2D(factors, data_format=LAST, interpolation="nearest", name=name)(input)


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
        raise rejection("dilated max pooling")
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
        raise rejection("average pooling with a divisor of its own")
    x = _zero_padded(keras, name, input, padding)
    return _pooled(keras.layers.AveragePooling2D, name, x, kernel_size, stride, ceil_mode)


def _pooled(layer: Any, name: str, x: Any, kernel: Shape, stride: Shape, ceil_mode: bool) -> Any:
    steps = tuple(stride or kernel)
    left = [(length - k) % step for length, k, step in zip(x.shape[1:3], kernel, steps, strict=True)]
    if ceil_mode and any(left):
        raise rejection(f"pooling with ceil_mode on {x.shape[1]} by {x.shape[2]} values")
    return layer(tuple(kernel), strides=steps, padding="valid", data_format=LAST, name=name)(x)


def _pad(keras: Any, name: str, *, input: Any, pad: Shape, mode: str = "constant", value: Any = None) -> Any:
    if mode != "constant" or value or len(pad) != 4 or min(pad) < 0:
        raise rejection("padding by other than zeros around the image")
    left, right, top, bottom = pad
    sides = ((top, bottom), (left, right))
    return keras.layers.ZeroPadding2D(sides, data_format=LAST, name=name)(input)


def _cat(keras: Any, name: str, *, tensors: list[Any], dim: int = 0) -> Any:
    if dim not in (1, -3):
        raise rejection("concatenation along another axis than the channels")
    return keras.layers.Concatenate(axis=-1, name=name)(tensors)


def _add(keras: Any, name: str, *, input: Any, other: Any, alpha: float = 1) -> Any:
    if alpha != 1 or not keras.backend.is_keras_tensor(other):
        raise rejection("addition of a constant")
    return keras.layers.Add(name=name)([input, other])


def _identity(_keras: Any, _name: str, *, input: Any, **_: Any) -> Any:
    """Return the input: dropout inside a backbone does nothing in use."""
    return input


HANDLERS: dict[str, Handler] = {
    "conv2d.default": _conv2d,
    "batch_norm.default": _batch_norm,
    "relu.default": _relu,
    "relu6.default": _relu6,
    "hardtanh.default": _hardtanh,
    "upsample_nearest2d.vec": _upsample_nearest,
    "max_pool2d.default": _max_pool2d,
    "avg_pool2d.default": _avg_pool2d,
    "pad.default": _pad,
    "cat.default": _cat,
    "add.Tensor": _add,
    "dropout.default": _identity,
}
