"""The limits of a bundle's gate, a part of ``bundle.json``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["GateLimits"]


class GateLimits(BaseModel):
    """Limits that an image must satisfy to be predicted.

    Parameters
    ----------
    min_side : int
        Pixels on the shorter side of the original.
    max_aspect : float
        Longer over shorter side.
    modalities : tuple of str
        DICOM modalities that are projection radiographs.
    body_parts : tuple of str
        DICOM Body Part Examined values that may be a chest; a header without one passes.
    min_contrast : float
        Standard deviation of the grey levels in [0, 1].
    max_clipped : float
        Share of pixels at the lowest and highest level together; at most 0.38 in 1,410 of 1,411 radiographs.
    max_colour : float
        How much colour may vary beyond what brightness or one tint explains. Colour maps that change the hue
        reach 0.12 or more, but for OpenCV's ``ocean`` and ``summer`` with 0.05 to 0.17, a coloured overlay
        0.12; coloured letters and arrows on a radiograph at most 0.08, tinted films 0.02.
    min_lung_certainty : float
        Mean probability that the lung segmenter gives to the lungs it found; where the bundle has one.
        At 0.91 and without `max_novelty` this rejects none of 5,232 children, 4 of 516 adults and 113 of 120
        knees and photographs.
    sure_lung_certainty : float
        Below it the inverted image is tried as well. Nine of ten adults and 99 of 100 children are above it,
        and no inverted image of either.
    max_lung_bridge : float
        Share of the height of the lungs at which they may join in the middle; a single lung field is no
        frontal view.
    max_novelty : float or None
        Distance from the chest radiographs that the statistics in ``gate.npz`` describe; see
        `pneumoscope.predict.novelty.Novelty`. None where there are none.
    min_chest : float or None
        Probability of a frontal chest radiograph that the classifier in ``gate.npz`` must give; see
        `pneumoscope.predict.chest`. None where there is no classifier.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    min_side: int = 64
    max_aspect: float = 2.5
    modalities: tuple[str, ...] = ("CR", "DX", "RG", "DR", "RF")
    body_parts: tuple[str, ...] = ("CHEST", "THORAX", "LUNG", "RIB", "RIBS", "PORT CHEST", "CHEST PORT")
    min_contrast: float = 0.04
    max_clipped: float = 0.6
    max_colour: float = 0.1
    min_lung_certainty: float = 0.91
    sure_lung_certainty: float = 0.945
    max_lung_bridge: float = 0.2
    max_novelty: float | None = None
    min_chest: float | None = None
