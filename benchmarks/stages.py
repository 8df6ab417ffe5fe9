"""Processor time of each stage of `pneumoscope predict`, on one thread.

Every stage runs on the same images in every round, as the pipeline runs it; the last row is the whole, with
what lies between the stages.

    python benchmarks/stages.py FOLDER [--bundle B] [--images N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from copies import SUFFIXES

from pneumoscope.domain import Radiograph
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.lungs import lung_field
from pneumoscope.image.standardise import lung_view, standardise_with_lungs
from pneumoscope.model.bundle import Bundle, load_bundle
from pneumoscope.model.lungs import OnnxLungSegmenter
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.parallel import CHUNK
from pneumoscope.predict.gate import check_pixels
from pneumoscope.predict.pipeline import Pipeline
from pneumoscope.predict.predictor import Predictor
from pneumoscope.predict.prepared import Prepared

T = TypeVar("T")
OUTPUTS = ("logits", "features")


class Clock:
    """Collects the processor time of the stages, in ms an image."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.times: dict[str, list[float]] = {}

    def __call__(self, stage: str, work: Callable[[], T]) -> T:
        """Run a stage on all images and keep its time."""
        began = time.process_time()
        result = work()
        self.times.setdefault(stage, []).append((time.process_time() - began) / self.images * 1e3)
        return result


def main() -> None:
    """Print one row a stage and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with full-size JPEG or PNG X-rays")
    parser.add_argument("--bundle", help="the shipped bundle if not given")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    found = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = found[: options.images]
    if not paths:
        raise SystemExit(f"{options.folder}: no JPEG or PNG image in this folder")
    clock = Clock(len(paths))
    bundle = load_bundle(options.bundle)
    for _ in range(options.rounds):
        measure(bundle, paths, clock)
    medians = {stage: statistics.median(times[1:] or times) for stage, times in clock.times.items()}
    for stage, ms in medians.items():
        print(f"{stage:<24}{ms:>8.2f} ms")
    print(json.dumps({"images": len(paths), "ms": medians}))


def measure(bundle: Bundle, paths: list[Path], clock: Clock) -> None:
    """Run each stage once on all images."""
    pipeline, manifest = Pipeline.of_bundle(bundle), bundle.manifest
    network = OnnxRuntime(bundle.model_path)
    side, starts = manifest.input.decode_side, range(0, len(paths), CHUNK)
    clock("read", lambda: [path.read_bytes() for path in paths])
    images: list[Radiograph] = clock(
        "read and decode", lambda: [read_radiograph(path, min_side=side) for path in paths]
    )
    clock("check grey levels", lambda: [check_pixels(image, manifest.gate) for image in images])
    views = clock("reduce for the lungs", lambda: np.stack([lung_view(image) for image in images]))
    fields = [None] * len(images)
    if bundle.lungs_path:
        segmenter = OnnxLungSegmenter(bundle.lungs_path)
        maps = clock("find lungs", lambda: [segmenter.batch(views[at : at + CHUNK]) for at in starts])
        pairs = list(zip(np.concatenate(maps), views, strict=True))
        fields = clock("lung fields", lambda: [lung_field(one, view=view) for one, view in pairs])
    together = list(zip(images, fields, strict=True))
    seen = clock(
        "standardise", lambda: [standardise_with_lungs(one, manifest.input, lungs) for one, lungs in together]
    )
    batches = [np.stack([one.pixels for one in seen[at : at + CHUNK]]) for at in starts]
    outputs = clock("network", lambda: [network(batch, OUTPUTS) for batch in batches])
    prepared = [Prepared(image.source, "ok", input=one) for image, one in zip(images, seen, strict=True)]
    features = np.concatenate([found for _, found in outputs])
    pairs_of_features = list(zip(prepared, features, strict=True))
    clock("check features", lambda: [pipeline.check_features(*pair) for pair in pairs_of_features])
    predictor = Predictor(bundle, workers=1)
    clock("the whole", lambda: predictor.predict(paths))


if __name__ == "__main__":
    main()
