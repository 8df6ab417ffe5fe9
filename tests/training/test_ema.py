from __future__ import annotations

import pytest
import torch

from pneumoscope.training.ema import WeightAverage
from pneumoscope.training.networks import build_network
from pneumoscope.training.recipe import NetworkSpec

SPEC = NetworkSpec(name="custom-cnn", channels=1, options={"widths": [4, 4]})


def filled(network, value):
    with torch.no_grad():
        for weight in network.parameters():
            weight.fill_(value)
    return network


def weight_of(average):
    return float(average.network.head.bias[0])


def test_the_average_follows_the_published_warm_up():
    network = filled(build_network(SPEC, 2), 0.0)
    average = WeightAverage(network, 0.9)
    expected = 0.0
    filled(network, 1.0)
    for step in range(100):
        average.update(network)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay)
        assert weight_of(average) == pytest.approx(expected, abs=1e-5)


def test_the_average_is_a_copy_that_does_not_learn():
    network = build_network(SPEC, 2)
    average = WeightAverage(network, 0.5)
    filled(network, 3.0)
    assert weight_of(average) != 3.0
    assert not average.network.training
    assert not any(weight.requires_grad for weight in average.network.parameters())
    assert all(weight.requires_grad for weight in network.parameters())


def test_batch_statistics_are_averaged_and_counters_copied():
    network = build_network(SPEC, 2)
    average = WeightAverage(network, 0.5)
    network.train()(torch.rand(4, 1, 16, 16))
    norm = network.backbone[1]
    average.update(network)
    mine = average.network.backbone[1]
    assert int(mine.num_batches_tracked) == 1
    torch.testing.assert_close(mine.running_mean, 0.9 * norm.running_mean)


def test_a_stored_average_goes_on_as_if_never_stopped():
    torch.manual_seed(0)
    network = build_network(SPEC, 2)
    average = WeightAverage(network, 0.99)
    for value in (1.0, 2.0):
        average.update(filled(network, value))
    other = WeightAverage(build_network(SPEC, 2), 0.99)
    other.load_state_dict(average.state_dict())
    for each in (average, other):
        each.update(filled(network, 5.0))
    assert other.steps == average.steps == 3
    for key, value in average.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[key]), key
