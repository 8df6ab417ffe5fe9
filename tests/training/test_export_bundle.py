from __future__ import annotations

import datetime

import numpy as np
import onnx
import pytest
import torch

from pneumoscope.errors import BundleError, DataError
from pneumoscope.model.bundle import load_bundle
from pneumoscope.model.lungs import LUNGS_FILE
from pneumoscope.model.manifest import GateLimits, Provenance
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.training.export import export_bundle
from pneumoscope.training.networks import build_network
from pneumoscope.training.recipe import Recipe

RECIPE = Recipe.model_validate(
    {
        "name": "small",
        "description": "For tests.",
        "input": {"size": 32},
        "network": {"name": "custom-cnn", "channels": 1, "options": {"widths": [4, 8]}},
        "phases": [{"epochs": 1, "lr": 0.01}],
    }
)


@pytest.fixture(scope="module")
def network():
    return build_network(RECIPE.network, 3, seed=0)


@pytest.fixture(scope="module")
def bundle(network, tmp_path_factory):
    provenance = Provenance(data_description="made up", split_seed=4, split_method="patient")
    folder = tmp_path_factory.mktemp("run") / "bundle"
    return export_bundle(network, RECIPE, folder, provenance=provenance, gate=GateLimits(min_side=10))


def test_the_bundle_loads_and_says_what_it_is(bundle):
    manifest = load_bundle(bundle.path).manifest
    assert manifest.findings == RECIPE.classes
    assert manifest.input == RECIPE.input
    assert manifest.gate.min_side == 10
    assert manifest.calibrator.method == "none"
    assert manifest.operating_point().threshold == 0.5
    assert manifest.provenance.recipe == "small"
    assert manifest.provenance.recipe_sha256 == RECIPE.sha256
    assert manifest.provenance.data_description == "made up"
    assert manifest.provenance.split_seed == 4
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(manifest.provenance.created)
    assert age < datetime.timedelta(minutes=10)
    assert sorted(path.name for path in bundle.path.iterdir()) == ["bundle.json", "head.npz", "model.onnx"]


def test_the_head_on_the_mean_features_gives_the_logits(bundle, network):
    """What class activation maps rest on."""
    logits, features = OnnxRuntime(bundle.model_path)(
        np.random.default_rng(0).random((2, 1, 32, 32), dtype=np.float32), ("logits", "features")
    )
    with np.load(bundle.path / "head.npz") as head:
        np.testing.assert_allclose(
            features.mean(axis=(2, 3)) @ head["weight"].T + head["bias"], logits, atol=1e-4
        )
    np.testing.assert_array_equal(bundle.head_weight, network.head.weight.detach().numpy())


def test_eight_bits_ship_where_the_recipe_asks_for_them(bundle, network, tmp_path):
    eight = RECIPE.model_copy(update={"precision": "int8"})
    seen = np.random.default_rng(0).integers(0, 256, (20, 1, 32, 32), dtype=np.uint8)
    small = export_bundle(network, eight, tmp_path / "small", provenance=Provenance(), seen=seen)
    assert small.manifest.provenance.precision == "int8"
    assert bundle.manifest.provenance.precision == "float32"
    types = {one.data_type for one in onnx.load(small.model_path).graph.initializer}
    assert onnx.TensorProto.INT8 in types
    images = seen.astype(np.float32) / 255
    found, wanted = (OnnxRuntime(one.model_path)(images, ("logits",))[0] for one in (small, bundle))
    assert 0 < np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_eight_bits_need_images_to_measure_ranges_on(network, tmp_path):
    eight = RECIPE.model_copy(update={"precision": "int8"})
    with pytest.raises(DataError, match="no images"):
        export_bundle(network, eight, tmp_path / "small", provenance=Provenance())


def test_the_lung_segmenter_travels_where_the_input_needs_it(network, tmp_path):
    lungs = tmp_path / "any.onnx"
    lungs.write_bytes(b"a segmenter")
    needs = RECIPE.model_copy(update={"input": RECIPE.input.model_copy(update={"lungs": "crop"})})
    with_lungs = export_bundle(network, needs, tmp_path / "with", provenance=Provenance(), lungs=lungs)
    assert (with_lungs.path / LUNGS_FILE).read_bytes() == b"a segmenter"
    assert LUNGS_FILE in with_lungs.manifest.files
    with pytest.raises(BundleError, match=LUNGS_FILE):
        export_bundle(network, needs, tmp_path / "lacking", provenance=Provenance())


def test_a_network_on_three_channels_still_takes_grey_images(tmp_path):
    spec = RECIPE.network.model_copy(update={"channels": 3})
    torch.manual_seed(0)
    made = export_bundle(build_network(spec, 3), RECIPE, tmp_path / "b", provenance=Provenance())
    (logits,) = OnnxRuntime(made.model_path)(np.zeros((1, 1, 32, 32), np.float32), ("logits",))
    assert logits.shape == (1, 3)
