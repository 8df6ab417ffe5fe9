from __future__ import annotations

import shutil

import numpy as np
import pytest

from pneumoscope.errors import DataError, PneumoscopeError
from pneumoscope.experiment import export_network, exporting
from pneumoscope.model.manifest import Provenance
from pneumoscope.training.export import export_bundle
from pneumoscope.training.networks import build_network, save_weights
from pneumoscope.training.recipe import Recipe

RECIPE = Recipe.model_validate(
    {
        "name": "small",
        "description": "For tests.",
        "classes": ["normal", "bacterial", "viral"],
        "input": {"size": 32},
        "network": {"name": "custom-cnn", "channels": 1, "options": {"widths": [4]}},
        "phases": [{"epochs": 1, "lr": 0.01}],
    }
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    network = build_network(RECIPE.network, 3, seed=0)
    images = np.zeros((2, 1, 32, 32), np.uint8)
    export_bundle(network, RECIPE, folder / "bundle", provenance=Provenance(), train_images=images)
    (folder / "recipe.yaml").write_text(RECIPE.to_yaml(), encoding="utf-8")
    save_weights(network, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("step", ["_write", "_compared"])
def test_an_export_that_fails_leaves_the_file_of_an_earlier_one(run_folder, tmp_path, monkeypatch, step):
    """Neither half a file of a full disk stays, nor is a good one lost."""
    out = tmp_path / "m.safetensors"
    export_network(run_folder, out, "safetensors")
    before = out.read_bytes()

    def fails(_, path, *__):
        path.write_bytes(b"half a")
        raise PneumoscopeError("no space left")

    monkeypatch.setattr(exporting, step, fails)
    with pytest.raises(PneumoscopeError, match="no space left"):
        export_network(run_folder, out, "safetensors")
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_run_that_is_not_finished_is_one_line_with_the_fix(run_folder, tmp_path):
    shutil.copy(run_folder / "recipe.yaml", tmp_path)
    with pytest.raises(DataError, match="training is not finished; continue it with 'train --resume'"):
        export_network(tmp_path, tmp_path / "m.onnx", "onnx")


def test_a_bundle_in_place_of_its_run_is_one_line_with_the_fix(run_folder, tmp_path):
    with pytest.raises(DataError, match=r"bundle: no recipe\.yaml; give the run folder"):
        export_network(run_folder / "bundle", tmp_path / "m.onnx", "onnx")
