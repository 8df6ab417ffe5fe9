"""A trained network in every runtime: size, speed and how far it is from the bundle of its run.

Each format is written by `pneumoscope export`, which compares it with the bundle on validation X-rays. Then
every runtime runs in turn in each round, on one thread, and is compared with the bundle's own by CPU time
within the round. The change of the AUROC is measured on the same X-rays.

    python benchmarks/runtimes.py RUN [--rounds N] [--images N] [--formats F,F...]

RUN is a folder made by `pneumoscope train`. It prints the rows of the table in ``docs/reference/runtimes.md``
and one JSON object. Formats whose packages are not installed, and those that cannot express the network, are
left out with the reason.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from pneumoscope.data.folder import load
from pneumoscope.domain import Target
from pneumoscope.errors import PneumoscopeError
from pneumoscope.experiment import ExportedNetwork, export_network
from pneumoscope.model.bundle import Bundle, load_bundle
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.parallel import CHUNK
from pneumoscope.predict.calibration import log_odds
from pneumoscope.predict.inputs import input_items
from pneumoscope.predict.pipeline import Pipeline
from pneumoscope.training.formats import FORMATS, Run, open_network
from pneumoscope.training.recipe import load_recipe

OWN = "bundle"


def main() -> None:
    """Print one row a format and one JSON object."""
    options = parse()
    torch.set_num_threads(1)
    bundle, recipe = load_bundle(options.run), load_recipe(str(options.run / "recipe.yaml"))
    images, positive = inputs(options.run, bundle, options.images)
    runtime = OnnxRuntime(bundle.model_path)
    runs: dict[str, Run] = {OWN: lambda batch: runtime(batch, ("logits",))[0]}
    exported: dict[str, ExportedNetwork] = {}
    with tempfile.TemporaryDirectory() as place:
        for name in options.formats.split(","):
            path = Path(place, name).with_suffix(FORMATS[name])
            try:
                exported[name] = export_network(options.run, path, name)
                runs[name] = open_network(path, name, recipe)
            except PneumoscopeError as error:
                print(f"{name} is left out: {error}")
        times = measure(runs, images[:CHUNK], options.rounds)
        logits = {name: predict(run, images).astype(np.float64) for name, run in runs.items()}
    auroc = {
        name: float(roc_auc_score(positive, log_odds(found, bundle.manifest.target_mask)))
        for name, found in logits.items()
    }
    report(times, auroc, exported, bundle)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="A trained network in every runtime.")
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--images", type=int, default=500, help="validation images")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--formats", default=",".join(FORMATS), help="separated by commas")
    return parser.parse_args()


def inputs(run: Path, bundle: Bundle, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return standardised validation images, spread over the split, and whether each has the target."""
    manifest, pipeline = load(run / "split.csv").subset("val"), Pipeline.of_bundle(bundle, force=True)
    target: Target = bundle.manifest.target
    chosen = manifest.with_records(manifest.records[:: max(1, len(manifest) // count)][:count])
    images, positive = [], []
    for item, record in zip(input_items(chosen), chosen.records, strict=True):
        (one,) = pipeline.read([item])
        if one.input is not None:
            images.append(one.input.pixels)
            positive.append(target.includes(record.label))
    return np.stack(images), np.array(positive)


def predict(run: Run, images: np.ndarray) -> np.ndarray:
    """Return the logits of all images."""
    return np.concatenate([run(images[at : at + CHUNK]) for at in range(0, len(images), CHUNK)])


def measure(runs: dict[str, Run], batch: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Return the CPU time an image in ms, one value per round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            began = time.process_time()
            for _ in range(8):
                run(batch)
            if number:  # the first round warms up
                times[name].append((time.process_time() - began) / 8 / len(batch) * 1e3)
    return times


def report(
    times: dict[str, list[float]],
    auroc: dict[str, float],
    exported: dict[str, ExportedNetwork],
    bundle: Bundle,
) -> None:
    """Print size, speed relative to the bundle's own runtime, differences and AUROC."""
    precision = bundle.manifest.provenance.precision
    print(
        "| format | MB | images a second | against the bundle | largest difference | on average | "
        "from the network in float32 | AUROC |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rows = {}
    for name, values in times.items():
        speed = statistics.median(a / b for a, b in zip(times[OWN], values, strict=True))
        ms = statistics.median(values)
        one = exported.get(name)
        size = bundle.model_path.stat().st_size if one is None else one.bytes
        apart = (
            "– | – | –"
            if one is None
            else f"{one.from_bundle:.1e} | {one.mean_from_bundle:.1e} | {one.from_network:.1e}"
        )
        shown = f"the bundle's own, {precision}" if name == OWN else f"`{name}`"
        print(f"| {shown} | {size / 1e6:.1f} | {1e3 / ms:.0f} | {speed:.2f} | {apart} | {auroc[name]:.4f} |")
        facts = {} if one is None else asdict(one) | {"path": one.path.name}
        rows[name] = facts | {"bytes": size, "ms": ms, "speed": speed, "auroc": auroc[name]}
    print(json.dumps({"bundle": bundle.identity, "runtimes": rows}))


if __name__ == "__main__":
    main()
