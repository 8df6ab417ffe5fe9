"""Networks: any timm backbone, or the custom CNN, with a pooled-linear head.

The head is linear in the mean of the features, so that a class activation map is features times head
weights (Zhou et al., CVPR 2016) and needs no gradient.
"""

from __future__ import annotations

import logging
import statistics
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pneumoscope.errors import RecipeError
from pneumoscope.model.bundle import load_bundle
from pneumoscope.training.backbones import file_source, short, timm_backbone
from pneumoscope.training.from_bundle import load_bundle_weights
from pneumoscope.training.pyramid import Pyramid, PyramidWithExpert
from pneumoscope.training.recipe import CUSTOM_CNN, NetworkSpec, Recipe

__all__ = [
    "CUSTOM_CNN",
    "Network",
    "build_network",
    "build_recipe_network",
    "check_size",
    "freeze",
    "load_weights",
    "save_weights",
    "set_training",
]

log = logging.getLogger(__name__)

# Mean and standard deviation of grey levels in the paediatric set, for backbones that start from scratch.
GREY_MEAN, GREY_STD = 0.48, 0.24


class CustomCNN(nn.Sequential):
    """Five blocks of two 3 by 3 convolutions with batch normalisation, 16 to 256 channels, 1.2 M parameters.

    The architecture that published scripts with a custom CNN share: convolution, ReLU and max pooling,
    repeated, then dropout and a dense layer.
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
        Normalisation of the backbone's input, one value per channel.
    dropout : float
        Before the head, in [0, 1).
    weights_source : str
        Name and source of the pretrained weights; empty where it started from scratch.

    Attributes
    ----------
    unmeasured : bool
        Whether its batch normalisations have no statistics yet; see `measure_once`.
    random_pyramid : bool
        Whether the layers that a pyramid adds to the backbone still have random weights; `freeze` leaves
        these trainable.
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
        weights_source: str = "",
    ) -> None:
        super().__init__()
        self.weights_source = weights_source
        self.unmeasured = False
        self.random_pyramid = isinstance(backbone, Pyramid)
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, classes)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor, of_population: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits ``[N, K]`` and features ``[N, D, h, w]`` for images ``[N, 1, H, W]`` in [0, 1].

        Where the backbone has an expert, `of_population` ``[N]`` is 1 for images that are known to be of its
        population, -1 for those known to be of another, and 0 where its gate is to choose.
        """
        known = () if of_population is None else (of_population,)
        features = self.backbone((images - self.mean) / self.std, *known)
        return self.head(self.dropout(features.mean(dim=(2, 3)))), features


class _Features(nn.Module):
    """The convolutional part of a timm model, without the layers that only its own head uses."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.model.forward_features(x)  # type: ignore[operator]
        return features


def _drop_unused(features: _Features, channels: int) -> int:
    """Replace layers that `forward_features` never calls by the identity; return the number of features."""
    called: set[int] = set()
    hooks = [
        module.register_forward_hook(lambda module, *_: called.add(id(module)))
        for module in features.model.modules()
    ]
    features.eval()
    try:
        with torch.no_grad():
            found = features(torch.zeros(1, channels, 128, 128))
    # timm asserts a transformer's input size; options may leave no features, or layers that do not fit.
    except (AssertionError, AttributeError, RuntimeError) as error:
        raise RecipeError(f"network.name: this network cannot be used ({short(error)})") from error
    for hook in hooks:
        hook.remove()
    features.train()
    expected = getattr(features.model, "num_features", None)
    if found.ndim != 4 or (found.shape[1] != expected and found.shape[3] == expected):
        raise RecipeError("network.name: this network has no feature map; choose a convolutional one")
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
    names: tuple[str, ...] = (),
    seed: int | None = None,
) -> Network:
    """Build a network as a recipe describes it.

    Parameters
    ----------
    spec : NetworkSpec
    classes : int
        Outputs.
    pretrained : bool, optional
        Overrides `spec.pretrained`.
    weights : Path, optional
        A timm checkpoint (``.safetensors`` or ``.pth``) to take instead of an installed package's
        or the hub's; or what `save_weights` wrote for such a network, or a bundle, to continue from.
    names : tuple of str
        The classes; a bundle's head is taken where it has the same.
    seed : int, optional
        Of the weights that start at random.

    Raises
    ------
    RecipeError
        If timm has no such network, or the requested weights are not available or of another one.
    BundleError
        If `weights` is a folder, and no bundle.
    """
    if seed is not None:
        torch.manual_seed(seed)
    if weights is not None and weights.is_dir():
        network = build_network(spec, classes, pretrained=False)
        load_bundle_weights(network, load_bundle(weights), names)
        return network
    if weights is not None and _is_whole_network(weights):
        network = load_weights(build_network(spec, classes, pretrained=False), weights)
        network.weights_source = file_source(spec.name, weights)
        return network
    requested = spec.pretrained if pretrained is None else pretrained
    mean, std = (GREY_MEAN,) * spec.channels, (GREY_STD,) * spec.channels
    source = ""
    if spec.name == CUSTOM_CNN:
        if requested or weights:
            raise RecipeError(f"network: there are no ImageNet weights for {CUSTOM_CNN}; use --no-pretrained")
        if spec.pyramid:
            raise RecipeError(f"network.pyramid: {CUSTOM_CNN} has none; leave it out, or name another")
        try:
            backbone: nn.Module = CustomCNN(spec.channels, **spec.options)
        except (TypeError, RuntimeError) as error:
            raise RecipeError(
                f"network.options: {CUSTOM_CNN} takes only 'widths', numbers above 0 ({short(error)})"
            ) from error
        count = cast(int, backbone.num_features)
    else:
        starts_trained = requested or weights is not None
        model, source = timm_backbone(spec, pretrained=starts_trained, weights=weights)
        if starts_trained or spec.channels == 3:
            mean, std = _normalisation(model, spec.channels)
        if spec.pyramid:
            expert, count = spec.expert, spec.pyramid
            backbone = PyramidWithExpert(model, count, expert.blocks) if expert else Pyramid(model, count)
        else:
            backbone = _Features(model)
            count = _drop_unused(backbone, spec.channels)
        if not starts_trained and spec.name.startswith("vgg"):
            _he_initialise(backbone)
    return Network(backbone, count, classes, mean=mean, std=std, dropout=spec.dropout, weights_source=source)


def build_recipe_network(
    recipe: Recipe, *, pretrained: bool | None = None, weights: Path | None = None
) -> Network:
    """Build the network that a recipe trains, with its classes and seed.

    Parameters
    ----------
    recipe : Recipe
        With classes and target; see `Recipe.resolved`.
    pretrained, weights
        As for `build_network`, which raises the same errors.
    """
    names = recipe.output_classes
    return build_network(
        recipe.network, len(names), pretrained=pretrained, weights=weights, names=names, seed=recipe.seed
    )


def _normalisation(model: nn.Module, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the input that a timm model's weights were trained with.

    timm sums the filters of three colours where the input is grey, so one value for all of them is needed.
    """
    config = cast(dict[str, Any], model.pretrained_cfg)
    mean, std = (tuple(float(value) for value in config[key]) for key in ("mean", "std"))
    if channels == 3:
        return mean, std
    return (statistics.fmean(mean),), (statistics.fmean(std),)


@torch.no_grad()
def check_size(network: Network, size: int) -> None:
    """Reject an input size that is too small for the network.

    Raises
    ------
    RecipeError
        If an image of `size` by `size` pixels leaves no feature map, or the network takes another size only.
    """
    was_training = network.training
    try:
        _, features = network.eval()(torch.zeros(1, 1, size, size))
    except RuntimeError as error:
        raise RecipeError(f"input.size: {size} pixels are too few for this network") from error
    except AssertionError as error:  # timm's, for a transformer of another input size
        raise RecipeError(f"input.size: this network takes no {size} pixels ({short(error)})") from error
    if not features.numel():
        raise RecipeError(f"input.size: {size} pixels are too few for this network")
    network.train(was_training)


def _he_initialise(module: nn.Module) -> None:
    """Initialise convolutions as He et al. (ICCV 2015) do; a plain deep VGG does not train without it."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_in", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def freeze(network: Network, frozen: int | str, *, expert: bool = False) -> int:
    """Set which layers are trained; return the number of trainable parameters.

    Parameters
    ----------
    frozen : int or {"none", "backbone"}
        Number of convolutional layers, counted from the input, that are not trained, or the whole backbone.
        Batch normalisation after a frozen layer is frozen too. The layers of a `random_pyramid` never are.
    expert : bool
        Train the layers of the expert alone, which is started.
    """
    if isinstance(network.backbone, PyramidWithExpert):
        network.backbone.expert_alone = expert
    if expert:
        network.requires_grad_(False)
        cast(PyramidWithExpert, network.backbone).expert.requires_grad_(True)
        return _trainable(network)
    network.requires_grad_(True)  # includes norm layers that an earlier phase froze
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
    if network.random_pyramid:
        pyramid = cast(Pyramid, network.backbone)
        for part in (pyramid.fine, pyramid.coarse, pyramid.join):
            part.requires_grad_(True)
    if isinstance(network.backbone, PyramidWithExpert) and not network.backbone.started:
        network.backbone.expert.requires_grad_(False)  # several processes wait for a gradient of each
    return _trainable(network)


def _trainable(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def set_training(network: nn.Module) -> None:
    """Put the network into training mode, except for frozen batch normalisation."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.requires_grad:
            module.eval()


def save_weights(network: Network, path: Path, *, metadata: dict[str, str] | None = None) -> None:
    """Write the weights as safetensors, and text about them in its header."""
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    path.write_bytes(save(state, metadata))  # `save_file` makes files that only their owner may read


def _is_whole_network(path: Path) -> bool:
    """Whether a file was written by `save_weights`: a timm checkpoint does not hold the normalisation."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return {"mean", "std"} <= set(file.keys())
    except (OSError, SafetensorError):
        return False


def load_weights(network: Network, path: Path) -> Network:
    """Read weights that `save_weights` wrote; they include mean and standard deviation of the input.

    Raises
    ------
    RecipeError
        If the file does not fit the network.
    """
    try:
        network.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RecipeError(f"{path}: does not hold the weights of this recipe's network") from error
    network.unmeasured = network.random_pyramid = False
    return network
