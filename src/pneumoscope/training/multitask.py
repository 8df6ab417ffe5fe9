"""Multi-task learning: further heads that a network has while it learns, and leaves behind after.

One finds the lungs, so that the features look at them; the other names the source of the image through a
gradient that is turned round, so that the features forget it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pneumoscope.training.loss import Targets, cross_entropy
from pneumoscope.training.networks import Network
from pneumoscope.training.recipe import Tasks

__all__ = ["MultiTask", "Said"]


class Said(NamedTuple):
    """What the heads give for a batch.

    Parameters
    ----------
    logits : Tensor, shape (N, K)
    lungs : Tensor, shape (N, 1, h, w), or None
        Logits of lung at each place of the feature map.
    source : Tensor, shape (N, S), or None
        Logits of the source.
    """

    logits: Tensor
    lungs: Tensor | None
    source: Tensor | None


class _Reverse(torch.autograd.Function):
    """The identity, with its gradient turned round."""

    @staticmethod
    def forward(_ctx: Any, features: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class MultiTask(nn.Module):
    """A network with the heads of its further tasks.

    Parameters
    ----------
    network : Network
        The same object stays in use outside.
    tasks : Tasks
        What each task counts; 0 for none.
    sources : int
        S, number of sources; of one alone there is nothing to forget.
    seed : int
        Of the heads' first weights.
    """

    def __init__(self, network: Network, tasks: Tasks, sources: int, *, seed: int = 0) -> None:
        super().__init__()
        self.network, self.tasks = network, tasks
        features = network.head.in_features
        self.heads = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if tasks.lungs:
                self.heads["lungs"] = nn.Conv2d(features, 1, 1)
            if tasks.source and sources > 1:
                self.heads["source"] = nn.Linear(features, sources)

    def forward(self, images: Tensor) -> Said:
        """Return what the heads give for images ``[N, 1, H, W]`` in [0, 1]."""
        logits, features = self.network(images)
        lungs = source = None
        if "lungs" in self.heads:
            lungs = self.heads["lungs"](features)
        if "source" in self.heads:
            reversed_: Tensor = _Reverse.apply(features.mean(dim=(2, 3)))  # type: ignore[no-untyped-call]
            source = self.heads["source"](reversed_)
        return Said(logits, lungs, source)

    def loss(self, said: Said, targets: Targets, lungs: Tensor) -> Tensor:
        """Return the loss of all tasks, a scalar.

        Parameters
        ----------
        said : Said
        targets : Targets
        lungs : Tensor, shape (N, 1, H, W)
            Share of lung in each pixel, in [0, 1]; not looked at where there is no such task.
        """
        loss = cross_entropy(said.logits, targets)
        if said.lungs is not None:
            height, width = said.lungs.shape[-2:]
            share = F.adaptive_avg_pool2d(lungs, (height, width))
            loss = loss + self.tasks.lungs * F.binary_cross_entropy_with_logits(said.lungs.float(), share)
        if said.source is not None:
            loss = loss + self.tasks.source * _source_loss(said.source, targets)
        return loss


def _source_loss(logits: Tensor, targets: Targets) -> Tensor:
    """Cross-entropy among the sources that have images of the same class.

    Where a class comes from one source alone, to forget the source would be to forget the class. Adversarial
    as in Ganin et al., JMLR 2016, class by class as in Li et al., ECCV 2018.
    """
    assert targets.source is not None
    assert targets.rivals is not None
    among = logits.float().masked_fill(~targets.rivals, -torch.inf)
    return F.cross_entropy(among, targets.source)
