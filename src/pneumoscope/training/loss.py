"""The loss: cross-entropy that knows open labels, noisy sources and a teacher's opinion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Targets", "cross_entropy"]


@dataclass(frozen=True, eq=False)
class Targets:
    """What is known about a batch of images.

    Parameters
    ----------
    possible : Tensor of bool, shape (N, K)
        Classes that the label leaves open.
    smoothing : Tensor, shape (N,)
        Share of each label that is spread over all classes (Szegedy et al., CVPR 2016): more for a source
        whose labels are often wrong.
    weight : Tensor, shape (N,)
        What each image counts.
    teacher : Tensor, shape (N, K), or None
        A teacher's probabilities; rows add up to 1, or are 0 where it was not asked.
    trust : float
        Share of the loss that follows the teacher and not the label, in [0, 1]; none where it was not asked.
    source : Tensor of int64, shape (N,), or None
        Where each image comes from.
    rivals : Tensor of bool, shape (N, S), or None
        Sources that have images of the same class, its own among them.
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

    A label that leaves several classes open asks for their sum only (Cour et al., Learning from Partial
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
