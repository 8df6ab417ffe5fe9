"""The network of a bundle as a network to train further.

The export folds each batch normalisation into the convolution before it. Here the convolutions get the folded
weights, and the normalisations after them the biases; these need statistics before the first update
(`pneumoscope.training.batch_norms`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pneumoscope.errors import RecipeError
from pneumoscope.model.bundle import Bundle
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.training.onnx_export import TOLERANCE, relative_difference
from pneumoscope.training.pyramid import PyramidWithExpert

if TYPE_CHECKING:
    from pneumoscope.training.networks import Network

__all__ = ["load_bundle_weights"]


@torch.no_grad()
def load_bundle_weights(network: Network, bundle: Bundle, classes: tuple[str, ...]) -> None:
    """Give a network the weights of a bundle's network, which is built alike.

    Parameters
    ----------
    network : Network
        Changed in place, the normalisation of its input too.
    bundle : Bundle
    classes : tuple of str
        Of the network; where the bundle has others, the head stays as it is.

    Raises
    ------
    RecipeError
        If the bundle's network is another one, or has weights of 8 bits.
    """
    provenance = bundle.manifest.provenance
    if provenance.precision == "int8":
        raise RecipeError(
            f"{bundle.path}: its weights have 8 bits and cannot be trained; give another bundle"
        )
    graph = onnx.load(bundle.model_path).graph
    arrays = {
        one.name.removesuffix("_16_bits"): numpy_helper.to_array(one).astype(np.float32)
        for one in graph.initializer
    }
    for place, values in ((network.mean, provenance.mean), (network.std, provenance.std)):
        if len(values) != place.numel():
            raise _another_network(bundle, "the input")
        place.copy_(torch.tensor(values).view_as(place))
    for name, parameter in network.backbone.named_parameters(prefix="backbone"):
        if name in arrays and arrays[name].shape == parameter.shape:
            parameter.copy_(torch.from_numpy(arrays[name]))
    size = bundle.manifest.input.size
    names = {module: name for name, module in network.named_modules()}
    _take_gate(network, arrays)
    for convolution, norm in _convolutions(network, size).items():
        name = names[convolution]
        weight = arrays.get(f"{name}.weight")
        # The exporter calls a bias that came from a normalisation by the weight.
        bias = arrays.get(f"{name}.weight_bias", arrays.get(f"{name}.bias"))
        bias_of = norm.bias if norm else convolution.bias
        if (
            weight is None
            or weight.shape != convolution.weight.shape
            or (bias_of is None and bias is not None)
        ):
            raise _another_network(bundle, name)
        if norm:
            _leave_as_is(norm)
            if convolution.bias is not None:
                convolution.bias.zero_()
        if bias_of is not None:
            # The exporter leaves out a bias of zeros.
            bias_of.copy_(torch.zeros_like(bias_of) if bias is None else torch.from_numpy(bias))
    if bundle.manifest.classes == classes:
        network.head.weight.copy_(torch.from_numpy(bundle.head_weight))
        network.head.bias.copy_(torch.from_numpy(bundle.head_bias))
    images = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    has_expert = isinstance(network.backbone, PyramidWithExpert)
    shared = None if has_expert else np.full(len(images), -1, np.float32)
    (expected,) = OnnxRuntime(bundle.model_path)(images.numpy(), ("features",), shared)
    _, features = network.eval()(images)
    if features.shape != expected.shape or not relative_difference(expected, features.numpy()) <= TOLERANCE:
        raise _another_network(bundle, "features")
    network.weights_source = f"bundle {bundle.identity}"
    network.unmeasured, network.random_pyramid = True, False
    network.train()


def _take_gate(network: Network, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Start the expert where the network has one and so has the bundle."""
    gate = [arrays.get(f"backbone.gate_{part}") for part in ("weight", "bias")]
    if isinstance(network.backbone, PyramidWithExpert) and all(part is not None for part in gate):
        network.backbone.set_gate(*(torch.from_numpy(part) for part in gate))


def _another_network(bundle: Bundle, layer: str) -> RecipeError:
    made_by = bundle.manifest.provenance.recipe
    return RecipeError(
        f"{bundle.path}: the network of this recipe is another one (at {layer}); give a recipe with that of "
        f"the bundle{f', as {made_by} has it' if made_by else ''}"
    )


def _convolutions(network: nn.Module, size: int) -> dict[nn.Conv2d, _BatchNorm | None]:
    """Return the convolutions that an image passes, each with the batch normalisation of its output."""
    found: dict[nn.Conv2d, _BatchNorm | None] = {}
    outputs: list[tuple[Tensor, nn.Conv2d]] = []  # kept, so that no later tensor has the identity of one

    def after(module: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        found[module] = None
        outputs.append((output, module))

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        for output, convolution in outputs:
            if output is inputs[0]:
                found[convolution] = module

    hooks = [
        *(m.register_forward_hook(after) for m in network.modules() if isinstance(m, nn.Conv2d)),
        *(m.register_forward_pre_hook(before) for m in network.modules() if isinstance(m, _BatchNorm)),
    ]
    network.eval()(torch.zeros(1, 1, size, size))
    for hook in hooks:
        hook.remove()
    return found


def _leave_as_is(norm: _BatchNorm) -> None:
    """Make a batch normalisation the identity in evaluation mode, to which a bias is added."""
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    norm.weight.fill_(1)
