"""The population of an image where neither header nor manifest states it, from the network's own features.

Softmax regression on the mean and spread of the feature maps, fitted on images whose population is known
(`pneumoscope.evaluation.estimation`). It chooses among the populations that the bundle is calibrated for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["PopulationClassifier", "feature_moments"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class PopulationClassifier:
    """Softmax regression on standardised features.

    Parameters
    ----------
    names : tuple of str, length P
        Of the populations.
    mean, scale : ndarray of float32, shape (F,)
        Of the features that it was fitted on.
    weight : ndarray of float32, shape (P, F)
    bias : ndarray of float32, shape (P,)
    """

    names: tuple[str, ...]
    mean: Floats
    scale: Floats
    weight: Floats
    bias: Floats

    @classmethod
    def of(cls, names: Sequence[str], arrays: Mapping[str, Floats]) -> PopulationClassifier:
        """Return the classifier that a bundle stores; the arrays are named like the parameters."""
        return cls(tuple(names), *(arrays[name] for name in ("mean", "scale", "weight", "bias")))

    def __call__(self, moments: Floats) -> str:
        """Return the most probable population of an image, from its `feature_moments`, shape (F,)."""
        row = (moments - self.mean) / self.scale
        return self.names[int(np.argmax(self.weight @ row + self.bias))]


def feature_moments(features: Floats) -> Floats:
    """Return mean, then standard deviation, of each of D feature maps, shape (2 D,).

    Parameters
    ----------
    features : ndarray of float32, shape (D, h, w)
        The network's last feature maps for one image.
    """
    return np.concatenate([features.mean(axis=(1, 2)), features.std(axis=(1, 2))]).astype(np.float32)
