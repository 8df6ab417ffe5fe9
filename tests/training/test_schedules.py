"""The learning rate of a phase, and the average of the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pneumoscope.training.schedules import moving_average, rate, set_decay
from pneumoscope.training.sections import Phase


def linear():
    return torch.nn.Linear(1, 1)


def test_the_rate_rises_and_falls_or_stays():
    cosine = Phase(epochs=5, lr=0.1, schedule="cosine", warmup=1)
    assert [round(rate(cosine, progress), 3) for progress in (0, 0.5, 1, 2, 3, 4, 5)] == [
        *(0.01, 0.5, 1, 0.854, 0.5, 0.146, 0),
    ]
    constant = Phase(epochs=5, lr=0.1, warmup=1)
    assert [rate(constant, progress) for progress in (0.5, 1, 5)] == [0.5, 1, 1]


def test_the_average_follows_the_published_warm_up():
    network = linear()
    bias = network.bias
    torch.nn.init.zeros_(bias)
    average = moving_average(network)
    set_decay(average, 0.9)
    torch.nn.init.ones_(bias)
    expected = 0.0
    for step in range(100):
        average.update(network, step=step + 2)  # as the trainer calls it, with one more than its count
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay)
        assert float(average.module.bias.detach()[0]) == pytest.approx(expected, abs=1e-5)
    assert not average.module.training


def test_an_average_may_weigh_updates_by_a_power_of_their_number():
    network = linear()
    bias = network.bias
    average = moving_average(network)
    set_decay(average, 0.9, 2)
    for update in range(1, 201):
        torch.nn.init.constant_(bias, update)
        average.update(network, step=update + 1)
    steps = np.arange(1, 201)
    assert float(average.module.bias.detach()[0]) == pytest.approx(
        np.average(steps, weights=steps**2), rel=0.01
    )
