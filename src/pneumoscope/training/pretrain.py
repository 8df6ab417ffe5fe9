"""Self-supervised pretraining: two views of a image shall have like features; no label is used.

SimSiam (Chen and He, Exploring Simple Siamese Representation Learning, CVPR 2021): it needs neither negatives
nor large batches, so two processor cores will do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor, nn

from pneumoscope.errors import DataError
from pneumoscope.training.augment import augment
from pneumoscope.training.networks import Network, load_weights, save_weights
from pneumoscope.training.recipe import Recipe

__all__ = ["PRETRAINED_FILE", "pretrain"]

log = logging.getLogger(__name__)

PRETRAINED_FILE = "pretrained.safetensors"
# Apart from the streams that training draws from.
SEED_STREAM = 9_000


class _Siamese(nn.Module):
    """A backbone with SimSiam's projector and predictor; gives prediction and target, both (N, D)."""

    def __init__(self, backbone: nn.Module, mean: Tensor, std: Tensor, features: int) -> None:
        super().__init__()
        self.backbone, self.mean, self.std = backbone, mean, std
        self.projector = nn.Sequential(
            nn.Linear(features, features, bias=False),
            nn.BatchNorm1d(features),
            nn.ReLU(),
            nn.Linear(features, features, bias=False),
            nn.BatchNorm1d(features, affine=False),
        )
        narrow = max(8, features // 4)
        self.predictor = nn.Sequential(
            nn.Linear(features, narrow, bias=False),
            nn.BatchNorm1d(narrow),
            nn.ReLU(),
            nn.Linear(narrow, features),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone((images - self.mean) / self.std).mean(dim=(2, 3))
        target = self.projector(features)
        return self.predictor(target), target.detach()


def pretrain(
    recipe: Recipe,
    network: Network,
    images: npt.NDArray[np.uint8],
    run: Path,
    *,
    fabric: Fabric,
    on_epoch: Callable[[int, float], None] = lambda _epoch, _loss: None,
) -> Network:
    """Pretrain the backbone of a network as `recipe.pretraining` says.

    Parameters
    ----------
    recipe : Recipe
    network : Network
        Changed in place.
    images : ndarray of uint8, shape (N, 1, S, S)
        Packed; views are drawn by the recipe's augmentation.
    run : Path
        Gets ``pretrained.safetensors``; where it is there already, it is read and nothing is trained.
    on_epoch : callable
        Told the epoch, from 1, and its mean loss: minus the cosine of the two views, in [-1, 1].

    Raises
    ------
    DataError
        If the features of all images became the same, which the loss cannot tell from success.
    """
    assert recipe.pretraining is not None
    if (run / PRETRAINED_FILE).exists():
        return load_weights(network, run / PRETRAINED_FILE)
    network.to(fabric.device)
    siamese = _Siamese(network.backbone, network.mean, network.std, network.head.in_features)
    epochs, lr = recipe.pretraining.epochs, recipe.pretraining.lr
    optimizer = torch.optim.AdamW(siamese.parameters(), lr=lr, weight_decay=recipe.weight_decay)
    model, prepared = fabric.setup(siamese, optimizer)
    packed = torch.from_numpy(images).to(fabric.device)
    siamese.train()
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        loss, spread = _epoch(recipe, model, prepared, packed, epoch, fabric)
        log.info("pretraining: epoch %d of %d: loss %.4f", epoch + 1, epochs, loss)
        on_epoch(epoch + 1, loss)
    if not spread > 0.1 / math.sqrt(network.head.in_features):
        raise DataError(f"{run}: pretraining gave every image the same features; lower its lr")
    if fabric.is_global_zero:
        save_weights(network, run / PRETRAINED_FILE)
    fabric.barrier()
    return network


def _epoch(
    recipe: Recipe, model: Any, optimizer: Any, packed: Tensor, epoch: int, fabric: Fabric
) -> tuple[float, float]:
    """One pass; return the mean loss and the mean spread of the normalised targets, 0 after a collapse."""
    seed = np.random.SeedSequence([recipe.seed, SEED_STREAM + epoch, fabric.global_rank]).generate_state(2)
    order = torch.randperm(len(packed), generator=torch.Generator().manual_seed(int(seed[0])))
    generator = torch.Generator(fabric.device).manual_seed(int(seed[1]))
    losses, spreads = [], []
    for batch in torch.split(order, recipe.batch):
        if len(batch) < 2:
            continue
        images = packed[batch.to(fabric.device)].float() / 255
        views = [
            augment(images, recipe.augmentation, generator).contiguous(memory_format=torch.channels_last)
            for _ in range(2)
        ]
        (first, first_target), (second, second_target) = (model(view) for view in views)
        likeness = F.cosine_similarity(first, second_target) + F.cosine_similarity(second, first_target)
        loss = -likeness.mean() / 2
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
        spreads.append(float(F.normalize(first_target, dim=1).std(dim=0).mean()))
    if not losses:
        raise DataError(f"{len(packed)} images are too few to pretrain on; give more")
    return float(np.mean(losses)), float(np.mean(spreads))
