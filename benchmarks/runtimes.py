"""Which runtime for a trained network: ONNX Runtime in float, in 8 bits, and OpenVINO.

Every variant runs in turn in each round, on one thread, and is compared by CPU time within the round. Both
networks are exported here from the weights of the run; the 8-bit one is quantised with ranges measured on
split ``train``. The loss of accuracy is measured on split ``val``.

    python benchmarks/runtimes.py RUN [--rounds N]

RUN is a folder made by `pneumoscope train`. OpenVINO is left out if not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest
from pneumoscope.domain import Target
from pneumoscope.model.bundle import load_bundle
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.parallel import CHUNK
from pneumoscope.predict.calibration import log_odds
from pneumoscope.predict.pipeline import Pipeline
from pneumoscope.training.dataset import input_items
from pneumoscope.training.networks import build_network, load_weights
from pneumoscope.training.onnx_export import export_onnx, quantise
from pneumoscope.training.recipe import load_recipe

OUTPUTS = ("logits", "features")
Run = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Print one line a variant and one JSON object."""
    options = parse()
    bundle = load_bundle(options.run)
    manifest = load(options.run / "split.csv")
    pipeline, target = Pipeline.of_bundle(bundle, force=True), bundle.manifest.target
    train, _ = inputs(pipeline, manifest.subset("train"), target, options.calibration)
    held_out, positive = inputs(pipeline, manifest.subset("val"), target, options.images)
    with tempfile.TemporaryDirectory() as place:
        plain, eight_bits = export(options.run, Path(place)), Path(place, "eight-bits.onnx")
        quantise(plain, eight_bits, train)
        variants = {"onnxruntime": onnx(plain), "onnxruntime int8": onnx(eight_bits)}
        if importlib.util.find_spec("openvino"):
            variants["openvino"] = openvino(plain)
        times = measure(variants, held_out[:CHUNK], options.rounds)
        logits = {name: predict(run, held_out) for name, run in variants.items()}
        sizes = {"onnxruntime": plain.stat().st_size, "onnxruntime int8": eight_bits.stat().st_size}
    report(times, logits, positive, sizes, bundle.manifest.target_mask)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="ONNX Runtime against its 8-bit networks and OpenVINO.")
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--calibration", type=int, default=256, help="training images for the ranges")
    parser.add_argument("--images", type=int, default=500, help="validation images")
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args()


def export(run: Path, place: Path) -> Path:
    """Write a run's network in float32."""
    recipe = load_recipe(str(run / "recipe.yaml"))
    network = build_network(recipe.network, len(recipe.output_classes), pretrained=False)
    network = load_weights(network, run / "model.safetensors")
    path = place / "plain.onnx"
    export_onnx(network, path, size=recipe.input.size, outputs=OUTPUTS)
    return path


def inputs(
    pipeline: Pipeline, manifest: Manifest, target: Target, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return standardised images, spread over the manifest, and whether each label counts as the target."""
    chosen = manifest.with_records(manifest.records[:: max(1, len(manifest) // count)][:count])
    images, positive = [], []
    for item, record in zip(input_items(chosen), chosen.records, strict=True):
        (one,) = pipeline.read([item])
        if one.input is not None:
            images.append(one.input.pixels)
            positive.append(target.includes(record.label))
    return np.stack(images), np.array(positive)


def onnx(model: Path) -> Run:
    """Return the network as the product runs it."""
    runtime = OnnxRuntime(model)
    return lambda batch: runtime(batch, ("logits",))[0]


def openvino(model: Path) -> Run:
    """Return the network in OpenVINO, on one thread."""
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = ov.Core().compile_model(str(model), "CPU", settings).create_infer_request()
    return lambda batch: request.infer({"images": batch})["logits"].copy()


def predict(run: Run, images: np.ndarray) -> np.ndarray:
    """Return the logits of all images."""
    return np.concatenate([run(images[at : at + CHUNK]) for at in range(0, len(images), CHUNK)])


def measure(variants: dict[str, Run], batch: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Return the CPU time an image in ms, one value per round."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            began = time.process_time()
            for _ in range(8):
                run(batch)
            if number:  # the first round warms up
                times[name].append((time.process_time() - began) / 8 / len(batch) * 1e3)
    return times


def report(
    times: dict[str, list[float]],
    logits: dict[str, np.ndarray],
    positive: np.ndarray,
    sizes: dict[str, int],
    target_mask: np.ndarray,
) -> None:
    """Print times, ratios to the first variant, and the differences of the logits."""
    first = next(iter(times))
    print(f"{'runtime':<18}{'ms/image':>11}{'speed':>8}{'AUROC':>9}{'logits differ by (mean, max)':>32}")
    rows = {}
    for name, values in times.items():
        speed = statistics.median(a / b for a, b in zip(times[first], values, strict=True))
        found = logits[name].astype(np.float64)
        odds = log_odds(found, target_mask)
        difference = np.abs(found - logits[first])
        rows[name] = {
            "ms": statistics.median(values),
            "speed": speed,
            "auroc": float(roc_auc_score(positive, odds)),
            "logits_mean": float(difference.mean()),
            "logits_max": float(difference.max()),
            "bytes": sizes.get(name),
        }
        row = rows[name]
        change = f"{row['logits_mean']:.4f}, {row['logits_max']:.4f}"
        print(f"{name:<18}{row['ms']:>11.2f}{speed:>7.2f}x{row['auroc']:>9.4f}{change:>32}")
    print(json.dumps({"images": len(positive), "runtimes": rows}))


if __name__ == "__main__":
    main()
