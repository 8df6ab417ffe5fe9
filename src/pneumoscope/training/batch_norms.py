"""Statistics of batch normalisations whose own were lost in an export."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pneumoscope.training.networks import Network
from pneumoscope.training.processes import shared

__all__ = ["measure_batch_norms", "measure_once"]

# Enough for means and variances of a thousand channels to settle.
MEASURED_IMAGES = 512
MEASURED_BATCH = 32


def measure_once(network: Network, images: npt.NDArray[np.uint8], fabric: Fabric) -> None:
    """Call `measure_batch_norms` for a network that comes from a bundle and was not trained since."""
    if shared(fabric, lambda: network.unmeasured):
        measure_batch_norms(network.to(fabric.device), images)
        network.unmeasured = False


@torch.no_grad()
def measure_batch_norms(network: nn.Module, images: npt.NDArray[np.uint8]) -> None:
    """Set the statistics of all batch normalisations to those of images; what the network computes stays.

    Scale and shift are changed with them, so that the outputs in evaluation mode are as before, and nearly so
    in training mode.

    Parameters
    ----------
    network : nn.Module
        Takes ``[N, 1, S, S]`` float32 in [0, 1].
    images : ndarray of uint8, shape (N, 1, S, S)
        Of which `MEASURED_IMAGES` at most are used, evenly spaced.
    """
    device = next(network.parameters()).device
    sums: dict[_BatchNorm, Tensor] = {}

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        values = inputs[0].double().transpose(0, 1).flatten(1)
        counted = torch.full((len(values),), values.shape[1], dtype=torch.float64, device=device)
        row = torch.stack([counted, values.sum(dim=1), values.square().sum(dim=1)])
        sums[module] = sums[module] + row if module in sums else row

    hooks = [m.register_forward_pre_hook(before) for m in network.modules() if isinstance(m, _BatchNorm)]
    network.eval()
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), MEASURED_IMAGES)).astype(np.intp))
    for start in range(0, len(rows), MEASURED_BATCH):
        batch = torch.from_numpy(images[rows[start : start + MEASURED_BATCH]]).to(device)
        network(batch.float() / 255)
    for hook in hooks:
        hook.remove()
    for norm, (counted, total, squares) in sums.items():
        assert norm.running_mean is not None and norm.running_var is not None
        mean = total / counted
        variance = (squares / counted - mean.square()).clamp_min(0)
        scale = norm.weight / torch.sqrt(norm.running_var.double() + norm.eps)
        norm.bias.copy_(norm.bias + scale * (mean - norm.running_mean))
        norm.weight.copy_(scale * torch.sqrt(variance + norm.eps))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    network.train()
