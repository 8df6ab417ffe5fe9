"""The loss of a batch, with auxiliary heads that a network has in training only.

One auxiliary head segments the lungs, so that the features represent them. Another predicts the source of the
image through a reversed gradient, so that the features do not represent it. Boxes that readers drew supervise
where the head itself sees the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pneumoscope.training.networks import Network
from pneumoscope.training.recipe import Tasks

__all__ = ["MultiTask", "Outputs", "Targets", "cross_entropy"]


@dataclass(frozen=True, eq=False)
class Targets:
    """The labels of a batch of images and how they count.

    Parameters
    ----------
    possible : Tensor of bool, shape (N, K)
        Classes that the label leaves open.
    smoothing : Tensor, shape (N,)
        Share of each label that is spread over all classes (Szegedy et al., CVPR 2016): more for a source
        whose labels are often wrong.
    weight : Tensor, shape (N,)
        Weight of each image.
    teacher : Tensor, shape (N, K), or None
        Probabilities of a teacher; rows add up to 1, or are 0 where there is no prediction.
    trust : float
        Share of the loss that follows the teacher and not the label, in [0, 1]; none where the row is 0.
    source : Tensor of int64, shape (N,), or None
        Source of each image.
    rivals : Tensor of bool, shape (N, S), or None
        Sources that have images of the same class, its own included.
    """

    possible: Tensor
    smoothing: Tensor
    weight: Tensor
    teacher: Tensor | None = None
    trust: float = 0.0
    source: Tensor | None = None
    rivals: Tensor | None = None

    def __getitem__(self, index: Tensor) -> Targets:
        """Return the targets of some of the images."""
        teacher, source, rivals = (
            None if rows is None else rows[index] for rows in (self.teacher, self.source, self.rivals)
        )
        return Targets(
            self.possible[index],
            self.smoothing[index],
            self.weight[index],
            teacher,
            self.trust,
            source,
            rivals,
        )


def cross_entropy(logits: Tensor, targets: Targets) -> Tensor:
    """Return the weighted mean loss of a batch, a scalar.

    A label that leaves several classes open determines only their sum (Cour et al., Learning from Partial
    Labels, JMLR 2011). The teacher's part is the cross-entropy with its probabilities (Hinton et al., 2015).

    Parameters
    ----------
    logits : Tensor, shape (N, K)
    targets : Targets
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    label = -log_p.masked_fill(~targets.possible, -torch.inf).logsumexp(dim=1)
    loss = (1 - targets.smoothing) * label - targets.smoothing * log_p.mean(dim=1)
    if targets.teacher is not None:
        trust = targets.trust * targets.teacher.sum(dim=1)
        loss = (1 - trust) * loss - targets.trust * (targets.teacher * log_p).sum(dim=1)
    return (targets.weight * loss).mean()


class Outputs(NamedTuple):
    """The outputs of all heads for a batch.

    Parameters
    ----------
    logits : Tensor, shape (N, K)
    places : Tensor, shape (N, K, h, w), or None
        The logits of each place of the feature map, of which `logits` are the mean.
    lungs : Tensor, shape (N, 1, h, w), or None
        Logits of lung at each place of the feature map.
    source : Tensor, shape (N, S), or None
        Logits of the source.
    """

    logits: Tensor
    places: Tensor | None
    lungs: Tensor | None
    source: Tensor | None


class _Reverse(torch.autograd.Function):
    """The identity with a reversed gradient."""

    @staticmethod
    def forward(_ctx: Any, features: Tensor) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class MultiTask(nn.Module):
    """A network with the heads of its auxiliary tasks.

    Parameters
    ----------
    network : Network
        Kept by reference.
    tasks : Tasks
        Weight of each task; 0 for none.
    sources : int
        S, the number of sources; with one there is nothing to tell apart.
    target_mask : ndarray of bool, shape (K,)
        Which classes count as the target.
    seed : int
        Of the initial weights of the heads.
    """

    target: Tensor

    def __init__(
        self,
        network: Network,
        tasks: Tasks,
        sources: int,
        target_mask: npt.NDArray[np.bool_],
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.tasks = network, tasks
        self.register_buffer("target", torch.from_numpy(target_mask), persistent=False)
        features = network.head.in_features
        self.heads = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if tasks.lungs:
                self.heads["lungs"] = nn.Conv2d(features, 1, 1)
            if tasks.source and sources > 1:
                self.heads["source"] = nn.Linear(features, sources)

    def forward(self, images: Tensor) -> Outputs:
        """Return the outputs of all heads for images ``[N, 1, H, W]`` in [0, 1]."""
        logits, features = self.network(images)
        places = lungs = source = None
        if self.tasks.boxes:
            head = self.network.head
            places = F.conv2d(features, head.weight[:, :, None, None], head.bias)
        if "lungs" in self.heads:
            lungs = self.heads["lungs"](features)
        if "source" in self.heads:
            reversed_: Tensor = _Reverse.apply(features.mean(dim=(2, 3)))  # type: ignore[no-untyped-call]
            source = self.heads["source"](reversed_)
        return Outputs(logits, places, lungs, source)

    def loss(
        self, outputs: Outputs, targets: Targets, lungs: Tensor | None = None, boxes: Tensor | None = None
    ) -> Tensor:
        """Return the loss of all tasks, a scalar.

        Parameters
        ----------
        outputs : Outputs
        targets : Targets
        lungs, boxes : Tensor, shape (N, 1, H, W), or None
            Share of lung, and of boxes, in each pixel, in [0, 1]; needed for the tasks of that name.
        """
        loss = cross_entropy(outputs.logits, targets)
        if outputs.lungs is not None:
            assert lungs is not None
            share = _pooled(lungs, outputs.lungs)
            loss = loss + self.tasks.lungs * F.binary_cross_entropy_with_logits(outputs.lungs.float(), share)
        if outputs.places is not None:
            assert lungs is not None
            assert boxes is not None
            loss = loss + self.tasks.boxes * self._location_loss(outputs.places, targets, lungs, boxes)
        if outputs.source is not None:
            loss = loss + self.tasks.source * _source_loss(outputs.source, targets)
        return loss

    def _location_loss(self, places: Tensor, targets: Targets, lungs: Tensor, boxes: Tensor) -> Tensor:
        """Negative log of the share of the target's evidence, as a softmax over places, inside the boxes.

        The softmax leaves the level of the evidence to the label. An image of the target without boxes has
        its lungs in their place.
        """
        drawn = boxes.amax(dim=(1, 2, 3), keepdim=True) > 0.5
        allowed = torch.where(drawn, boxes, lungs)
        share = _pooled(allowed, places).flatten(1)
        shown = ~(targets.possible & ~self.target).any(dim=1) & (share.amax(dim=1) > 0.5)
        if not shown.any():
            return places.new_zeros(())
        target = places[:, self.target].logsumexp(dim=1) - places[:, ~self.target].logsumexp(dim=1)
        attention = target.float().flatten(1).softmax(dim=1)
        inside = (attention * share).sum(dim=1).clamp_min(1e-4)
        return -(inside[shown].log().sum() / len(inside))


def _pooled(maps: Tensor, places: Tensor) -> Tensor:
    """Return the mean of maps in each place of a feature map."""
    height, width = places.shape[-2:]
    return F.adaptive_avg_pool2d(maps, (height, width))


def _source_loss(logits: Tensor, targets: Targets) -> Tensor:
    """Cross-entropy among the sources that have images of the same class.

    Where a class comes from one source only, a feature of the source is one of the class. Adversarial as in
    Ganin et al., JMLR 2016, class by class as in Li et al., ECCV 2018.
    """
    assert targets.source is not None
    assert targets.rivals is not None
    among = logits.float().masked_fill(~targets.rivals, -torch.inf)
    return F.cross_entropy(among, targets.source)
