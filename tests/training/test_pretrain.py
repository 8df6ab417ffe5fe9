from __future__ import annotations

import numpy as np
import pytest
import torch

from pneumoscope.errors import DataError
from pneumoscope.parallel import Progress
from pneumoscope.training.networks import build_network, freeze
from pneumoscope.training.pretrain import PRETRAINED_FILE, pretrain
from pneumoscope.training.processes import make_fabric
from pneumoscope.training.recipe import NetworkSpec, Recipe

RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "description": "For tests.",
        "input": {"size": 16},
        "network": {"name": "custom-cnn", "channels": 1, "options": {"widths": [8, 16]}},
        "phases": [{"epochs": 1, "lr": 0.01}],
        "augmentation": {"area": [0.6, 1.0], "gamma": 0.3},
        "pretraining": {"epochs": 6, "lr": 0.005},
        "batch": 16,
    }
)


@pytest.fixture(scope="module")
def fabric():
    return make_fabric("cpu")


def blobs(count=64, seed=0):
    """A bright spot at a random place."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:16, :16]
    centre = rng.uniform(2, 14, (count, 2, 1, 1))
    distance = (rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2
    return np.rint(40 + 200 * np.exp(-distance / 10)).astype(np.uint8)[:, None]


class Losses(Progress):
    """Keeps the loss of each epoch."""

    def __init__(self):
        self.losses = []

    def message(self, line):
        self.losses.append(float(line.rsplit(" ", 1)[1]))


class Never(Progress):
    def update(self, done, total=None):
        pytest.fail("trained again")


def fresh():
    return build_network(RECIPE.network, 3, seed=0)


def test_two_copies_of_an_image_become_alike_and_images_stay_apart(tmp_path, fabric):
    progress = Losses()
    network = pretrain(RECIPE, fresh(), blobs(), tmp_path, fabric=fabric, progress=progress)
    losses = progress.losses
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.05
    _, features = network.eval()(torch.from_numpy(blobs(16, seed=1)).float() / 255)
    pooled = torch.nn.functional.normalize(features.mean(dim=(2, 3)), dim=1)
    assert float(pooled.detach().std(dim=0).mean()) > 0.01


def test_the_head_and_the_normalisation_are_left_alone(tmp_path, fabric):
    before = fresh()
    after = pretrain(RECIPE, fresh(), blobs(), tmp_path, fabric=fabric)
    assert torch.equal(before.head.weight, after.head.weight)
    assert torch.equal(before.mean, after.mean)
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_a_finished_pretraining_is_taken_up(tmp_path, fabric):
    first = pretrain(RECIPE, fresh(), blobs(), tmp_path, fabric=fabric)
    assert (tmp_path / PRETRAINED_FILE).exists()
    again = pretrain(RECIPE, fresh(), blobs(), tmp_path, fabric=fabric, progress=Never())
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_a_network_of_a_bundle_is_measured_before_the_pretraining_and_not_after(tmp_path, fabric):
    for _ in ("trained", "taken up"):
        network = fresh()
        network.unmeasured = True
        assert not pretrain(RECIPE, network, blobs(), tmp_path, fabric=fabric).unmeasured


def test_a_pyramid_that_was_pretrained_may_be_frozen(tmp_path, fabric):
    options = {"channels": [8, 8, 8, 8], "stem_width": 8}
    spec = {"name": "resnet10t", "channels": 1, "pyramid": 8, "options": options}
    network = build_network(NetworkSpec.model_validate(spec), 2, seed=0)
    pretrain(RECIPE, network, blobs(), tmp_path, fabric=fabric)
    assert freeze(network, "backbone") == network.head.weight.numel() + network.head.bias.numel()


def test_pretrained_weights_of_other_images_or_another_recipe_are_not_taken_up(tmp_path, fabric):
    for recipe, images in (
        (RECIPE, blobs()),
        (RECIPE.model_copy(update={"seed": 1}), blobs()),
        (RECIPE.model_copy(update={"seed": 1}), blobs(seed=1)),
    ):
        progress = Losses()
        pretrain(recipe, fresh(), images, tmp_path, fabric=fabric, progress=progress)
        assert len(progress.losses) == 6


def test_pretrained_weights_that_began_from_other_weights_are_not_taken_up(tmp_path, fabric):
    """A run that is begun again with another --weights would say that it started from these."""
    for source in ("", "custom-cnn (mine.safetensors, sha256 0123456789ab)"):
        network, progress = fresh(), Losses()
        network.weights_source = source
        pretrain(RECIPE, network, blobs(), tmp_path, fabric=fabric, progress=progress)
        assert len(progress.losses) == 6


def test_the_images_alone_are_enough_where_lungs_are_masked_in_training(tmp_path, fabric):
    augmentation = RECIPE.augmentation.model_copy(update={"lungs_only": 0.5})
    recipe = RECIPE.model_copy(update={"augmentation": augmentation})
    pretrain(recipe, fresh(), blobs(), tmp_path, fabric=fabric)


def test_one_image_is_too_few(tmp_path, fabric):
    with pytest.raises(DataError, match="too few to pretrain"):
        pretrain(RECIPE, fresh(), blobs(1), tmp_path, fabric=fabric)
