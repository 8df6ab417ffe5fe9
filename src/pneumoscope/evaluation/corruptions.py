"""Changes to a radiograph that a model should withstand: corruptions, harmless handling, shortcuts.

`CORRUPTIONS` are the 13 that MedMNIST-C defines for its set of chest radiographs, each in 5 strengths with
that set's settings: Di Salvo, Doerrich and Ledig, MedMNIST-C, 2024, arXiv:2406.17536; package ``medmnistc``
0.1.0 (Apache-2.0), ``corruptions/registry.py``, entry ``pneumoniamnist``. There they are defined on images
of 224 by 224 pixels of 8 bits; here on images of any size in [0, 1], without the rounding to 8 bits.

`TRANSFERS` are what an image goes through between archive and model without being damaged: saved again as
JPEG, made smaller by another filter, stretched, squashed to a square or restored from one.

`SHORTCUTS` are what accompanies a label by accident: burnt-in letters, exposure text, tubes, borders. A
network that relies on them and not on the lungs changes its prediction when they are added or removed (Zech
et al., Variable generalization performance of a deep learning model to detect pneumonia in chest radiographs,
PLOS Medicine 2018). Each is added to every image; one removes whatever is near the edge.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

__all__ = [
    "CORRUPTIONS",
    "REFERENCE_SIDE",
    "SHORTCUTS",
    "TRANSFERS",
    "Corruption",
    "at_aspect",
    "contrast",
    "gamma",
    "gaussian_noise",
    "jpeg",
    "shorter_side_to",
    "write_text",
]

Pixels = npt.NDArray[np.float32]
Apply = Callable[[Pixels, float, np.random.Generator], Pixels]

REFERENCE_SIDE = 224
"""Pixels of the shorter side at which the settings of `CORRUPTIONS` mean what their authors meant."""

_LANCZOS_LOBES = 3


@dataclass(frozen=True, slots=True)
class Corruption:
    """One change, in growing strengths.

    Parameters
    ----------
    name : str
        As in MedMNIST-C, where it is from there.
    settings : tuple of float
        One per strength, weakest first; what the number means depends on the change.
    apply : callable
        ``apply(pixels, setting, rng)``, with pixels of shape (H, W) in [0, 1]; use `corrupt`.
    """

    name: str
    settings: tuple[float, ...]
    apply: Apply

    def corrupt(self, pixels: Pixels, strength: int, *, key: str = "", seed: int = 0) -> Pixels:
        """Return a changed copy of an image; the same arguments give the same copy.

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
        names = (text.encode("utf-8", "backslashreplace") for text in (self.name, key))
        rng = np.random.default_rng([seed, *map(zlib.crc32, names)])
        changed = self.apply(pixels, self.settings[strength - 1], rng)
        return np.clip(changed, 0, 1).astype(np.float32, copy=False)


def shorter_side_to(pixels: Pixels, side: int) -> Pixels:
    """Average an image down until its shorter side has `side` pixels; a smaller image stays as it is."""
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


def jpeg(pixels: Pixels, quality: float, _: np.random.Generator) -> Pixels:
    """Return the image as read back from a JPEG of this quality, 1 to 100."""
    grey = np.rint(pixels * 255).astype(np.uint8)
    data = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
    stored: npt.NDArray[np.uint8] = np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), dtype=np.uint8)
    return stored.astype(np.float32) / np.float32(255)


def gaussian_noise(pixels: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    """Add noise of this standard deviation."""
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


def contrast(pixels: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    """Multiply differences from the mean."""
    mean = np.float32(pixels.mean(dtype=np.float64))
    return mean + (pixels - mean) * np.float32(factor)


def gamma(pixels: Pixels, exponent: float, _: np.random.Generator) -> Pixels:
    """Raise grey levels to a power."""
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
def _lanczos_weights(size: int, length: int) -> Pixels:
    """Weights that turn `size` samples into `length`, shape (length, size); each row sums to 1."""
    scale = max(1.0, size / length)
    centres = (np.arange(length) + 0.5) * size / length
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
    """Stretch an image along one side until its width over height is `aspect`, which must be above 0."""
    height, width = pixels.shape
    if aspect > width / height:
        return _resized(pixels, height, round(height * aspect), cv2.INTER_LINEAR)
    return _resized(pixels, round(width / aspect), width, cv2.INTER_LINEAR)


CAPITAL = 21.0
"""Pixels that a capital of OpenCV's font is high at scale 1."""


def write_text(pixels: Pixels, text: str, *, left: float, bottom: float, tall: float, level: float) -> Pixels:
    """Return a copy of an image with bright text burnt in, as radiographers do.

    Parameters
    ----------
    pixels : ndarray of float32, shape (H, W)
        In [0, 1].
    text : str
        One line.
    left, bottom : float
        Where its first letter stands, as shares of width and height.
    tall : float
        Height of a capital, as a share of the image's height.
    level : float
        Its grey level, in [0, 1].
    """
    height, width = pixels.shape
    capital = tall * height
    scale, thick = capital / CAPITAL, max(1, round(capital / 8))
    ink = np.zeros(pixels.shape, np.uint8)
    start = (round(left * width), round(bottom * height))
    cv2.putText(ink, text, start, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)
    return _cover(pixels, ink, level)


def _cover(pixels: Pixels, ink: npt.NDArray[np.uint8], level: float) -> Pixels:
    share = ink.astype(np.float32) / np.float32(255)
    covered: Pixels = pixels + share * (np.float32(level) - pixels)
    return covered


def _letter(pixels: Pixels, tall: float, _: np.random.Generator) -> Pixels:
    return write_text(pixels, "R", left=0.05, bottom=0.06 + tall, tall=tall, level=0.95)


def _exposure(pixels: Pixels, tall: float, _: np.random.Generator) -> Pixels:
    first = write_text(pixels, "70 kV", left=0.7, bottom=0.03 + tall, tall=tall, level=0.9)
    return write_text(first, "3.2 mAs", left=0.7, bottom=0.05 + 2.4 * tall, tall=tall, level=0.9)


def _tube(pixels: Pixels, wide: float, _: np.random.Generator) -> Pixels:
    """Draw a line from the upper edge down beside the spine, as a feeding tube runs."""
    height, width = pixels.shape
    down = np.linspace(0, 0.9, 40)
    across = 0.5 + 0.03 * np.sin(5 * down) + 0.08 * np.maximum(0, down - 0.6)
    points = np.rint(np.stack([across * width, down * height], axis=1)).astype(np.int32)
    ink = np.zeros(pixels.shape, np.uint8)
    cv2.polylines(ink, [points], False, 255, max(1, round(wide * width)), cv2.LINE_AA)
    return _cover(pixels, ink, 0.9)


def _border(pixels: Pixels, share: float, _: np.random.Generator) -> Pixels:
    """Frame the image in black; it grows."""
    rows, columns = (round(share * side) for side in pixels.shape)
    framed: Pixels = cv2.copyMakeBorder(
        pixels, rows, rows, columns, columns, cv2.BORDER_CONSTANT, value=(0.0,)
    )
    return framed


def _edge_erased(pixels: Pixels, share: float, _: np.random.Generator) -> Pixels:
    """Blacken what lies near the edge, and with it what was burnt in there."""
    height, width = pixels.shape
    rows, columns = round(share * height), round(share * width)
    erased = np.zeros_like(pixels)
    inside = np.s_[rows : height - rows, columns : width - columns]
    erased[inside] = pixels[inside]
    return erased


CORRUPTIONS = (
    Corruption("pixelate", (0.8, 0.7, 0.6, 0.5, 0.4), _pixelate),
    Corruption("jpeg_compression", (50, 30, 15, 10, 7), jpeg),
    Corruption("gaussian_noise", (0.04, 0.05, 0.06, 0.07, 0.08), gaussian_noise),
    Corruption("speckle_noise", (0.05, 0.07, 0.10, 0.15, 0.20), _speckle_noise),
    Corruption("impulse_noise", (0.005, 0.01, 0.013, 0.017, 0.02), _impulse_noise),
    Corruption("shot_noise", (300, 200, 150, 100, 80), _shot_noise),
    # The registry lists a sixth kernel, 13, which its five strengths never reach.
    Corruption("gaussian_blur", (3, 5, 7, 9, 11), _gaussian_blur),
    Corruption("brightness_up", (1.1, 1.2, 1.3, 1.4, 1.5), _brightness),
    Corruption("brightness_down", (0.9, 0.8, 0.7, 0.6, 0.5), _brightness),
    Corruption("contrast_up", (1.1, 1.2, 1.3, 1.4, 1.6), contrast),
    Corruption("contrast_down", (0.9, 0.8, 0.7, 0.6, 0.4), contrast),
    Corruption("gamma_corr_up", (1.1, 1.2, 1.3, 1.4, 1.6), gamma),
    Corruption("gamma_corr_down", (0.9, 0.8, 0.7, 0.6, 0.4), gamma),
)
"""The 13 corruptions of MedMNIST-C for chest radiographs, 5 strengths each."""

TRANSFERS = (
    Corruption("jpeg_requality", (95, 90, 85, 75, 60), jpeg),
    Corruption("resize_nearest", (0.9, 0.8, 0.7, 0.6, 0.5), _nearest),
    Corruption("resize_bilinear", (0.9, 0.8, 0.7, 0.6, 0.5), _bilinear),
    Corruption("resize_lanczos", (0.9, 0.8, 0.7, 0.6, 0.5), _lanczos),
    Corruption("aspect_wide", (1.1, 1.2, 1.3, 1.4, 1.5), _wide),
    Corruption("aspect_narrow", (1.1, 1.2, 1.3, 1.4, 1.5), _narrow),
)
"""Handling that is no damage: requality, other filters of resampling, other aspect ratios."""

SHORTCUTS = (
    Corruption("letter", (0.04, 0.06, 0.08, 0.10, 0.12), _letter),
    Corruption("exposure_text", (0.02, 0.03, 0.04, 0.05, 0.06), _exposure),
    Corruption("tube", (0.006, 0.009, 0.012, 0.016, 0.02), _tube),
    Corruption("black_border", (0.02, 0.04, 0.06, 0.08, 0.10), _border),
    Corruption("edge_erased", (0.02, 0.03, 0.04, 0.05, 0.06), _edge_erased),
)
"""Heights of capitals, width of the tube, width of the border: all as shares of the image's side."""
