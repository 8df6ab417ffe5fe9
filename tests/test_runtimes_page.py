"""The code of ``docs/reference/runtimes.md`` does what `predict` does."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.data.phantom import write_phantoms
from pneumoscope.experiment import export_network
from pneumoscope.model.bundle import write_bundle
from pneumoscope.model.manifest import Calibration, Calibrator, OperatingPoint, Provenance
from pneumoscope.predict.predictor import Predictor
from pneumoscope.training.export import export_bundle
from pneumoscope.training.formats import FORMATS
from pneumoscope.training.networks import build_network, save_weights
from pneumoscope.training.recipe import Recipe

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "runtimes.md"
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
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
PREPARE, *RUN, CALIBRATE = BLOCKS
# In the order of the page.
NAMES = ("onnx", "openvino", "torchscript", "keras", "safetensors")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as the page has it, with a calibrated bundle, and what `predict` gives."""
    place = tmp_path_factory.mktemp("page")
    run = place / "runs" / "mine"
    network = build_network(RECIPE.network, 3, seed=0)
    draft = export_bundle(network, RECIPE, run / "bundle", provenance=Provenance())
    point = OperatingPoint(name="balanced", criterion="for tests", population="any", threshold=0.66)
    calibration = Calibration(
        calibrator=Calibrator(method="vector", scale=(2.0, 1.5, 1.0), bias=(0.1, 0.0, -0.3)),
        operating_points=(point,),
    )
    changes = {"state": "calibrated", "calibrations": (calibration,)}
    write_bundle(draft.path, draft.manifest.model_copy(update=changes))
    (run / "recipe.yaml").write_text(RECIPE.to_yaml(), encoding="utf-8")
    save_weights(network, run / "model.safetensors")
    write_phantoms(place / "x-rays", n=6, size=200, seed=3)
    predictions = [one for one in Predictor.load(run).predict(place / "x-rays") if one.p_target is not None]
    assert len(predictions) > 2
    return place, predictions


def test_the_page_has_a_block_for_every_format():
    assert len(RUN) == len(NAMES)
    assert set(NAMES) | {"onnx-int8"} == set(FORMATS)


# torch calls TorchScript superseded; Keras turns torch tensors into arrays without NumPy 2's argument.
@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.load` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_the_code_of_the_page_gives_what_predict_gives(place, monkeypatch, name):
    if name in ("keras", "openvino") and find_spec(name) is None:
        pytest.skip(f"needs the extra [{name}]")
    folder, predictions = place
    monkeypatch.chdir(folder)
    export_network(folder / "runs" / "mine", folder / f"model{FORMATS[name]}", name)
    names: dict[str, object] = {}
    for block in (PREPARE, RUN[NAMES.index(name)], CALIBRATE):
        exec(compile(block, str(PAGE), "exec"), names)
    np.testing.assert_allclose(names["p_target"], [one.p_target for one in predictions], atol=1e-3)
    decided = ["pneumonia" if one else "no pneumonia" for one in names["positive"]]
    assert len(decided) == len(predictions)
    assert [one == "pneumonia" for one in decided] == [one.decision == "pneumonia" for one in predictions]
