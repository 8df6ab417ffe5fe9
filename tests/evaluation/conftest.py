"""An evaluated set with everything a report shows: patients, sources, mistakes."""

from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.domain import Target
from pneumoscope.evaluation import ScoredSet

THREE = ("normal", "bacterial", "viral")


def made_up(n=300, seed=0, classes=THREE, per_patient=1, target=None):
    """Draw labels, and probabilities that lean towards them."""
    rng = np.random.default_rng(seed)
    k = len(classes)
    labels = np.r_[np.arange(k), rng.integers(0, k, n - k)]
    logits = rng.normal(size=(n, k)) + 1.5 * (labels[:, None] == np.arange(k))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    patients = tuple(f"patient{i // per_patient}" for i in range(n))
    sources = tuple(("IM", "NORMAL2")[i % 2] for i in range(n))
    target = target or Target("pneumonia", tuple(classes[1:]))
    paths = tuple(f"{i}.png" for i in range(n))
    return ScoredSet(classes, labels, p, patients, paths, sources, target=target)


@pytest.fixture(scope="session")
def draw():
    return made_up
