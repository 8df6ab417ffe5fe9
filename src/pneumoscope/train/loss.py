"""The loss: cross-entropy that knows open labels, noisy sources and a teacher's opinion."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Targets", "cross_entropy"]


@dataclass(frozen=True, eq=False)
class Targets:
    """What is known about a batch of pictures.

    Parameters
    ----------
    possible : Tensor of bool, shape (N, K)
        Classes that the label leaves open.
    smoothing : Tensor, shape (N,)
        Share of each label that is spread over all classes (Szegedy et al., CVPR 2016): more for a source
        whose labels are often wrong.
    weight : Tensor, shape (N,)
        What each picture counts.
    teacher : Tensor, shape (N, K), or None
        A teacher's probabilities; rows add up to 1.
    trust : float
        Share of the loss that follows the teacher and not the label, in [0, 1].
    """

    possible: Tensor
    smoothing: Tensor
    weight: Tensor
    teacher: Tensor | None = None
    trust: float = 0.0

    def __getitem__(self, index: Tensor) -> Targets:
        """Return the targets of some of the pictures."""
        teacher = None if self.teacher is None else self.teacher[index]
        return Targets(self.possible[index], self.smoothing[index], self.weight[index], teacher, self.trust)


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
        loss = (1 - targets.trust) * loss - targets.trust * (targets.teacher * log_p).sum(dim=1)
    return (targets.weight * loss).mean()
