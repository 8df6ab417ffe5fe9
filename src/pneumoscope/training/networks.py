"""Networks: any timm backbone, or the custom CNN, under one pooled-linear head.

The head is linear on the mean of the features, so that a class activation map is features times head
weights (Zhou et al., CVPR 2016) and needs no gradient.
"""

from __future__ import annotations

import difflib
import http.client
import logging
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import cast

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pneumoscope.errors import RecipeError
from pneumoscope.training.recipe import NetworkSpec

__all__ = [
    "CUSTOM_CNN",
    "Network",
    "build_network",
    "check_size",
    "freeze",
    "load_weights",
    "save_weights",
    "set_training",
]

log = logging.getLogger(__name__)

CUSTOM_CNN = "custom-cnn"
HUB_TIMEOUT = 10.0
# What torch, safetensors and timm raise for files that are no checkpoint or another network's, and the
# hub's client for what it cannot get.
_LOADING_ERRORS = (
    OSError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, EOFError, struct.error,
    SafetensorError,
)  # fmt: skip
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

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[N, K]`` and features ``[N, D, h, w]`` for images ``[N, 1, H, W]`` in [0, 1]."""
        features = self.backbone((images - self.mean) / self.std)
        return self.head(self.dropout(features.mean(dim=(2, 3)))), features


class _Features(nn.Module):
    """A timm model's convolutional part, without the layers that only its own head uses."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.model.forward_features(x)  # type: ignore[operator]
        return features


def _drop_unused(features: _Features, channels: int) -> int:
    """Replace what `forward_features` never calls by nothing; return the number of features."""
    called: set[int] = set()
    hooks = [
        module.register_forward_hook(lambda module, *_: called.add(id(module)))
        for module in features.model.modules()
    ]
    features.eval()
    try:
        with torch.no_grad():
            found = features(torch.zeros(1, channels, 128, 128))
    except (AssertionError, RuntimeError) as error:  # timm asserts a transformer's input size
        raise RecipeError(f"network.name: this network cannot be used ({_short(error)})") from error
    for hook in hooks:
        hook.remove()
    features.train()
    expected = getattr(features.model, "num_features", None)
    if found.ndim != 4 or (found.shape[1] != expected and found.shape[3] == expected):
        raise RecipeError("network.name: this network gives no feature map; choose a convolutional one")
    for name, child in list(features.model.named_children()):
        if not any(id(module) in called for module in child.modules()):
            setattr(features.model, name, nn.Identity())
    return int(found.shape[1])


def build_network(
    spec: NetworkSpec,
    classes: int,
    *,
    pretrained: bool | None = None,
    weights: Path | None = None,
    seed: int | None = None,
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
    seed : int, optional
        Of the weights that start at random.

    Raises
    ------
    RecipeError
        If timm knows no such network, or weights were asked for and cannot be had.
    """
    if seed is not None:
        torch.manual_seed(seed)
    wanted = spec.pretrained if pretrained is None else pretrained
    mean = IMAGENET_MEAN if spec.channels == 3 else (GREY_MEAN,)
    std = IMAGENET_STD if spec.channels == 3 else (GREY_STD,)
    if spec.name == CUSTOM_CNN:
        if wanted or weights:
            raise RecipeError(f"network: there are no ImageNet weights for {CUSTOM_CNN}; use --no-pretrained")
        try:
            backbone: nn.Module = CustomCNN(spec.channels, **spec.options)
        except TypeError as error:
            raise RecipeError(f"network.options: {CUSTOM_CNN} knows 'widths' alone ({error})") from error
        count = cast(int, backbone.num_features)
    else:
        model = _timm_model(spec, pretrained=wanted or weights is not None, weights=weights)
        backbone = _Features(model)
        count = _drop_unused(backbone, spec.channels)
        if not (wanted or weights) and spec.name.startswith("vgg"):
            _he_initialise(backbone)
    return Network(backbone, count, classes, mean=mean, std=std, dropout=spec.dropout)


@torch.no_grad()
def check_size(network: Network, size: int) -> None:
    """Reject an input that the network would shrink to nothing.

    Raises
    ------
    RecipeError
        If a image of `size` by `size` pixels leaves no feature map.
    """
    was_training = network.training
    try:
        _, features = network.eval()(torch.zeros(1, 1, size, size))
    except RuntimeError as error:
        raise RecipeError(f"input.size: {size} pixels are too few for this network") from error
    if not features.numel():
        raise RecipeError(f"input.size: {size} pixels are too few for this network")
    network.train(was_training)


def _timm_model(spec: NetworkSpec, *, pretrained: bool, weights: Path | None) -> nn.Module:
    if spec.name not in timm.list_models():
        guess = difflib.get_close_matches(spec.name, [CUSTOM_CNN, *timm.list_models()], n=1)
        hint = f"did you mean {guess[0]!r}?" if guess else "see timm.list_models()"
        raise RecipeError(f"network.name: timm knows no {spec.name!r}; {hint}")
    if weights is not None and not weights.is_file():
        raise RecipeError(f"{weights}: no such weights file; check --weights, or use --no-pretrained")
    source = weights or (_cached_weights(spec.name) if pretrained else None)
    try:
        model: nn.Module = timm.create_model(
            spec.name,
            pretrained=pretrained,
            in_chans=spec.channels,
            pretrained_cfg_overlay={"file": str(source)} if source else {},
            **spec.options,
        )
    except _LOADING_ERRORS as error:
        if weights is not None:
            raise RecipeError(f"{weights}: no timm checkpoint of {spec.name} ({_short(error)})") from error
        if pretrained:
            raise _no_weights(spec.name, _short(error)) from error
        raise RecipeError(f"network: {spec.name} cannot be built ({_short(error)})") from error
    return model


def _cached_weights(name: str) -> Path | None:
    """Return the downloaded weights where the hub is out of reach; None where it can be asked.

    The hub's own client tries again for a minute before it gives up.

    Raises
    ------
    RecipeError
        If the hub is out of reach and the weights were never downloaded, or timm has none.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise _no_weights(name, "timm has none")
    hub = huggingface_hub.constants.ENDPOINT
    if not config.hf_hub_id or (not huggingface_hub.is_offline_mode() and _reachable(hub)):
        return None
    for filename in ("model.safetensors", "pytorch_model.bin"):
        found = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, filename)
        if isinstance(found, str):
            return Path(found)
    raise _no_weights(name, f"{hub} is out of reach")


def _reachable(address: str) -> bool:
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT):
            return True
    except urllib.error.HTTPError:
        return True  # an answer, if not the one hoped for
    except (OSError, http.client.HTTPException):
        return False


def _no_weights(name: str, why: str) -> RecipeError:
    return RecipeError(
        f"ImageNet weights for {name} cannot be had ({why}): give a timm checkpoint by --weights FILE, or "
        "start from scratch by --no-pretrained"
    )


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
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
    network.backbone.requires_grad_(True)  # norms of every kind, which an earlier phase may have frozen
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
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RecipeError(f"{path}: does not hold the weights of this recipe's network") from error
    return network
