"""Population and view of an image where neither header nor manifest states them, from the network's features.

Softmax regression on the mean and spread of the feature maps, fitted on images of which they are known
(`pneumoscope.evaluation.estimation`). Both choose calibration and thresholds; and an image that is rejected
for its features is called a lateral view where it resembles one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumoscope.domain import ViewPosition

__all__ = ["FRONTAL", "LATERAL_ESTIMATED", "FeatureClassifier", "feature_moments"]

Floats = npt.NDArray[np.float32]

FRONTAL = (ViewPosition.PA, ViewPosition.AP)
LATERAL_ESTIMATED = "It looks like a lateral view: give the frontal (PA or AP) image of the study."
"""The line for people where no header states that the view is lateral."""


@dataclass(frozen=True, eq=False, slots=True)
class FeatureClassifier:
    """Softmax regression on standardised features.

    Parameters
    ----------
    names : tuple of str, length P
        Of the populations or views.
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
    def of(cls, names: Sequence[str], arrays: Mapping[str, Floats]) -> FeatureClassifier:
        """Return the classifier that a bundle stores; the arrays are named like the parameters."""
        return cls(tuple(names), *(arrays[name] for name in ("mean", "scale", "weight", "bias")))

    def __call__(self, moments: Floats, *, among: Collection[str] | None = None) -> str | None:
        """Return the most probable name for an image.

        Parameters
        ----------
        moments : ndarray of float32, shape (F,)
            From `feature_moments`.
        among : collection of str, optional
            The only names that are possible; all if not given.

        Returns
        -------
        str or None
            None where the classifier knows none of the possible names.
        """
        scores = self.weight @ ((moments - self.mean) / self.scale) + self.bias
        possible = [index for index, name in enumerate(self.names) if among is None or name in among]
        return self.names[max(possible, key=scores.__getitem__)] if possible else None


def feature_moments(features: Floats) -> Floats:
    """Return mean, then standard deviation, of each of D feature maps, shape (2 D,).

    Parameters
    ----------
    features : ndarray of float32, shape (D, h, w)
        The network's last feature maps for one image.
    """
    return np.concatenate([features.mean(axis=(1, 2)), features.std(axis=(1, 2))]).astype(np.float32)
