"""Images for tests: grey levels that the gate lets pass, and lungs, different for each seed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pneumoscope.image.lungs import LungField, lung_field

__all__ = ["drawn_lungs", "grey_levels", "write_image"]


def grey_levels(seed: int = 0, height: int = 120, width: int = 140) -> np.ndarray:
    """Return smooth random grey levels, uint8, shape (height, width)."""
    coarse = np.random.default_rng(seed).integers(30, 220, (6, 7), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def write_image(path: Path, seed: int = 0, height: int = 120, width: int = 140) -> Path:
    """Write such a image; the suffix chooses the format. Missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(path.suffix, grey_levels(seed, height, width))
    path.write_bytes(data.tobytes())
    return path


def drawn_lungs(certainty: float = 0.97, seed: int = 0) -> LungField:
    """Return a field of two rectangular lungs, with its view."""
    probability = np.zeros((128, 128), np.float32)
    probability[30:100, 20:58] = probability[30:100, 70:108] = certainty
    view = np.random.default_rng(seed).random((128, 128), np.float32) * 0.1 + (1 - probability) * 0.5
    return lung_field(probability, view=view.astype(np.float32))
