"""What changes over a training: the learning rate, and how fast the average of the weights forgets."""

from __future__ import annotations

import math

from timm.utils.model_ema import ModelEmaV3
from torch import nn

from pneumoscope.training.sections import Phase

__all__ = ["moving_average", "rate", "set_decay"]


def rate(phase: Phase, progress: float) -> float:
    """Return the learning rate after `progress` epochs of a phase, as a multiple of the phase's own."""
    if progress < phase.warmup:
        return max(progress, 0.01) / phase.warmup
    if phase.schedule == "constant":
        return 1.0
    share = (progress - phase.warmup) / max(1e-9, phase.epochs - phase.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def moving_average(network: nn.Module) -> ModelEmaV3:
    """Return a moving average of weights and batch statistics, which begins as `network`; see `set_decay`."""
    return ModelEmaV3(network, use_warmup=True, warmup_power=1.0)


def set_decay(average: ModelEmaV3, decay: float, power: float | None = None) -> None:
    """Set the decay of update n = 1, 2, ... to min(`decay`, n / (n + 9)), or to n / (n + `power` + 1).

    With the former the initial random weights are soon forgotten (as in TensorFlow's
    ExponentialMovingAverage). The latter is the recursion of an average in which update t has the weight
    t^`power` (Shamir and Zhang, ICML 2013).
    """
    average.decay, average.warmup_gamma = (decay, 9.0) if power is None else (1.0, power + 1)
