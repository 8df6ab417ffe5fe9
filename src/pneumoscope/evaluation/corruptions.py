"""What can happen to a radiograph on its way to the model: corruptions, and harmless handling.

`CORRUPTIONS` are the 13 that MedMNIST-C defines for its set of chest radiographs, each in 5 strengths with
that set's settings: Di Salvo, Doerrich and Ledig, MedMNIST-C, 2024, arXiv:2406.17536; package ``medmnistc``
0.1.0 (Apache-2.0), ``corruptions/registry.py``, entry ``pneumoniamnist``. There they are defined on images
of 224 by 224 pixels of 8 bits; here on images of any size in [0, 1], without the rounding to 8 bits.

`TRANSFERS` are what a image goes through between archive and model without anyone calling it damage: saved
again as JPEG, made smaller by another filter, stretched, squashed to a square or restored from one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["CORRUPTIONS", "REFERENCE_SIDE", "TRANSFERS", "Corruption", "at_aspect", "shorter_side_to"]

Pixels = npt.NDArray[np.float32]
Apply = Callable[[Pixels, float, np.random.Generator], Pixels]

REFERENCE_SIDE = 224
"""Pixels of the shorter side at which the settings of `CORRUPTIONS` mean what their authors meant."""

_LANCZOS_LOBES = 3


@dataclass(frozen=True, slots=True)
class Corruption:
    """One kind of change, in strengths that grow.

    Parameters
    ----------
    name : str
        As in MedMNIST-C, where it is from there.
    settings : tuple of float
        One a strength, weakest first; what the number means depends on the kind.
    apply : callable
        ``apply(pixels, setting, rng)``, with pixels of shape (H, W) in [0, 1]; use `corrupt`.
    """

    name: str
    settings: tuple[float, ...]
    apply: Apply

    def corrupt(self, pixels: Pixels, strength: int, *, key: str = "", seed: int = 0) -> Pixels:
        """Return a changed copy of a image; the same arguments give the same copy.

        Parameters
        ----------
        pixels : ndarray of float32, shape (H, W)
            In [0, 1].
        strength : int
            1 to ``len(settings)``.
        key : str
            Of the image: images of different keys get different noise, all strengths the same draw.
        seed : int
            Of the noise.

        Returns
        -------
        ndarray of float32, in [0, 1]
            Of shape (H, W), but where the change is one of size.

        Raises
        ------
        ValueError
            If there is no such strength.
        """
        if not 1 <= strength <= len(self.settings):
            raise ValueError(f"{self.name} has strengths 1 to {len(self.settings)}, not {strength}")
        rng = np.random.default_rng([seed, *(zlib.crc32(text.encode()) for text in (self.name, key))])
        changed = self.apply(pixels, self.settings[strength - 1], rng)
        return np.clip(changed, 0, 1).astype(np.float32, copy=False)


def shorter_side_to(pixels: Pixels, side: int) -> Pixels:
    """Average a image down until its shorter side has `side` pixels; a smaller image stays as it is."""
    if min(pixels.shape) <= side:
        return pixels
    height, width = _scaled_shape(pixels.shape, side / min(pixels.shape))
    return _resized(pixels, height, width, cv2.INTER_AREA)


def _resized(pixels: Pixels, height: int, width: int, filter_: int) -> Pixels:
    resized: Pixels = cv2.resize(pixels, (max(1, width), max(1, height)), interpolation=filter_)
    return resized


def _scaled_shape(shape: tuple[int, ...], factor: float) -> tuple[int, int]:
    return max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))


def _pixelate(pixels: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    height, width = pixels.shape
    coarse = _resized(pixels, int(height * factor), int(width * factor), cv2.INTER_AREA)
    return _resized(coarse, height, width, cv2.INTER_NEAREST_EXACT)


def _jpeg(pixels: Pixels, quality: float, _: np.random.Generator) -> Pixels:
    grey = np.rint(pixels * 255).astype(np.uint8)
    data = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
    stored: npt.NDArray[np.uint8] = np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), dtype=np.uint8)
    return stored.astype(np.float32) / np.float32(255)


def _gaussian_noise(pixels: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    return pixels + np.float32(deviation) * rng.standard_normal(pixels.shape, dtype=np.float32)


def _speckle_noise(pixels: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    return pixels + pixels * np.float32(deviation) * rng.standard_normal(pixels.shape, dtype=np.float32)


def _impulse_noise(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    flipped = rng.random(pixels.shape, dtype=np.float32) < share
    salt = rng.random(pixels.shape, dtype=np.float32) < 0.5
    return np.where(flipped, salt.astype(np.float32), pixels)


def _shot_noise(pixels: Pixels, photons: float, rng: np.random.Generator) -> Pixels:
    return (rng.poisson(pixels * photons) / photons).astype(np.float32)


def _gaussian_blur(pixels: Pixels, kernel: float, _: np.random.Generator) -> Pixels:
    # What torchvision derives from a kernel; stated, since OpenCV has a table of its own for small ones.
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    side = int(kernel)
    blurred: Pixels = cv2.GaussianBlur(pixels, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101)
    return blurred


def _brightness(pixels: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    return pixels * np.float32(factor)


def _contrast(pixels: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    mean = np.float32(pixels.mean(dtype=np.float64))
    return mean + (pixels - mean) * np.float32(factor)


def _gamma(pixels: Pixels, exponent: float, _: np.random.Generator) -> Pixels:
    corrected: Pixels = np.power(pixels, np.float32(exponent))
    return corrected


def _nearest(pixels: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    height, width = _scaled_shape(pixels.shape, factor)
    return _resized(pixels, height, width, cv2.INTER_NEAREST_EXACT)


def _bilinear(pixels: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    """As OpenCV and many scripts do: from the four nearest pixels, which aliases."""
    height, width = _scaled_shape(pixels.shape, factor)
    return _resized(pixels, height, width, cv2.INTER_LINEAR)


def _lanczos(pixels: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    """As Pillow does: the kernel is widened by the scale, against aliasing."""
    height, width = _scaled_shape(pixels.shape, factor)
    rows, columns = _lanczos_weights(pixels.shape[0], height), _lanczos_weights(pixels.shape[1], width)
    resized: Pixels = (rows @ pixels @ columns.T).astype(np.float32, copy=False)
    return resized


@lru_cache(maxsize=64)
def _lanczos_weights(size: int, wanted: int) -> Pixels:
    """Weights that turn `size` samples into `wanted`, shape (wanted, size); each row sums to 1."""
    scale = max(1.0, size / wanted)
    centres = (np.arange(wanted) + 0.5) * size / wanted
    x: npt.NDArray[np.float64] = (np.arange(size) + 0.5 - centres[:, None]) / scale
    weights = np.sinc(x) * np.sinc(x / _LANCZOS_LOBES) * (np.abs(x) < _LANCZOS_LOBES)
    normed: Pixels = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normed


def _wide(pixels: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    """Stretch sideways, as restoring a squashed image does."""
    height, width = pixels.shape
    return _resized(pixels, height, round(width * factor), cv2.INTER_LINEAR)


def _narrow(pixels: Pixels, factor: float, rng: np.random.Generator) -> Pixels:
    """Squeeze sideways by stretching upwards, so that nothing is averaged away."""
    return np.ascontiguousarray(_wide(np.ascontiguousarray(pixels.T), factor, rng).T)


def at_aspect(pixels: Pixels, aspect: float) -> Pixels:
    """Stretch a image along one side until its width over height is `aspect`, which must be above 0."""
    height, width = pixels.shape
    if aspect > width / height:
        return _resized(pixels, height, round(height * aspect), cv2.INTER_LINEAR)
    return _resized(pixels, round(width / aspect), width, cv2.INTER_LINEAR)


CORRUPTIONS = (
    Corruption("pixelate", (0.8, 0.7, 0.6, 0.5, 0.4), _pixelate),
    Corruption("jpeg_compression", (50, 30, 15, 10, 7), _jpeg),
    Corruption("gaussian_noise", (0.04, 0.05, 0.06, 0.07, 0.08), _gaussian_noise),
    Corruption("speckle_noise", (0.05, 0.07, 0.10, 0.15, 0.20), _speckle_noise),
    Corruption("impulse_noise", (0.005, 0.01, 0.013, 0.017, 0.02), _impulse_noise),
    Corruption("shot_noise", (300, 200, 150, 100, 80), _shot_noise),
    # The registry lists a sixth kernel, 13, which its five strengths never reach.
    Corruption("gaussian_blur", (3, 5, 7, 9, 11), _gaussian_blur),
    Corruption("brightness_up", (1.1, 1.2, 1.3, 1.4, 1.5), _brightness),
    Corruption("brightness_down", (0.9, 0.8, 0.7, 0.6, 0.5), _brightness),
    Corruption("contrast_up", (1.1, 1.2, 1.3, 1.4, 1.6), _contrast),
    Corruption("contrast_down", (0.9, 0.8, 0.7, 0.6, 0.4), _contrast),
    Corruption("gamma_corr_up", (1.1, 1.2, 1.3, 1.4, 1.6), _gamma),
    Corruption("gamma_corr_down", (0.9, 0.8, 0.7, 0.6, 0.4), _gamma),
)
"""The 13 corruptions of MedMNIST-C for chest radiographs, 5 strengths each."""

TRANSFERS = (
    Corruption("jpeg_requality", (95, 90, 85, 75, 60), _jpeg),
    Corruption("resize_nearest", (0.9, 0.8, 0.7, 0.6, 0.5), _nearest),
    Corruption("resize_bilinear", (0.9, 0.8, 0.7, 0.6, 0.5), _bilinear),
    Corruption("resize_lanczos", (0.9, 0.8, 0.7, 0.6, 0.5), _lanczos),
    Corruption("aspect_wide", (1.1, 1.2, 1.3, 1.4, 1.5), _wide),
    Corruption("aspect_narrow", (1.1, 1.2, 1.3, 1.4, 1.5), _narrow),
)
"""Handling that is no damage: requality, other filters of resampling, other aspect ratios."""
