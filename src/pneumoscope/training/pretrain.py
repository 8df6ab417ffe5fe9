"""Self-supervised pretraining: two augmented copies of an image should have similar features.

SimSiam (Chen and He, Exploring Simple Siamese Representation Learning, CVPR 2021): it needs neither labels
nor negative pairs nor large batches, so that two CPUs are enough.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pneumoscope.errors import DataError
from pneumoscope.parallel import Progress
from pneumoscope.training.augment import augment
from pneumoscope.training.batch_norms import measure_once
from pneumoscope.training.global_norm import shared_batch_statistics
from pneumoscope.training.networks import Network, load_weights, save_weights
from pneumoscope.training.processes import check_divides, own_parts, shared, shared_network
from pneumoscope.training.recipe import Recipe

__all__ = ["PRETRAINED_FILE", "pretrain"]

PRETRAINED_FILE = "pretrained.safetensors"
# Separate from the random streams of the training.
SEED_STREAM = 9_000


class _Siamese(nn.Module):
    """A backbone with the projector and predictor of SimSiam; returns prediction and target, both (N, D)."""

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
    progress: Progress | None = None,
) -> Network:
    """Pretrain the backbone of a network by `recipe.pretraining`.

    Parameters
    ----------
    recipe : Recipe
    network : Network
        Changed in place.
    images : ndarray of uint8, shape (N, 1, S, S)
        Packed; copies are drawn by the augmentation of the recipe.
    run : Path
        Gets ``pretrained.safetensors``; if that exists, of the same recipe, images and initial weights, it is
        read and nothing is trained.
    progress : Progress, optional
        Gets a line per epoch with the mean loss: minus the cosine similarity of the copies, in [-1, 1].

    Raises
    ------
    DataError
        If the features of all images became the same, which the loss does not show.
    """
    assert recipe.pretraining is not None
    progress = progress or Progress()
    check_divides(recipe.batch, fabric.world_size)
    facts = shared(fabric, lambda: _facts(recipe, network, images))
    if shared(fabric, lambda: _is_there(run / PRETRAINED_FILE, facts)):
        return shared_network(fabric, lambda: load_weights(network, run / PRETRAINED_FILE), lambda: network)
    measure_once(network, images, fabric)
    network.to(fabric.device)
    siamese = _Siamese(network.backbone, network.mean, network.std, network.head.in_features)
    epochs, lr = recipe.pretraining.epochs, recipe.pretraining.lr
    optimizer = torch.optim.AdamW(siamese.parameters(), lr=lr, weight_decay=recipe.weight_decay)
    model, prepared = fabric.setup(siamese, optimizer)
    packed = torch.from_numpy(images).to(fabric.device)
    # The lung masks, which this augmentation needs, are not among the images.
    augmentation = recipe.augmentation.model_copy(update={"lungs_only": 0.0})
    recipe = recipe.model_copy(update={"augmentation": augmentation})
    siamese.train()
    with shared_batch_statistics(siamese, fabric):
        for epoch in range(epochs):
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
            loss, spread = _epoch(recipe, model, prepared, packed, epoch, fabric, progress)
            progress.message(f"pretraining: epoch {epoch + 1}/{epochs}  loss {loss:.4f}")
    if not spread > 0.1 / math.sqrt(network.head.in_features):
        raise DataError(f"{run}: after pretraining all images have the same features; lower its lr")
    if fabric.is_global_zero:
        save_weights(network, run / PRETRAINED_FILE, metadata=facts)
    fabric.barrier()
    network.random_pyramid = False
    return network


def _facts(recipe: Recipe, network: Network, images: npt.NDArray[np.uint8]) -> dict[str, str]:
    """Return what the pretrained weights follow from: hashes, and the source of the weights before them."""
    return {
        "started_from": network.weights_source,
        "recipe": recipe.sha256,
        "images": hashlib.sha256(np.ascontiguousarray(images).data).hexdigest(),
    }


def _is_there(path: Path, facts: dict[str, str]) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return bool(file.metadata() == facts)
    except (OSError, SafetensorError):
        return False


def _epoch(
    recipe: Recipe,
    model: Any,
    optimizer: Any,
    packed: Tensor,
    epoch: int,
    fabric: Fabric,
    progress: Progress,
) -> tuple[float, float]:
    """One pass; return the mean loss and the mean spread of the normalised targets, 0 after a collapse."""
    # The order is the same in all processes, the augmentation is not.
    first, own = (
        np.random.SeedSequence([recipe.seed, SEED_STREAM + epoch, rank]).generate_state(2)
        for rank in (0, fabric.global_rank)
    )
    order = torch.randperm(len(packed), generator=torch.Generator().manual_seed(int(first[0])))
    generator = torch.Generator(fabric.device).manual_seed(int(own[1]))
    losses, spreads = [], []
    batches = own_parts(order, recipe.batch, fabric)
    assert recipe.pretraining is not None
    for number, batch in enumerate(batches):
        progress.update(epoch * len(batches) + number, recipe.pretraining.epochs * len(batches))
        images = packed[batch.to(fabric.device)].float() / 255
        copies = [
            augment(images, recipe.augmentation, generator).contiguous(memory_format=torch.channels_last)
            for _ in range(2)
        ]
        (one, one_target), (other, other_target) = (model(copy) for copy in copies)
        similarity = F.cosine_similarity(one, other_target) + F.cosine_similarity(other, one_target)
        loss = -similarity.mean() / 2
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
        spreads.append(float(F.normalize(one_target, dim=1).std(dim=0).mean()))
    if not losses:
        raise DataError(f"{len(packed)} images are too few to pretrain on; give more")
    means = fabric.all_reduce(torch.tensor([np.mean(losses), np.mean(spreads)]), reduce_op="mean")
    assert isinstance(means, Tensor)
    loss_of_all, spread = means.tolist()
    return loss_of_all, spread
