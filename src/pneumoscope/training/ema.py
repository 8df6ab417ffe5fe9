"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pneumoscope.training.networks import Network

__all__ = ["WeightAverage"]


class WeightAverage:
    """A copy of a network whose weights trail behind the original's.

    The decay starts small, min(decay, (1 + n) / (10 + n)) at step n, so that the first random weights are
    soon forgotten (as in TensorFlow's ExponentialMovingAverage). Batch statistics are averaged as well.

    Parameters
    ----------
    network : Network
        Copied as it is now.
    decay : float
        Share of the old average that stays at each step, in (0, 1).
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, network: Network) -> None:
        """Move the average toward the network's present weights."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for mean, value in zip(
            self.network.state_dict().values(), network.state_dict().values(), strict=True
        ):
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), 1 - decay)
            else:
                mean.copy_(value)

    def state_dict(self) -> dict[str, Tensor | dict[str, Tensor]]:
        """Return weights and step count."""
        return {"network": self.network.state_dict(), "steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: dict[str, Tensor | dict[str, Tensor]]) -> None:
        """Take up what `state_dict` gave."""
        weights, steps = state["network"], state["steps"]
        assert isinstance(weights, dict) and isinstance(steps, Tensor)
        self.network.load_state_dict(weights)
        self.steps = int(steps)
