"""How often rotated images are recognised, and upright ones taken for rotated, by source.

Each image is predicted as it is and rotated by 90, 180 and 270 degrees. Where the manifest has parts, images
of the test part count.

    python benchmarks/rotation.py MANIFEST... [--bundle B] [--images N] [--leave-out SOURCE]
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from pneumoscope import Predictor
from pneumoscope.data import load
from pneumoscope.errors import PneumoscopeError, Reason
from pneumoscope.image.decode import read_radiograph
from pneumoscope.predict.rotation import QUARTER_TURNS, rotated

CHUNK = 16


def main() -> None:
    """Print a row for each source and rotation."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="+", help="manifests or folders")
    parser.add_argument("--bundle", help="the shipped bundle if not given")
    parser.add_argument("--images", type=int, default=500, help="at most, of each source")
    parser.add_argument("--leave-out", help="a source, such as one of lungs only")
    options = parser.parse_args()
    predictor = Predictor.load(options.bundle, workers=1)
    print(f"{'source':<24}{'rotated':>8}{'images':>8}{'recognised':>12}{'rejected':>10}{'change':>9}")
    for source, paths in by_source(options.data, options.leave_out).items():
        chosen = random.Random(0).sample(paths, min(len(paths), options.images))
        counts = {turns: Counter() for turns in (0, *QUARTER_TURNS)}
        changes = defaultdict(list)
        for start in range(0, len(chosen), CHUNK):
            measure(predictor, chosen[start : start + CHUNK], counts, changes)
        for turns, found in counts.items():
            change = np.mean(changes[turns]) if changes[turns] else 0.0
            shares = f"{found['recognised']:>12}{found['rejected']:>10}{change:>9.4f}"
            print(f"{source:<24}{90 * turns:>7}°{found['images']:>8}{shares}", flush=True)


def by_source(data: list[Path], left_out: str | None) -> dict[str, list[Path]]:
    """Return the images of each source and label."""
    found = defaultdict(list)
    for one in data:
        manifest = load(one)
        parts = any(record.split == "test" for record in manifest.records)
        for record in manifest.records:
            if record.source != left_out and (not parts or record.split == "test"):
                found[f"{record.source or one.stem} {record.label}"].append(manifest.resolve(record))
    return dict(sorted(found.items()))


def measure(
    predictor: Predictor, paths: list[Path], counts: dict[int, Counter[str]], changes: dict[int, list[float]]
) -> None:
    """Predict images in four orientations; a change is that of the probability of the target."""
    images = []
    for path in paths:
        try:
            images.append(read_radiograph(str(path), min_side=2 * predictor.bundle.manifest.input.size))
        except PneumoscopeError:
            continue
    upright = predictor.predict_radiographs(images)
    for turns, found in counts.items():
        others = predictor.predict_radiographs([rotated(one, turns) for one in images])
        for before, after in zip(upright, others, strict=True):
            found["images"] += 1
            found["recognised"] += str(Reason.ROTATED) in after.reasons
            found["rejected"] += after.status == "rejected"
            if before.p_target is not None and after.p_target is not None:
                changes[turns].append(abs(after.p_target - before.p_target))


if __name__ == "__main__":
    main()
