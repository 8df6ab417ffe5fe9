"""Images that are no frontal chest radiograph, drawn or made of chests: counterexamples for the gate.

Real ones (other body parts, photographs, lateral views) come from a folder; these add the kinds that no
folder has enough of. Every kind is drawn from a generator, so that a fit can be repeated. Chests that are
rotated or under a colour map are no kind: the first are predicted upright, the second are rejected for their
colour. A classifier that has to tell their grey levels from chests rejects chests of other hospitals, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from pneumoscope.data.phantom import PHANTOM_CLASSES, draw_phantom

__all__ = ["KINDS_OF_CHESTS", "KINDS_OF_DRAWINGS", "non_chests"]

Pixels = npt.NDArray[np.float32]
Draw = Callable[[np.random.Generator], Pixels]
Change = Callable[[Pixels, np.random.Generator], Pixels]

SIDE = 400


def non_chests(chests: Sequence[Pixels], count: int, seed: int = 0) -> Iterator[tuple[str, Pixels]]:
    """Yield `count` images of each kind, with the name of the kind.

    Parameters
    ----------
    chests : sequence of ndarray of float32, shape (H, W)
        Chest radiographs in [0, 1], which some kinds are made of; without any these kinds are left out.
    count : int
        Images of each kind.
    seed : int
        Of all draws.

    Yields
    ------
    kind : str
    pixels : ndarray of float32, shape (H, W)
        In [0, 1].
    """
    for index, (kind, draw) in enumerate(KINDS_OF_DRAWINGS.items()):
        for number in range(count):
            yield kind, np.clip(draw(np.random.default_rng([seed, 0, index, number])), 0, 1)
    for index, (kind, change) in enumerate(KINDS_OF_CHESTS.items()):
        for number in range(count if chests else 0):
            rng = np.random.default_rng([seed, 1, index, number])
            changed = change(chests[int(rng.integers(len(chests)))], rng)
            yield kind, np.clip(np.ascontiguousarray(changed, dtype=np.float32), 0, 1)


def _canvas(level: float) -> Pixels:
    return np.full((SIDE, SIDE), level, np.float32)


def _place(rng: np.random.Generator, low: float = 0.15, high: float = 0.85) -> tuple[int, int]:
    x, y = rng.uniform(low, high, 2) * SIDE
    return int(x), int(y)


def _blurred(pixels: Pixels, rng: np.random.Generator, most: float) -> Pixels:
    if rng.random() < 0.4:
        return pixels
    blurred: Pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.5, most))
    return blurred


def _grainy(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    if rng.random() < 0.6:
        return pixels
    return pixels + np.float32(rng.uniform(0.003, 0.04)) * rng.standard_normal(pixels.shape, dtype=np.float32)


def _shapes(rng: np.random.Generator) -> Pixels:
    """One to four filled ellipses or rectangles, sharp or blurred."""
    pixels = _canvas(float(rng.uniform()))
    for _ in range(int(rng.integers(1, 5))):
        (x, y), level = _place(rng), float(rng.uniform())
        a, b = (int(side) for side in rng.uniform(0.06, 0.4, 2) * SIDE)
        if rng.random() < 0.6:
            cv2.ellipse(pixels, (x, y), (a, b), float(rng.uniform(0, 180)), 0, 360, level, -1)
        else:
            cv2.rectangle(pixels, (x - a, y - b), (x + a, y + b), level, -1)
    return _grainy(_blurred(pixels, rng, 15), rng)


def _two_shapes(rng: np.random.Generator) -> Pixels:
    """Two dark fields side by side on a bright ground, as lungs lie: rounded, blurred, grainy or not."""
    pixels = _canvas(float(rng.uniform(0.35, 1)))
    level, y = float(rng.uniform(0, 0.45)), int(rng.uniform(0.4, 0.6) * SIDE)
    width, height = (int(share * SIDE) for share in (rng.uniform(0.08, 0.2), rng.uniform(0.15, 0.4)))
    for x in (int(rng.uniform(0.22, 0.38) * SIDE), int(rng.uniform(0.62, 0.78) * SIDE)):
        if rng.random() < 0.6:
            cv2.ellipse(pixels, (x, y), (width, height), float(rng.uniform(-15, 15)), 0, 360, level, -1)
        else:
            cv2.rectangle(pixels, (x - width, y - height), (x + width, y + height), level, -1)
    return _grainy(_blurred(pixels, rng, 20), rng)


def _noise(rng: np.random.Generator) -> Pixels:
    """Noise of one grain, from single pixels to clouds."""
    pixels = cv2.GaussianBlur(
        rng.random((SIDE, SIDE), dtype=np.float32), (0, 0), float(2 ** rng.uniform(-1, 6))
    )
    low, high = pixels.min(), pixels.max()
    stretched: Pixels = (pixels - low) / (high - low)
    return stretched


def _gradient(rng: np.random.Generator) -> Pixels:
    """A smooth field of grey."""
    coarse = rng.random((3, 3), dtype=np.float32)
    smooth: Pixels = cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return _grainy(smooth, rng)


def _text(rng: np.random.Generator) -> Pixels:
    """A page of text."""
    page = np.full((SIDE, SIDE), 255, np.uint8)
    step = int(rng.integers(12, 34))
    for y in range(step, SIDE, step):
        line = "".join(chr(letter) for letter in rng.integers(97, 123, 44))
        cv2.putText(page, line, (4, y), cv2.FONT_HERSHEY_SIMPLEX, step / 34, 0, 1, cv2.LINE_AA)
    grey = page.astype(np.float32) / np.float32(255)
    return grey if rng.random() < 0.7 else 1 - grey


def _chart(rng: np.random.Generator) -> Pixels:
    """Lines on axes."""
    pixels = _canvas(1.0)
    cv2.rectangle(pixels, (40, 20), (SIDE - 20, SIDE - 40), 0.0, 1)
    x = np.linspace(40, SIDE - 20, 60)
    for _ in range(int(rng.integers(1, 5))):
        y = np.clip(np.cumsum(rng.normal(0, 12, x.size)) + SIDE / 2, 20, SIDE - 40)
        points = np.stack([x, y], axis=1).astype(np.int32)
        cv2.polylines(pixels, [points], False, float(rng.uniform(0, 0.6)), int(rng.integers(1, 4)))
    return pixels


def _ultrasound(rng: np.random.Generator) -> Pixels:
    """A sector of speckle on black, with a line of text."""
    sector = np.zeros((SIDE, SIDE), np.float32)
    centre = (SIDE // 2, int(rng.uniform(0, 0.1) * SIDE))
    half, radius = rng.uniform(25, 50), int(rng.uniform(0.7, 0.95) * SIDE)
    cv2.ellipse(sector, centre, (radius, radius), 0, 90 - half, 90 + half, 1.0, -1)
    speckle = cv2.GaussianBlur(rng.random((SIDE, SIDE), dtype=np.float32), (0, 0), rng.uniform(1, 3))
    speckle = (speckle - speckle.min()) / (speckle.max() - speckle.min())
    field = cv2.resize(rng.random((5, 5), dtype=np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    shown: Pixels = sector * speckle * np.clip(field, 0, 1)
    return shown


def _slice(rng: np.random.Generator) -> Pixels:
    """An axial slice: an oval body with two dark fields, a spine, and black around it."""
    pixels = np.zeros((SIDE, SIDE), np.float32)
    middle, tone = (SIDE // 2, SIDE // 2), float(rng.uniform(0.3, 0.6))
    cv2.ellipse(pixels, middle, (int(0.42 * SIDE), int(rng.uniform(0.26, 0.34) * SIDE)), 0, 0, 360, tone, -1)
    for side in (-1, 1):
        lung = (SIDE // 2 + side * int(0.19 * SIDE), int(0.49 * SIDE))
        cv2.ellipse(
            pixels, lung, (int(0.13 * SIDE), int(0.19 * SIDE)), 0, 0, 360, float(rng.uniform(0, 0.2)), -1
        )
    cv2.circle(pixels, (SIDE // 2, int(0.68 * SIDE)), int(0.05 * SIDE), float(rng.uniform(0.8, 1)), -1)
    return _grainy(_blurred(pixels, rng, 4), rng)


def _phantom(rng: np.random.Generator) -> Pixels:
    """What ``pneumoscope data phantom`` draws."""
    label = PHANTOM_CLASSES[int(rng.integers(len(PHANTOM_CLASSES)))]
    return draw_phantom(label, int(rng.integers(1 << 31)), 256).astype(np.float32) / np.float32(255)


def _blur(chest: Pixels, rng: np.random.Generator) -> Pixels:
    """Blurred beyond recognition."""
    sigma = rng.uniform(0.025, 0.08) * min(chest.shape)
    blurred: Pixels = cv2.GaussianBlur(chest, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    return blurred


def _quarter(chest: Pixels, rng: np.random.Generator) -> Pixels:
    """One quarter of the image."""
    rows, columns = (side // 2 for side in chest.shape)
    top, left = int(rng.integers(2)) * rows, int(rng.integers(2)) * columns
    return chest[top : top + rows, left : left + columns]


def _half(chest: Pixels, rng: np.random.Generator) -> Pixels:
    """The left or the right half."""
    columns = chest.shape[1] // 2
    return chest[:, :columns] if rng.random() < 0.5 else chest[:, columns:]


KINDS_OF_DRAWINGS: dict[str, Draw] = {
    "shapes": _shapes,
    "two shapes": _two_shapes,
    "noise": _noise,
    "gradient": _gradient,
    "text": _text,
    "chart": _chart,
    "ultrasound": _ultrasound,
    "slice": _slice,
    "phantom": _phantom,
}
"""By name, ``draw(rng)``."""

KINDS_OF_CHESTS: dict[str, Change] = {
    "blurred": _blur,
    "quarter": _quarter,
    "half": _half,
}
"""By name, ``change(chest, rng)``."""
