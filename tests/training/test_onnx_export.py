from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from bundles import make_bundle
from pneumoscope.errors import DataError, PneumoscopeError
from pneumoscope.image.standardise import InputSpec
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.training import onnx_export
from pneumoscope.training.networks import build_network
from pneumoscope.training.onnx_export import TOLERANCE, export_onnx, halve, quantise
from pneumoscope.training.recipe import NetworkSpec

SPEC = NetworkSpec(name="custom-cnn", channels=1, options={"widths": [4, 8]})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    network = build_network(SPEC, 3)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    difference = export_onnx(network.train(), path, size=32, outputs=("logits", "features"))
    return network, path, difference


def test_the_export_agrees_with_the_network_at_any_batch_size(exported):
    network, path, difference = exported
    assert not network.training
    assert difference < TOLERANCE
    run = OnnxRuntime(path)
    assert run.outputs == ("logits", "features")
    for count in (1, 2, 7):
        images = torch.rand(count, 1, 32, 32)
        with torch.inference_mode():
            expected = network(images)
        for mine, theirs in zip(expected, run(images.numpy(), ("logits", "features")), strict=True):
            np.testing.assert_allclose(theirs, mine.numpy(), atol=TOLERANCE)


def test_one_file_holds_everything(exported):
    _, path, _ = exported
    assert [each.name for each in path.parent.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(onnx.load(path), full_check=True)


def test_a_network_with_one_output_is_taken(tmp_path):
    class Total(nn.Module):
        def forward(self, images):
            return images.mean(dim=(1, 2, 3))

    assert export_onnx(Total(), tmp_path / "m.onnx", size=16, outputs=("mean",)) < 1e-6


@pytest.mark.parametrize("fails", [False, True])
def test_rectifiers_are_one_operation_each_and_stay_those_of_the_network(tmp_path, monkeypatch, fails):
    shared = nn.ReLU6(inplace=True)
    layers = [
        nn.Conv2d(1, 4, 3),
        shared,
        nn.Conv2d(4, 4, 3),
        shared,
        nn.Conv2d(4, 4, 3),
        nn.ReLU(inplace=True),
    ]
    network, path = nn.Sequential(*layers, nn.Conv2d(4, 1, 3)), tmp_path / "m.onnx"
    if fails:
        monkeypatch.setattr(onnx_export, "_strip_traces", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_onnx(network, path, size=32, outputs=("map",))
    else:
        assert export_onnx(network, path, size=32, outputs=("map",)) < TOLERANCE
        kinds = [node.op_type for node in onnx.load(path).graph.node]
        assert kinds == ["Conv", "Clip", "Conv", "Clip", "Conv", "Relu", "Conv"]
    assert list(network)[:-1] == layers


def test_an_export_that_differs_is_rejected(tmp_path, monkeypatch):
    class Off(OnnxRuntime):
        def __call__(self, batch, outputs):
            return tuple(found + 0.01 for found in super().__call__(batch, outputs))

    monkeypatch.setattr(onnx_export, "OnnxRuntime", Off)
    with pytest.raises(PneumoscopeError, match=r"m\.onnx: would differ from the network by 1\.0e-02"):
        export_onnx(build_network(SPEC, 2), tmp_path / "m.onnx", size=32, outputs=("logits", "features"))
    # `make bundle` would take a file that is there for a finished one.
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_gives_no_numbers_is_not_exported(tmp_path):
    network = build_network(SPEC, 2)
    network.head.weight.data.fill_(float("nan"))
    with pytest.raises(PneumoscopeError, match=r"m\.onnx: the network gives values that are not finite"):
        export_onnx(network, tmp_path / "m.onnx", size=32, outputs=("logits", "features"))
    assert list(tmp_path.iterdir()) == []


def test_the_exporter_says_nothing_and_leaves_the_log_as_it_was(tmp_path, capfd):
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    export_onnx(build_network(SPEC, 2), tmp_path / "m.onnx", size=32, outputs=("logits", "features"))
    assert logger.level == before
    assert capfd.readouterr() == ("", "")


# Eight bits


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


def test_weights_in_sixteen_bits_say_almost_the_same_and_leave_the_head(model, images, tmp_path):
    half = halve(model, tmp_path / "half.onnx")
    graph = onnx.load(half).graph
    types = {one.name: one.data_type for one in graph.initializer}
    (conv,) = [node for node in graph.node if node.op_type == "Conv"]
    (cast,) = [node for node in graph.node if node.op_type == "Cast"]
    (head,) = [node for node in graph.node if node.op_type == "Gemm"]
    assert cast.output[0] == conv.input[1]
    assert types[cast.input[0]] == onnx.TensorProto.FLOAT16
    assert types[head.input[1]] == onnx.TensorProto.FLOAT
    small, whole = OnnxRuntime(half), OnnxRuntime(model)
    for found, expected in zip(*(run(images, run.outputs) for run in (small, whole)), strict=True):
        difference = np.abs(found - expected).max()
        assert 0 < difference < 2e-3 * np.abs(expected).max()


def test_without_images_there_are_no_ranges(model, images, tmp_path):
    with pytest.raises(DataError, match="no images"):
        quantise(model, tmp_path / "small.onnx", images[:0])
