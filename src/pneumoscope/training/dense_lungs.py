"""Dense lungs for the training of the segmenter: opacities drawn into lungs, tubes and cables over them.

The masks stay, so that a consolidated lung is found as one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pneumoscope.training.augment import local_mean

__all__ = ["draw_dense_lungs"]

# Tubes and cables: how many at most, how often each is there, and its width as a share of the image side.
LINES, SHOWN, WIDTH = 3, 0.3, (0.004, 0.012)


def draw_dense_lungs(images: Tensor, lungs: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Draw smooth opacities into the lungs of some images, and bright lines across these.

    Parameters
    ----------
    images : Tensor, shape (N, 1, S, S)
        In [0, 1].
    lungs : Tensor, shape (N, 1, S, S)
        Share of lung in each pixel.
    share : float
        Of the images that are changed.
    generator : torch.Generator
        On the device of the images.

    Returns
    -------
    Tensor, shape (N, 1, S, S)
        In [0, 1]; an opacity is never darker than what was there.
    """
    count, _, side, _ = images.shape

    def uniform(low: float, high: float) -> Tensor:
        drawn = torch.rand(count, 1, 1, 1, generator=generator, device=images.device)
        return low + (high - low) * drawn

    coarse = torch.randn(count, 1, 5, 5, generator=generator, device=images.device)
    field = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
    # From a few patches to both lungs whole, from a haze to white.
    shape = torch.sigmoid(6 * (field - uniform(-1.5, 1)))
    # A soft edge, so that it does not trace the mask.
    inside = local_mean(lungs, side // 32)
    opacity = shape * inside * uniform(0.2, 0.9) * (uniform(0.5, 0.9) - images).clamp_min(0)
    changed = images + opacity
    steps = torch.linspace(0, 1, side, device=images.device)
    for _ in range(LINES):
        angle, x, y = uniform(0, math.pi), uniform(0, 1), uniform(0, 1)
        distance = (steps[None, :] - x) * torch.sin(angle) - (steps[:, None] - y) * torch.cos(angle)
        line = torch.exp(-((distance / uniform(*WIDTH)) ** 2))
        changed = changed + line * uniform(0.1, 0.4) * (uniform(0, 1) < SHOWN)
    return torch.where(uniform(0, 1) < share, changed.clamp(0, 1), images)
