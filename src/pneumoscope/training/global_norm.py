"""Batch normalisation over the images of all processes, so that dividing a batch does not change it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from pneumoscope.training.processes import gathered

__all__ = ["shared_batch_statistics"]


@contextmanager
def shared_batch_statistics(network: nn.Module, fabric: Fabric) -> Iterator[None]:
    """Let batch normalisation in training use the images of all processes, as in one process.

    `torch.nn.SyncBatchNorm` does the same on GPUs only, and would have to be replaced before the export.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if fabric.world_size == 1:
        layers = []
    for layer in layers:
        layer.forward = functools.partial(_normalise, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the method of the class is there again


def _normalise(layer: nn.modules.batchnorm._BatchNorm, inputs: Tensor) -> Tensor:
    if not layer.training:
        unchanged: Tensor = type(layer).forward(layer, inputs)
        return unchanged
    size = inputs.numel() // inputs.shape[1]
    normalised, mean, variance = _GlobalNorm.apply(inputs, layer.weight, layer.bias, layer.eps)  # type: ignore[no-untyped-call]
    if layer.running_mean is not None:
        assert layer.running_var is not None
        assert layer.num_batches_tracked is not None
        layer.num_batches_tracked.add_(1)
        momentum = layer.momentum
        if momentum is None:
            momentum = 1.0 / float(layer.num_batches_tracked)
        total = size * dist.get_world_size()
        layer.running_mean.lerp_(mean, momentum)
        layer.running_var.lerp_(variance * (total / max(1, total - 1)), momentum)
    # timm has normalisation with an activation in one layer.
    for following in ("drop", "act"):
        normalised = getattr(layer, following, nn.Identity())(normalised)
    result: Tensor = normalised
    return result


def _exact(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


class _GlobalNorm(torch.autograd.Function):
    """Batch normalisation by mean and variance of all processes, which have as many values each."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        axes = [axis for axis in range(inputs.ndim) if axis != 1]
        found = gathered(torch.stack(torch.var_mean(_exact(inputs), dim=axes, correction=0)))
        mean = found[:, 1].mean(dim=0)
        variance = found[:, 0].mean(dim=0) + found[:, 1].var(dim=0, correction=0)
        ctx.save_for_backward(inputs, weight, mean, torch.rsqrt(variance + eps))
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(inputs, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        inputs, weight, mean, scale = ctx.saved_tensors
        shape = [1, -1] + [1] * (inputs.ndim - 2)
        axes = [axis for axis in range(inputs.ndim) if axis != 1]
        gradient = _exact(gradients[0])
        unit = (_exact(inputs) - mean.view(shape)) * scale.view(shape)
        own = torch.stack([gradient.sum(dim=axes), (gradient * unit).sum(dim=axes)])
        total = own.clone()
        dist.all_reduce(total)
        count = inputs.numel() // inputs.shape[1] * dist.get_world_size()
        through_mean, through_scale = (total / count).view(2, *shape)
        factor = scale if weight is None else scale * weight
        to_inputs = (gradient - through_mean - unit * through_scale) * factor.view(shape)
        return (
            to_inputs.to(inputs.dtype),
            own[1] if ctx.needs_input_grad[1] else None,
            own[0] if ctx.needs_input_grad[2] else None,
            None,
        )
