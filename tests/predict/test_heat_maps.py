"""Sanity checks of heat maps: Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bundles import make_bundle
from images import grey_levels
from pneumoscope.model.bundle import (
    HEAD_FILE,
    POPULATIONS_FILE,
    VIEWS_FILE,
    default_bundle_path,
    head_bytes,
    load_bundle,
    write_bundle,
)
from pneumoscope.predict.predictor import Predictor

SIZE = 224


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def grainy(seed: int) -> np.ndarray:
    """Return an image with detail, at the size of the network's input."""
    grain = np.random.default_rng(seed).normal(0, 40, (64, 64))
    return np.clip(grey_levels(seed, 64, 64) + grain, 0, 255).astype(np.uint8)


def whole_map(predictor: Predictor, data: bytes) -> np.ndarray:
    """Return the map in the frame of the whole image."""
    explanation = predictor.explain(data).explanation
    assert explanation is not None
    canvas = np.zeros((SIZE, SIZE), np.float32)
    top, left, bottom, right = (round(edge * SIZE) for edge in explanation.region)
    canvas[top:bottom, left:right] = cv2.resize(explanation.heatmap, (right - left, bottom - top))
    return canvas


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def symmetric(folder):
    """A bundle whose one layer does not tell left from right."""
    bundle = make_bundle(folder, seed=2)
    model = onnx.load(bundle.model_path)
    for tensor in model.graph.initializer:
        if tensor.name == "kernel":
            kernel = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((kernel + kernel[..., ::-1]) / 2, "kernel"))
    return write_bundle(folder, bundle.manifest, {"model.onnx": model.SerializeToString()})


def test_a_flipped_image_has_the_flipped_map_where_the_network_is_symmetric(tmp_path):
    predictor = Predictor.load(symmetric(tmp_path).path)
    found = 0
    for seed in range(6):
        image = grainy(seed)
        heat = whole_map(predictor, png(image))
        found += heat.any()
        np.testing.assert_allclose(whole_map(predictor, png(image[:, ::-1]))[:, ::-1], heat, atol=1e-4)
    assert found


def test_a_network_of_other_weights_has_another_map(tmp_path):
    data = png(grainy(3))
    maps = [
        whole_map(Predictor.load(make_bundle(tmp_path / str(seed), seed=seed).path), data)
        for seed in range(6)
    ]
    kept = [heat for heat in maps if heat.any()]
    assert len(kept) > 2
    pairs = [correlation(one, other) for i, one in enumerate(kept) for other in kept[:i]]
    assert np.mean(pairs) < 0.5


@pytest.fixture(scope="module")
def real(shared_data) -> dict[str, list[Path]]:
    folder = shared_data / "kermany-original"
    return {
        "normal": sorted((folder / "NORMAL").glob("*.jpeg"))[:12],
        "ill": sorted((folder / "PNEUMONIA").glob("*.jpeg"))[::12],
    }


def against_normal(folder: Path, real: dict[str, list[Path]], **files: bytes) -> Predictor:
    """Copy the shipped bundle, with other files, and draw its maps against its own view of normal chests."""
    if not (default_bundle_path() / "bundle.json").is_file():
        pytest.skip("this checkout ships no bundle")
    shutil.copytree(default_bundle_path(), folder)
    bundle = load_bundle(folder)

    # The classifiers of frontal chests, populations and views belong to the shipped network.
    gate = bundle.manifest.gate.model_copy(update={"min_chest": None})
    kept = {
        name: sha for name, sha in bundle.manifest.files.items() if name not in {POPULATIONS_FILE, VIEWS_FILE}
    }
    manifest = bundle.manifest.model_copy(update={"gate": gate, "files": kept})
    written = write_bundle(
        folder, manifest, {HEAD_FILE: head_bytes(bundle.head_weight, bundle.head_bias), **files}
    )
    outputs = Predictor.load(folder).outputs_iter(real["normal"])
    background = np.mean([one.features for (one,) in outputs if one.features is not None], axis=0)
    head = head_bytes(bundle.head_weight, bundle.head_bias, background)
    write_bundle(folder, written.manifest, {HEAD_FILE: head})
    return Predictor.load(folder, workers=1)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory, real) -> Predictor:
    return against_normal(tmp_path_factory.mktemp("shipped") / "bundle", real)


def inside(heat: np.ndarray) -> np.ndarray:
    """Return where a map is well inside the lungs: every map fades at their rim."""
    return cv2.erode((heat > 0).astype(np.uint8), np.ones((31, 31), np.uint8)) > 0


def test_the_shipped_maps_flip_with_the_image(shipped, real):
    # A mirrored chest, with the heart on the right, may well be rejected.
    forced = Predictor.load(shipped.bundle.path, force=True)
    found = []
    for path in real["ill"]:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        heat, flipped = (whole_map(forced, png(one)) for one in (image, image[:, ::-1]))
        if (mask := inside(heat)).any():
            found.append(correlation(heat[mask], flipped[:, ::-1][mask]))
    assert len(found) > 3
    assert np.median(found) > 0.7


def shuffled(path: Path, seed: int) -> bytes:
    """Return a network whose convolutions have their weights in another order."""
    model, rng = onnx.load(path), np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype in (np.float32, np.float16, np.int8) and values.ndim == 4:  # convolutions
            mixed = rng.permutation(values.ravel()).reshape(values.shape)
            tensor.CopyFrom(numpy_helper.from_array(mixed, tensor.name))
    content: bytes = model.SerializeToString()
    return content


def test_the_shipped_maps_are_lost_with_the_weights(shipped, real, tmp_path):
    kept, peaks = [], []
    # One such network may resemble any map by chance.
    for seed in range(4):
        network = shuffled(shipped.bundle.model_path, seed)
        random = against_normal(tmp_path / f"{seed}", real, **{"model.onnx": network})
        for path in real["ill"]:
            heat, other = (whole_map(predictor, path.read_bytes()) for predictor in (shipped, random))
            peaks.append(other.max() / heat.max())
            if (mask := inside(heat)).any() and other[mask].std() > 0:
                kept.append(correlation(heat[mask], other[mask]))
    assert np.median(peaks) < 0.3
    assert np.median(kept) < 0.5
