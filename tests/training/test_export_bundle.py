from __future__ import annotations

import datetime

import numpy as np
import onnx
import pytest
import timm
import torch
from safetensors.torch import save_file

from pneumoscope.domain import DatasetDescription, Target
from pneumoscope.errors import BundleError, DataError
from pneumoscope.model.bundle import load_bundle
from pneumoscope.model.limits import GateLimits
from pneumoscope.model.lungs import LUNGS_FILE
from pneumoscope.model.manifest import Provenance, TrainingData
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.predict.predictor import Predictor
from pneumoscope.training.export import export_bundle
from pneumoscope.training.networks import build_network
from pneumoscope.training.recipe import NetworkSpec, Recipe
from pneumoscope.training.target import PNEUMONIA

RECIPE = Recipe.model_validate(
    {
        "name": "small",
        "description": "For tests.",
        "classes": ["normal", "bacterial", "viral"],
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
    data = (TrainingData(description=DatasetDescription(name="made up"), fingerprint="f"),)
    provenance = Provenance(data=data, split_seed=4, split_method="patient")
    folder = tmp_path_factory.mktemp("run") / "bundle"
    return export_bundle(network, RECIPE, folder, provenance=provenance)


def test_the_bundle_loads_and_says_what_it_is(bundle):
    manifest = load_bundle(bundle.path).manifest
    assert manifest.state == "draft"
    assert manifest.classes == RECIPE.classes
    assert manifest.target == Target("pneumonia", ("bacterial", "viral"), PNEUMONIA)
    assert manifest.input == RECIPE.input
    assert manifest.gate == GateLimits()
    assert manifest.calibrations[0].calibrator.method == "none"
    assert manifest.operating_point().threshold == 0.5
    provenance = manifest.provenance
    assert provenance.recipe == "small"
    assert provenance.recipe_sha256 == RECIPE.sha256
    assert [one.description.name for one in provenance.data] == ["made up"]
    assert provenance.split_seed == 4
    assert provenance.pretrained == ""
    assert (provenance.mean, provenance.std) == (pytest.approx((0.48,)), pytest.approx((0.24,)))
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(provenance.created)
    assert age < datetime.timedelta(minutes=10)
    assert sorted(path.name for path in bundle.path.iterdir()) == ["bundle.json", "head.npz", "model.onnx"]


def test_a_draft_is_not_for_use(bundle):
    with pytest.raises(BundleError, match="draft"):
        Predictor.load(bundle.path)
    assert Predictor.load(bundle.path, allow_draft=True).bundle.manifest.state == "draft"


def test_weights_and_normalisation_of_a_pretrained_backbone_are_recorded(tmp_path):
    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "w.safetensors")
    network = build_network(NetworkSpec(name="test_resnet"), 3, weights=tmp_path / "w.safetensors")
    made = export_bundle(network, RECIPE, tmp_path / "b", provenance=Provenance())
    found = made.manifest.provenance
    assert found.pretrained.startswith("test_resnet (w.safetensors, sha256 ")
    assert (found.mean, found.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


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


def test_the_network_has_eight_bits_where_the_recipe_has_that_precision(bundle, network, tmp_path):
    eight = RECIPE.model_copy(update={"precision": "int8"})
    seen = np.random.default_rng(0).integers(0, 256, (20, 1, 32, 32), dtype=np.uint8)
    small = export_bundle(network, eight, tmp_path / "small", provenance=Provenance(), train_images=seen)
    assert small.manifest.provenance.precision == "int8"
    assert bundle.manifest.provenance.precision == "float32"
    types = {one.data_type for one in onnx.load(small.model_path).graph.initializer}
    assert onnx.TensorProto.INT8 in types
    images = seen.astype(np.float32) / 255
    found, expected = (OnnxRuntime(one.model_path)(images, ("logits",))[0] for one in (small, bundle))
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_the_weights_have_sixteen_bits_where_the_recipe_has_that_precision(bundle, network, tmp_path):
    sixteen = RECIPE.model_copy(update={"precision": "float16"})
    small = export_bundle(network, sixteen, tmp_path / "small", provenance=Provenance())
    assert small.manifest.provenance.precision == "float16"
    assert small.model_path.stat().st_size < bundle.model_path.stat().st_size
    images = np.random.default_rng(0).random((8, 1, 32, 32), dtype=np.float32)
    found, expected = (OnnxRuntime(one.model_path)(images, ("logits",))[0] for one in (small, bundle))
    assert 0 < np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


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
        load_bundle(export_bundle(network, needs, tmp_path / "lacking", provenance=Provenance()).path)


def test_a_network_on_three_channels_still_takes_grey_images(tmp_path):
    spec = RECIPE.network.model_copy(update={"channels": 3})
    torch.manual_seed(0)
    made = export_bundle(build_network(spec, 3), RECIPE, tmp_path / "b", provenance=Provenance())
    (logits,) = OnnxRuntime(made.model_path)(np.zeros((1, 1, 32, 32), np.float32), ("logits",))
    assert logits.shape == (1, 3)
