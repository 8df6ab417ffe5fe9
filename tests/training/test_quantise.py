from __future__ import annotations

import numpy as np
import onnx
import pytest

from bundles import make_bundle
from pneumoscope.errors import DataError
from pneumoscope.image.standardise import InputSpec
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.training.quantise import quantise


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("tiny"), input=InputSpec(size=32)).model_path


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((40, 1, 32, 32), dtype=np.float32)


def test_eight_bits_say_nearly_the_same_and_keep_the_outputs(model, images, tmp_path):
    small = OnnxRuntime(quantise(model, tmp_path / "small.onnx", images[:24]))
    whole = OnnxRuntime(model)
    assert small.outputs == whole.outputs
    assert small.input_shape == whole.input_shape
    for found, expected in zip(*(run(images, run.outputs) for run in (small, whole)), strict=True):
        assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
        assert not np.array_equal(found, expected)


def test_convolutions_are_eight_bits_and_the_head_is_float(model, images, tmp_path):
    graph = onnx.load(quantise(model, tmp_path / "small.onnx", images[:8])).graph
    types = {one.name: one.data_type for one in graph.initializer}
    assert onnx.TensorProto.INT8 in types.values()
    (head,) = [node for node in graph.node if node.op_type == "Gemm"]
    assert types[head.input[1]] == onnx.TensorProto.FLOAT


def test_heat_maps_and_logits_still_agree(model, images, tmp_path):
    """The logits are the pooled features times the head of the bundle."""
    logits, features = OnnxRuntime(quantise(model, tmp_path / "s.onnx", images))(
        images, ("logits", "features")
    )
    with np.load(model.with_name("head.npz")) as head:
        expected = features.mean(axis=(2, 3)) @ head["weight"].T + head["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_without_images_there_are_no_ranges(model, images, tmp_path):
    with pytest.raises(DataError, match="no images"):
        quantise(model, tmp_path / "small.onnx", images[:0])
