from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pneumoscope.predict.explain import pneumonia_evidence
from pneumoscope.training.gradcam import grad_cam
from pneumoscope.training.networks import build_network
from pneumoscope.training.recipe import NetworkSpec


def test_on_a_pooled_linear_head_it_is_the_class_activation_map():
    spec = NetworkSpec(name="custom-cnn", channels=1, pretrained=False, dropout=0.5)
    network = build_network(spec, 2, seed=0).train()
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    found = grad_cam(network, network.backbone, images, lambda out: out[0][:, 1] - out[0][:, 0])
    assert network.training
    with torch.no_grad():
        _, features = network.eval()(images)
    weight = network.head.weight.detach().numpy()
    for evidence, one in zip(found, features.numpy(), strict=True):
        expected = pneumonia_evidence(one, weight, np.array([0.5, 0.5])) / one[0].size
        np.testing.assert_allclose(evidence, expected, atol=1e-6)


def dense_headed() -> nn.Sequential:
    """Two detectors of bright places; the dense head listens to the left half of the first alone."""
    convolution = nn.Conv2d(1, 2, 1, bias=False)
    head = nn.Linear(2 * 8 * 8, 1)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        head.weight.zero_()
        head.weight.view(2, 8, 8)[0, :, :4] = 1
    return nn.Sequential(convolution, nn.Flatten(), head)


def test_a_dense_head_is_explained_by_the_channels_it_listens_to():
    network = dense_headed()
    image = torch.zeros(1, 1, 8, 8)
    image[..., 2, 1] = 1
    (evidence,) = grad_cam(network, network[0], image, lambda out: out[:, 0])
    assert np.unravel_index(evidence.argmax(), evidence.shape) == (2, 1)
    assert evidence[2, 1] > 0


def test_a_layer_without_a_feature_map_is_rejected():
    network = dense_headed()
    with pytest.raises(ValueError, match="no feature map"):
        grad_cam(network, network[1], torch.zeros(1, 1, 8, 8), lambda out: out[:, 0])
    with pytest.raises(ValueError, match="no feature map"):
        grad_cam(network, nn.ReLU(), torch.zeros(1, 1, 8, 8), lambda out: out[:, 0])
