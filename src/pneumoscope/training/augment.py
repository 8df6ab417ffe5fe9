"""Augmentation of a batch: one geometric warp, then photometric changes, on the device that trains.

Every random number comes from the generator that is passed in, so a resumed run draws the same numbers as
an uninterrupted one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

__all__ = ["Augmentation", "augment", "local_mean", "photometric", "sample_affine", "warp"]

Range = tuple[float, float]

LEAST_AREA = 0.05
"""Smallest share of the area that a stronger augmentation keeps."""


class Augmentation(BaseModel):
    """Random changes of a training image; the defaults change nothing.

    Parameters
    ----------
    area : tuple of float
        Share of the area that a random resized crop keeps (Szegedy et al., CVPR 2015); above 1 the image is
        shrunk inside a border of its edge pixels.
    aspect : tuple of float
        Width over height of that crop.
    rotate : float
        Largest angle in degrees, in either direction.
    flip : float
        Probability of a left-right flip.
    gamma, contrast, brightness : float
        Largest change: gamma in log2 units, contrast as a factor around the mean, brightness added.
    haze : float
        Amplitude of a smooth random field that is added, like scatter and uneven exposure.
    sharpness : float
        Largest amount of local contrast added or removed.
    blur : float
        Largest sigma of a Gaussian, as a share of the image side.
    noise : float
        Largest standard deviation of white noise.
    markers : int
        Largest number of small bright boxes, like burnt-in letters and tubes.
    cutout : float
        Largest side of one erased box, as a share of the image side (DeVries and Taylor, 2017).
    corners : float
        Probability that each corner and each border is erased, against burnt-in letters and frames.
    lungs_only : float
        Probability that all but the lungs is black, as in images that were published so. The edge of the
        lungs is moved and holes are cut at random, so that the shape of the mask says nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    area: Range = (1.0, 1.0)
    aspect: Range = (1.0, 1.0)
    rotate: float = Field(default=0.0, ge=0, le=180)
    flip: float = Field(default=0.0, ge=0, le=1)
    gamma: float = Field(default=0.0, ge=0, le=2)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    brightness: float = Field(default=0.0, ge=0, le=1)
    haze: float = Field(default=0.0, ge=0, le=1)
    sharpness: float = Field(default=0.0, ge=0, le=2)
    blur: float = Field(default=0.0, ge=0, le=0.1)
    noise: float = Field(default=0.0, ge=0, le=1)
    markers: int = Field(default=0, ge=0, le=10)
    cutout: float = Field(default=0.0, ge=0, lt=1)
    corners: float = Field(default=0.0, ge=0, le=1)
    lungs_only: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _agrees(self) -> Augmentation:
        for name, (low, high) in (("area", self.area), ("aspect", self.aspect)):
            if not 0 < low <= high:
                raise ValueError(f"{name}: must be two numbers above 0, the smaller first")
        return self

    def scaled(self, strength: float) -> Augmentation:
        """Return it with every change `strength` times as large, within its limits.

        0 changes nothing, 1 is as it is. The probability of a left-right flip stays: a flip is not weak or
        strong.
        """
        if strength == 1:
            return self
        values: dict[str, Any] = {"flip": self.flip}
        values["area"] = tuple(max(LEAST_AREA, 1 + (side - 1) * strength) for side in self.area)
        values["aspect"] = (self.aspect[0] ** strength, self.aspect[1] ** strength)
        for name, field in type(self).model_fields.items():
            if name not in values:
                limits = [getattr(one, "le", None) or getattr(one, "lt", None) for one in field.metadata]
                largest = max(limit for limit in limits if limit is not None)
                own = getattr(self, name)
                # Some limits are themselves not allowed.
                value = min(own * strength, max(own, largest * 0.99))
                values[name] = round(value) if field.annotation is int else value
        return Augmentation.model_validate(values)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)


def sample_affine(count: int, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Draw one affine map per image that combines crop, aspect, rotation and flip.

    Returns
    -------
    Tensor, shape (count, 2, 3)
        From output to input coordinates in [-1, 1], as `torch.nn.functional.affine_grid` takes them.
    """
    area = _uniform(count, *config.area, generator)
    log_low, log_high = (math.log(side) for side in config.aspect)
    ratio = torch.exp(_uniform(count, log_low, log_high, generator))
    height, width = torch.sqrt(area / ratio), torch.sqrt(area * ratio)
    shift_y = (1 - height).abs() * _uniform(count, -1, 1, generator)
    shift_x = (1 - width).abs() * _uniform(count, -1, 1, generator)
    angle = torch.deg2rad(_uniform(count, -config.rotate, config.rotate, generator))
    flipped = torch.rand(count, generator=generator, device=generator.device) < config.flip
    mirror = torch.where(flipped, -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    top = torch.stack([cos * width * mirror, -sin * height, shift_x], dim=1)
    bottom = torch.stack([sin * width * mirror, cos * height, shift_y], dim=1)
    return torch.stack([top, bottom], dim=1)


def warp(images: Tensor, theta: Tensor, *, size: int | None = None) -> Tensor:
    """Apply affine maps to images of shape (N, C, H, W); borders are replicated."""
    count, channels, height, width = images.shape
    shape = (count, channels, size or height, size or width)
    grid = F.affine_grid(theta, list(shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _per_image(count: int, amount: float, generator: torch.Generator) -> Tensor:
    """Return `count` draws from [-amount, amount], shaped to multiply images."""
    return _uniform(count, -amount, amount, generator).view(-1, 1, 1, 1)


def _haze(count: int, amount: float, side: int, generator: torch.Generator) -> Tensor:
    coarse = torch.randn(count, 1, 4, 4, generator=generator, device=generator.device)
    field = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
    return field * _uniform(count, 0, amount, generator).view(-1, 1, 1, 1)


def _blur(images: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Blur half of the images with a Gaussian of random width."""
    count, _, _, side = images.shape
    chosen = torch.rand(count, generator=generator, device=generator.device) < 0.5
    sigma = torch.where(chosen, _uniform(count, 0.0, largest * side, generator), 0.0).clamp_min(1e-2)
    radius = max(1, math.ceil(2 * largest * side))
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets[None] / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    flat = F.pad(images.transpose(0, 1), (radius, radius, radius, radius), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=count)
    return F.conv2d(flat, kernel[:, None, :, None], groups=count).transpose(0, 1)


def _boxes(count: int, height: Range, width: Range, side: int, generator: torch.Generator) -> Tensor:
    """Draw one box per image as a mask of shape (count, 1, side, side)."""
    steps = torch.linspace(0, 1, side, device=generator.device)
    tall, wide = _uniform(count, *height, generator), _uniform(count, *width, generator)
    top = torch.rand(count, generator=generator, device=generator.device) * (1 - tall)
    left = torch.rand(count, generator=generator, device=generator.device) * (1 - wide)
    rows = (steps >= top[:, None]) & (steps <= (top + tall)[:, None])
    columns = (steps >= left[:, None]) & (steps <= (left + wide)[:, None])
    return rows[:, None, :, None] & columns[:, None, None, :]


def photometric(images: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Change grey levels of images of shape (N, 1, S, S) in [0, 1]; the result stays in [0, 1]."""
    count, _, _, side = images.shape
    if config.gamma:
        images = images.clamp_min(1e-4) ** torch.exp2(_per_image(count, config.gamma, generator))
    if config.haze:
        images = images + _haze(count, config.haze, side, generator)
    if config.sharpness:
        coarse = F.interpolate(
            F.avg_pool2d(images, 8), size=(side, side), mode="bilinear", align_corners=False
        )
        images = images + (images - coarse) * _per_image(count, config.sharpness, generator)
    if config.contrast or config.brightness:
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        factor = 1 + _per_image(count, config.contrast, generator)
        images = (images - mean) * factor + mean + _per_image(count, config.brightness, generator)
    for _ in range(config.markers):
        box = _boxes(count, (0.01, 0.08), (0.01, 0.12), side, generator)
        shown = torch.rand(count, 1, 1, 1, generator=generator, device=generator.device) < 0.4
        images = torch.where(box & shown, _uniform(count, 0.6, 1.0, generator).view(-1, 1, 1, 1), images)
    if config.blur:
        images = _blur(images, config.blur, generator)
    if config.noise:
        spread = _uniform(count, 0, config.noise, generator).view(-1, 1, 1, 1)
        images = images + spread * torch.randn(images.shape, generator=generator, device=generator.device)
    if config.cutout:
        box = _boxes(count, (0.0, config.cutout), (0.0, config.cutout), side, generator)
        images = torch.where(box, _uniform(count, 0, 1, generator).view(-1, 1, 1, 1), images)
    return images.clamp(0, 1)


def _erase_edges(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Erase corners and borders, each with a probability, with one grey level for the image."""
    count, _, _, side = images.shape
    steps = torch.linspace(0, 1, side, device=generator.device)

    def chance() -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator, device=generator.device) < probability

    erased = torch.zeros(count, 1, side, side, dtype=torch.bool, device=generator.device)
    for rows in (steps, steps.flip(0)):
        erased |= chance() & (rows < _uniform(count, 0, 0.08, generator)[:, None])[:, None, :, None]
        erased |= chance() & (rows < _uniform(count, 0, 0.08, generator)[:, None])[:, None, None, :]
        for columns in (steps, steps.flip(0)):
            tall = rows < _uniform(count, 0, 0.25, generator)[:, None]
            wide = columns < _uniform(count, 0, 0.3, generator)[:, None]
            erased |= chance() & tall[:, None, :, None] & wide[:, None, None, :]
    return torch.where(erased, _uniform(count, 0, 1, generator).view(-1, 1, 1, 1), images)


def local_mean(images: Tensor, radius: int) -> Tensor:
    """Return the mean of the square around each pixel, of `radius` pixels to each side and within the image.

    Row by row, then column by column: a third of the time of one square window.
    """
    side = 2 * radius + 1
    rows = F.avg_pool2d(images, (side, 1), stride=1, padding=(radius, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, side), stride=1, padding=(0, radius), count_include_pad=False)


def _only_lungs(images: Tensor, lungs: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Blacken all but the lungs in some images; an image whose lungs were not found stays as it is."""
    count, _, _, side = images.shape
    chosen = torch.rand(count, 1, 1, 1, generator=generator, device=generator.device) < probability
    chosen &= lungs.amax(dim=(1, 2, 3), keepdim=True) > 0.5
    # A smooth random field moves the edge in and out; where it is lowest it cuts holes.
    radius = side // 20
    smooth = local_mean(lungs, radius)
    fine = torch.randn(count, 1, 8, 8, generator=generator, device=generator.device)
    field = F.interpolate(fine, size=(side, side), mode="bicubic", align_corners=False)
    moved = smooth + 0.25 * field > _uniform(count, 0.3, 0.7, generator).view(-1, 1, 1, 1)
    return torch.where(chosen & ~(moved & (smooth > 0.05)), 0.0, images)


def augment(images: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Augment a batch of shape (N, 1 + M, S, S); a config with defaults only returns it unchanged.

    The first channel is the image; the others are maps over it: they are warped too, their values stay.
    Where `config.lungs_only` is used, the first map is the lung mask in [0, 1].
    """
    if config == Augmentation():
        return images
    warped = warp(images, sample_affine(len(images), config, generator))
    changed = photometric(warped[:, :1], config, generator)
    if config.corners:
        changed = _erase_edges(changed, config.corners, generator)
    if config.lungs_only:
        changed = _only_lungs(changed, warped[:, 1:2], config.lungs_only, generator)
    return changed if images.shape[1] == 1 else torch.cat([changed, warped[:, 1:]], dim=1)
