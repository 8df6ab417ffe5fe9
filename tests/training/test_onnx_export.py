from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from pneumoscope.errors import PneumoscopeError
from pneumoscope.model.runtime import OnnxRuntime
from pneumoscope.training import onnx_export
from pneumoscope.training.networks import build_network
from pneumoscope.training.onnx_export import TOLERANCE, export_onnx
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


def test_an_export_that_differs_is_rejected(tmp_path, monkeypatch):
    class Off(OnnxRuntime):
        def __call__(self, batch, outputs):
            return tuple(found + 0.01 for found in super().__call__(batch, outputs))

    monkeypatch.setattr(onnx_export, "OnnxRuntime", Off)
    with pytest.raises(PneumoscopeError, match=r"m\.onnx: differs from the network by 1\.0e-02"):
        export_onnx(build_network(SPEC, 2), tmp_path / "m.onnx", size=32, outputs=("logits", "features"))


def test_the_exporter_says_nothing_and_leaves_the_log_as_it_was(tmp_path, capfd):
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    export_onnx(build_network(SPEC, 2), tmp_path / "m.onnx", size=32, outputs=("logits", "features"))
    assert logger.level == before
    assert capfd.readouterr() == ("", "")
