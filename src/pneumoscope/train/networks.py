"""Networks: any timm backbone, or the custom CNN, under one pooled-linear head.

The head is linear on the mean of the features, so that a class activation map is features times head
weights (Zhou et al., CVPR 2016) and needs no gradient.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pneumoscope.domain import RecipeError
from pneumoscope.train.recipe import NetworkSpec

__all__ = [
    "CUSTOM_CNN",
    "Network",
    "build_network",
    "freeze",
    "load_weights",
    "save_weights",
    "set_training",
]

log = logging.getLogger(__name__)

CUSTOM_CNN = "custom-cnn"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The paediatric set's own mean and spread of grey levels, for backbones that start from nothing.
GREY_MEAN, GREY_STD = 0.48, 0.24


class CustomCNN(nn.Sequential):
    """Five blocks of two 3 by 3 convolutions with batch normalisation, 16 to 256 channels, 1.2 M parameters.

    The shape that the published scripts with "a deep CNN of its own" share: convolution, ReLU, max
    pooling, repeated, then dropout and a dense layer.
    """

    def __init__(self, in_chans: int = 1, widths: tuple[int, ...] = (16, 32, 64, 128, 256)) -> None:
        blocks: list[nn.Module] = []
        inputs = in_chans
        for width in widths:
            for source in (inputs, width):
                blocks += [
                    nn.Conv2d(source, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
            blocks.append(nn.MaxPool2d(2))
            inputs = width
        super().__init__(*blocks)
        self.num_features = inputs


class Network(nn.Module):
    """Normalisation, backbone and pooled-linear head in one graph.

    Parameters
    ----------
    backbone : nn.Module
        From ``[N, C, H, W]`` to features ``[N, D, h, w]``.
    features : int
        D.
    classes : int
        K.
    mean, std : tuple of float
        Of the backbone's input channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        classes: int,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, classes)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[N, K]`` and features ``[N, D, h, w]`` for pictures ``[N, 1, H, W]`` in [0, 1]."""
        features = self.backbone((pictures - self.mean) / self.std)
        return self.head(self.dropout(features.mean(dim=(2, 3)))), features


class _Features(nn.Module):
    """A timm model's convolutional part, without the layers that only its own head uses."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return cast(Any, self.model).forward_features(x)  # type: ignore[no-any-return]


def _drop_unused(features: _Features, channels: int) -> int:
    """Replace what `forward_features` never calls by nothing; return the number of features."""
    called: set[int] = set()
    hooks = [
        module.register_forward_hook(lambda module, *_: called.add(id(module)))
        for module in features.model.modules()
    ]
    features.eval()
    with torch.no_grad():
        found = features(torch.zeros(1, channels, 128, 128))
    for hook in hooks:
        hook.remove()
    features.train()
    if found.ndim != 4:
        raise RecipeError("network.name: this network gives no feature map; choose a convolutional one")
    for name, child in list(features.model.named_children()):
        if not any(id(module) in called for module in child.modules()):
            setattr(features.model, name, nn.Identity())
    return int(found.shape[1])


def build_network(
    spec: NetworkSpec, classes: int, *, pretrained: bool | None = None, weights: Path | None = None
) -> Network:
    """Build a network as a recipe describes it.

    Parameters
    ----------
    spec : NetworkSpec
    classes : int
        Outputs.
    pretrained : bool, optional
        Overrides the recipe's wish for ImageNet weights.
    weights : Path, optional
        A timm checkpoint (``.safetensors`` or ``.pth``) to take instead of the hub's.

    Raises
    ------
    RecipeError
        If timm knows no such network, or weights were asked for and cannot be had.
    """
    wanted = spec.pretrained if pretrained is None else pretrained
    mean = IMAGENET_MEAN if spec.channels == 3 else (GREY_MEAN,)
    std = IMAGENET_STD if spec.channels == 3 else (GREY_STD,)
    if spec.name == CUSTOM_CNN:
        if wanted or weights:
            raise RecipeError(f"network: there are no ImageNet weights for {CUSTOM_CNN}; use --no-pretrained")
        backbone: nn.Module = CustomCNN(spec.channels, **spec.options)
        count = cast(int, backbone.num_features)
    else:
        model = _timm_model(spec, pretrained=wanted or weights is not None, weights=weights)
        backbone = _Features(model)
        count = _drop_unused(backbone, spec.channels)
        if not (wanted or weights) and spec.name.startswith("vgg"):
            _he_initialise(backbone)
    return Network(backbone, count, classes, mean=mean, std=std, dropout=spec.dropout)


def _timm_model(spec: NetworkSpec, *, pretrained: bool, weights: Path | None) -> nn.Module:
    if spec.name not in timm.list_models():
        raise RecipeError(f"network.name: timm knows no {spec.name!r}; see timm.list_models()")
    if weights is not None and not weights.is_file():
        raise RecipeError(f"{weights}: no such weights file; check --weights, or use --no-pretrained")
    overlay: dict[str, Any] = {"file": str(weights)} if weights else {}
    try:
        model = timm.create_model(
            spec.name,
            pretrained=pretrained,
            in_chans=spec.channels,
            pretrained_cfg_overlay=overlay,
            **spec.options,
        )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if not pretrained:
            raise RecipeError(f"network: {spec.name}: {' '.join(str(error).split())[:200]}") from error
        raise RecipeError(
            f"ImageNet weights for {spec.name} cannot be had ({_short(error)}): give a timm checkpoint by "
            "--weights FILE, or start from scratch by --no-pretrained"
        ) from error
    return model


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 100 else text[:97] + "..."


def _he_initialise(module: nn.Module) -> None:
    """Give convolutions He's initialisation; deep plain VGGs do not start to learn without it."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def freeze(network: Network, frozen: int | str) -> int:
    """Set which layers learn; return the number of parameters that do.

    Parameters
    ----------
    frozen : int or {"none", "backbone"}
        Number of convolutional layers from the input on that do not learn, or the whole backbone.
        Batch normalisation behind a frozen layer is frozen with it.
    """
    layers = [
        m for m in network.backbone.modules() if isinstance(m, (nn.Conv2d, nn.modules.batchnorm._BatchNorm))
    ]
    convolutions = 0
    for layer in layers:
        convolutions += isinstance(layer, nn.Conv2d)
        fixed = frozen == "backbone" or (isinstance(frozen, int) and convolutions <= frozen)
        layer.requires_grad_(not fixed)
    if frozen == "backbone":
        network.backbone.requires_grad_(False)
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def set_training(network: nn.Module) -> None:
    """Put the network into training mode, but leave frozen batch normalisation as it is."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.requires_grad:
            module.eval()


def save_weights(network: Network, path: Path) -> None:
    """Write the weights as safetensors."""
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(state, path)


def load_weights(network: Network, path: Path) -> Network:
    """Read weights that `save_weights` wrote.

    Raises
    ------
    RecipeError
        If the file does not fit the network.
    """
    try:
        network.load_state_dict(load_file(path))
    except (OSError, RuntimeError) as error:
        raise RecipeError(f"{path}: does not hold the weights of this recipe's network") from error
    return network
