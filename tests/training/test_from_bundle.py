"""Training on from the network of a bundle."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from pneumoscope.errors import BundleError, RecipeError
from pneumoscope.model.bundle import default_bundle_path, load_bundle
from pneumoscope.model.manifest import Provenance
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.training.batch_norms import measure_batch_norms
from pneumoscope.training.export import export_bundle
from pneumoscope.training.networks import build_network, freeze
from pneumoscope.training.recipe import NetworkSpec, Recipe, load_recipe

CLASSES = ("normal", "bacterial", "viral")
SMALL = NetworkSpec(name="custom-cnn", channels=1, options={"widths": [4, 8]})


def recipe_of(spec: NetworkSpec, **changes) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "small",
            "description": "For tests.",
            "classes": CLASSES,
            "input": {"size": 32},
            "network": spec,
            "phases": [{"epochs": 1, "lr": 0.01}],
        }
        | changes
    )


def trained(spec: NetworkSpec):
    """Return a network whose batch normalisations have statistics of their own."""
    network = build_network(spec, len(CLASSES), seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.2)
                module.weight.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
    return network


def packed(count: int = 60, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 1, size, size), dtype=np.uint8)


def outputs(network, images: np.ndarray, *, train: bool = False) -> list[np.ndarray]:
    network = copy.deepcopy(network).train(train)
    with torch.no_grad():
        return [one.numpy() for one in network(torch.from_numpy(images).float() / 255)]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).mean() / np.abs(expected).mean())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small network, and the folder of its bundle."""
    network = trained(SMALL)
    folder = tmp_path_factory.mktemp("made") / "bundle"
    export_bundle(network, recipe_of(SMALL), folder, provenance=Provenance())
    return network, folder


@pytest.mark.parametrize(
    ("name", "precision"), [(None, "float32"), ("test_resnet", "float32"), ("test_efficientnet", "float16")]
)
def test_it_computes_what_the_bundle_does(name, precision, tmp_path):
    spec = NetworkSpec(name=name) if name else SMALL
    network = trained(spec)
    recipe = recipe_of(spec, precision=precision)
    export_bundle(network, recipe, tmp_path / "bundle", provenance=Provenance())
    again = build_network(spec, len(CLASSES), weights=tmp_path / "bundle", names=CLASSES, seed=9)
    for found, expected in zip(outputs(again, packed()), outputs(network, packed()), strict=True):
        assert relative(found, expected) < (1e-4 if precision == "float32" else 1e-2)
    assert again.weights_source == f"bundle {load_bundle(tmp_path / 'bundle').identity}"


def test_the_shipped_network_can_be_trained_on():
    recipe = load_recipe("hospitals")
    network = build_network(
        recipe.network, len(recipe.output_classes), weights=default_bundle_path(), names=recipe.output_classes
    )
    bundle = load_bundle(default_bundle_path())
    images = packed(2, bundle.manifest.input.size)
    assert freeze(network, "backbone") == network.head.weight.numel() + network.head.bias.numel()
    expected = OnnxRuntime(bundle.model_path)(images.astype(np.float32) / 255, ("logits", "features"))
    for found, one in zip(outputs(network, images), expected, strict=True):
        assert relative(found, one) < 1e-3


def test_measured_it_computes_the_same_and_its_first_update_starts_from_there(made):
    _, folder = made
    network = build_network(SMALL, len(CLASSES), weights=folder, names=CLASSES)
    images = packed()
    before = outputs(network, images)
    unmeasured = outputs(network, images, train=True)
    measure_batch_norms(network, images)
    for found, expected in zip(outputs(network, images), before, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    in_training = outputs(network, images, train=True)
    assert relative(in_training[1], before[1]) < 1e-2
    assert relative(unmeasured[1], before[1]) > 0.2


def test_a_head_of_other_classes_starts_anew(made):
    network, folder = made
    others = ("normal", "tuberculosis", "viral")
    again = build_network(SMALL, len(others), weights=folder, names=others, seed=9)
    np.testing.assert_allclose(
        outputs(again, packed())[1], outputs(network, packed())[1], rtol=1e-3, atol=1e-4
    )
    assert not np.allclose(again.head.weight.detach(), network.head.weight.detach())
    fewer = build_network(SMALL, 2, weights=folder, names=("normal", "pneumonia"))
    assert fewer.head.out_features == 2


@pytest.mark.parametrize(
    "spec",
    [
        NetworkSpec(name="custom-cnn", channels=1, options={"widths": [4, 9]}),
        NetworkSpec(name="custom-cnn", channels=1, options={"widths": [4, 8, 8]}),
        NetworkSpec(name="custom-cnn", channels=3, options={"widths": [4, 8]}),
        NetworkSpec(name="test_resnet"),
    ],
    ids=str,
)
def test_another_network_is_one_line_that_names_the_recipe_of_the_bundle(spec, made):
    _, folder = made
    with pytest.raises(
        RecipeError, match=r"bundle: the network of this recipe is another one .* as small has it"
    ):
        build_network(spec, len(CLASSES), weights=folder, names=CLASSES)


def test_eight_bits_cannot_be_trained_on(tmp_path):
    recipe = recipe_of(SMALL, precision="int8")
    export_bundle(trained(SMALL), recipe, tmp_path / "b", provenance=Provenance(), train_images=packed())
    with pytest.raises(RecipeError, match="8 bits"):
        build_network(SMALL, len(CLASSES), weights=tmp_path / "b", names=CLASSES)


def test_a_folder_that_is_no_bundle_is_one_line(tmp_path):
    with pytest.raises(BundleError, match="not a bundle"):
        build_network(SMALL, len(CLASSES), weights=tmp_path, names=CLASSES)
