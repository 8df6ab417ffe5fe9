"""What a network gives for packed images: logits, and the mean of its feature map."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import Tensor

from pneumoscope.training.networks import Network

__all__ = ["pooled_features", "predict_logits"]

BATCH = 64


def predict_logits(network: Network, images: npt.NDArray[np.uint8], fabric: Fabric) -> Tensor:
    """Return logits (N, K) for packed images, float32 on the CPU."""
    return torch.cat([logits for logits, _ in _outputs(network, images, fabric)])


def pooled_features(network: Network, images: npt.NDArray[np.uint8], fabric: Fabric) -> Tensor:
    """Return the mean of the feature map over its places (N, D) for packed images, float32 on the CPU."""
    return torch.cat([features.mean(dim=(2, 3)) for _, features in _outputs(network, images, fabric)])


@torch.inference_mode()
def _outputs(
    network: Network, images: npt.NDArray[np.uint8], fabric: Fabric
) -> Iterator[tuple[Tensor, Tensor]]:
    network.eval()
    for start in range(0, len(images), BATCH):
        batch = torch.from_numpy(images[start : start + BATCH]).to(fabric.device)
        with fabric.autocast():
            logits, features = network((batch.float() / 255).contiguous(memory_format=torch.channels_last))
        yield logits.float().cpu(), features.float().cpu()
