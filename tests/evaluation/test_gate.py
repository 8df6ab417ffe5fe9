from __future__ import annotations

import numpy as np
import pytest

from bundles import make_bundle
from images import write_image
from pneumoscope.data.folder import scan
from pneumoscope.errors import BundleError
from pneumoscope.evaluation.gate import Described, FittedGate, fit_gate, fit_novelty
from pneumoscope.image.standardise import InputSpec
from pneumoscope.model.bundle import GATE_FILE, load_bundle, write_bundle
from pneumoscope.predict.novelty import DIMENSIONS


def source(n: int, centre: float = 0.0, seed: int = 0) -> Described:
    rng = np.random.default_rng(seed)
    rows = rng.normal(centre, 1, (n, DIMENSIONS)).astype(np.float32)
    return Described(rows, [f"p{number // 2}" for number in range(n)])


def test_the_limit_passes_held_out_patients_and_not_what_lies_outside():
    fitted = fit_novelty([source(900), source(200, centre=1.0, seed=1)])
    assert max(fitted.held_out) <= 0.01
    assert fitted.novelty(source(1, seed=2).descriptions[0]) < fitted.max_novelty
    assert fitted.novelty(source(1, centre=1.0, seed=3).descriptions[0]) < fitted.max_novelty
    away = np.where(np.arange(DIMENSIONS) % 2, 4, -4).astype(np.float32)
    assert fitted.novelty(away) > fitted.max_novelty


def lung_bundle(folder):
    return make_bundle(folder, input=InputSpec(size=64, lungs="crop"))


def test_statistics_travel_in_the_bundle_and_belong_to_one_segmenter(tmp_path):
    bundle = lung_bundle(tmp_path)
    gate = FittedGate.of(bundle, fit_novelty([source(500)]))
    assert load_bundle(tmp_path).manifest == bundle.manifest  # nothing is written by fitting
    manifest = bundle.manifest.model_copy(update={"gate": gate.limits})
    written = write_bundle(tmp_path, manifest, {GATE_FILE: gate.content})
    mean, whitener = load_bundle(tmp_path).gate_statistics
    assert mean.shape == (DIMENSIONS,)
    assert whitener.shape == (DIMENSIONS, DIMENSIONS)
    assert "gate.npz" in written.manifest.files
    files = {**written.manifest.files, "lungs.onnx": "0" * 64}
    other = type(written)(written.path, written.manifest.model_copy(update={"files": files}))
    with pytest.raises(BundleError, match=r"other lungs\.onnx"):
        _ = other.gate_statistics
    (tmp_path / "gate.npz").write_bytes(b"altered")
    with pytest.raises(BundleError, match=r"gate\.npz"):
        load_bundle(tmp_path)


def test_too_few_images_or_no_segmenter_fit_no_gate(tmp_path):
    for number in range(3):
        write_image(tmp_path / "data" / "normal" / f"{number}.png", seed=number)
    manifest = scan(tmp_path / "data")
    for bundle in (lung_bundle(tmp_path / "lungs"), make_bundle(tmp_path / "plain")):
        assert fit_gate(bundle, {"here": manifest}) is None
        assert bundle.gate_statistics is None
