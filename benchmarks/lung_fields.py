"""The lung segmenter of a bundle on images of other hospitals: agreement with masks, and lungs found.

Masks of adult sets often leave out the lung behind heart and diaphragm, which the children's masks that the
shipped segmenter was trained on include. Besides the Dice coefficient, two figures do not depend on that: the
share of the mask that is found as lung, and the Dice coefficient of the outlines of both lungs together, each
row filled from its first to its last pixel of lung.

Of a manifest with a split, the images of split ``val`` count. With ``--dense``, opacities are drawn into the
lungs of all images, as in the training of the segmenter, with seed 0.

    python benchmarks/lung_fields.py --images IMAGES --masks MASKS [--dense] [--found MANIFEST...] [--lungs B]
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from pneumoscope import load_bundle
from pneumoscope.data import load
from pneumoscope.errors import PneumoscopeError
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.lungs import LUNG_INPUT_SIZE, lung_field, mask_path, read_lung_mask
from pneumoscope.image.standardise import lung_view
from pneumoscope.model.lungs import OnnxLungSegmenter
from pneumoscope.training.dense_lungs import draw_dense_lungs
from pneumoscope.training.lungs import dice

Mask = npt.NDArray[np.bool_]
FIGURES = ("Dice", "share of the mask found", "Dice of the outlines")


def main() -> None:
    """Print the agreement with the masks, and by source in how many images lungs are found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, help="manifest, or folder of images")
    parser.add_argument("--masks", type=Path, help="folder of masks, PNGs of the same names")
    parser.add_argument("--found", type=Path, nargs="*", default=[], help="folders or manifests of images")
    parser.add_argument("--bundle", help="the shipped bundle if not given")
    parser.add_argument("--lungs", type=Path, help="segmenter in place of the bundle's: lungs.onnx")
    parser.add_argument("--dense", action="store_true", help="draw opacities into the lungs")
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    path = options.lungs or bundle.lungs_path
    if path is None:
        parser.error(f"{bundle.path}: has no lung segmenter; give a bundle whose network uses the lungs")
    segment, least = OnnxLungSegmenter(path), bundle.manifest.gate.min_lung_certainty
    if options.images and options.masks:
        measured: dict[str, list[tuple[float, ...]]] = {}
        generator = torch.Generator().manual_seed(0) if options.dense else None
        for label, image, mask in pairs(options.images, options.masks):
            measured.setdefault(label, []).append(agreement(image, mask, segment, generator))
        for label, rows in measured.items():
            print(f"{len(rows)} images with masks, {label or 'all'}: means and 5th percentiles")
            for name, values in zip(FIGURES, np.array(rows).T, strict=True):
                print(f"{name:<26}{values.mean():>8.3f}{np.quantile(values, 0.05):>8.3f}")
    for place in options.found:
        for source, (found, images) in lungs_found(place, segment, least).items():
            print(f"{source:<26}lungs found in {found} of {images}")


def pairs(images: Path, masks: Path) -> list[tuple[str, Path, Path]]:
    """Return labels, images and their masks."""
    if images.is_dir():
        both = [("", path, mask_path(masks, path.name)) for path in sorted(images.iterdir())]
    else:
        manifest = load(images)
        listed = manifest.subset("val") if manifest.has_split else manifest
        both = [(one.label, listed.resolve(one), mask_path(masks, one.path)) for one in listed.records]
    kept = [one for one in both if one[2].is_file()]
    if not kept:
        raise SystemExit(f"{masks}: no mask has the name of an image in {images}")
    return kept


def probability(path: Path, segment: OnnxLungSegmenter) -> tuple[npt.NDArray[np.float32], ...]:
    """Return the probability of lung and the view of the image that it is for, each of shape (128, 128)."""
    view = lung_view(read_radiograph(path, min_side=2 * LUNG_INPUT_SIZE))
    return segment(view), view


def agreement(
    image: Path, mask: Path, segment: OnnxLungSegmenter, generator: torch.Generator | None
) -> tuple[float, float, float]:
    """Return Dice, the share of the mask that is found, and the Dice of the outlines."""
    truth = read_lung_mask(mask)
    chance, view = probability(image, segment)
    if generator is not None:
        lungs = cv2.resize(truth.astype(np.float32), chance.shape[::-1], interpolation=cv2.INTER_AREA)
        both = (torch.from_numpy(one)[None, None] for one in (view.astype(np.float32), lungs))
        chance = segment(draw_dense_lungs(*both, 1.0, generator)[0, 0].numpy())
    found = cv2.resize(chance, truth.shape[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
    return dice(found, truth), float((found & truth).sum() / truth.sum()), dice(filled(found), filled(truth))


def filled(mask: Mask) -> Mask:
    """Return a mask with each row filled from its first to its last pixel."""
    from_left = np.logical_or.accumulate(mask, axis=1)
    from_right = np.logical_or.accumulate(mask[:, ::-1], axis=1)[:, ::-1]
    return from_left & from_right


def lungs_found(place: Path, segment: OnnxLungSegmenter, least: float) -> dict[str, tuple[int, int]]:
    """Return by source in how many images the gate would find lungs, and how many images there are."""
    manifest = load(place)
    found, images = Counter(), Counter()
    for record in manifest.records:
        chance, view = probability(manifest.resolve(record), segment)
        source = f"{record.source or place.name} {record.label}"
        images[source] += 1
        lungs = lung_field(chance, view=view)
        found[source] += lungs.plausible and lungs.certainty >= least
    return {source: (found[source], images[source]) for source in sorted(images)}


if __name__ == "__main__":
    try:
        main()
    except PneumoscopeError as error:
        raise SystemExit(str(error)) from None
