"""The images that a network's expert is for, and the gate that chooses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumoscope.data.manifest import Record
from pneumoscope.errors import DataError
from pneumoscope.training.recipe import Recipe

__all__ = ["MOST_OTHERS", "Members", "fit_gate", "members"]

MOST_OTHERS = 0.02
"""Share of the images of other populations that the gate may send to the expert, where it is not known whose
they are: to leave an image of the expert's own population to the shared layers costs less."""

RIDGE = 0.01


@dataclass(frozen=True, eq=False)
class Members:
    """Which of N images are known to be of the population of an expert, and which not to be.

    Parameters
    ----------
    inside, outside : ndarray of bool, shape (N,)
        Neither is set where age and view do not say.
    sources : ndarray of str, shape (N,)
    """

    inside: npt.NDArray[np.bool_]
    outside: npt.NDArray[np.bool_]
    sources: npt.NDArray[np.str_]

    def weights(self) -> npt.NDArray[np.float64]:
        """Return the weight of each image: both sides count the same, and so do the sources of a side."""
        weights = np.zeros(len(self.sources))
        for side in (self.inside, self.outside):
            own = np.unique(self.sources[side])
            for source in own:
                rows = side & (self.sources == source)
                weights[rows] = 0.5 / (len(own) * rows.sum())
        return weights


def members(recipe: Recipe, records: Sequence[Record]) -> Members | None:
    """Return which images the expert of a recipe is for; None where no phase trains it.

    Raises
    ------
    DataError
        If no image is known to be of its population, or none of another one.
    """
    if recipe.network.expert is None or not any(phase.expert for phase in recipe.phases):
        return None
    population = recipe.network.expert.population
    side = np.array([population.membership(record.age, record.view) for record in records])
    inside, outside = side == 1, side == -1
    if not (inside.any() and outside.any()):
        raise DataError(
            f"network.expert: needs training images of {population.describe()} and of others, by the ages "
            "in a manifest; add them, or leave the expert out"
        )
    return Members(inside, outside, np.array([record.source for record in records], np.str_))


def fit_gate(
    features: npt.NDArray[np.float32], members: Members
) -> tuple[npt.NDArray[np.float32], np.float32]:
    """Fit a linear classifier of the expert's population by ridge regression on +1 and -1.

    Parameters
    ----------
    features : ndarray of float32, shape (N, D)
        Means of the shared feature map of the training images.
    members : Members

    Returns
    -------
    weight : ndarray of float32, shape (D,)
    bias : float32
        The value of an image is above 0 for `MOST_OTHERS` of the images of other populations.
    """
    weights = members.weights()
    mean = weights @ features
    scale = np.sqrt(weights @ (features - mean) ** 2) + 1e-6
    rows = (features - mean) / scale
    side = np.where(members.inside, 1.0, -1.0)
    covariance = (rows * weights[:, None]).T @ rows + RIDGE * np.eye(rows.shape[1])
    weight = np.linalg.solve(covariance, (rows * weights[:, None]).T @ side) / scale
    values = features[members.outside] @ weight
    order = np.argsort(values)
    below = np.cumsum(weights[members.outside][order]) / weights[members.outside].sum()
    limit = values[order][np.searchsorted(below, 1 - MOST_OTHERS)]
    return weight.astype(np.float32), np.float32(-limit)
