"""Drawn X-rays, and one whole training run on them."""

from __future__ import annotations

import pytest

from bundles import lungs_onnx
from pneumoscope.data.description import write_description
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.domain import DatasetDescription
from pneumoscope.experiment import Experiment, divide, run_experiment
from tiny_runs import RECIPE, Steps


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, n=60, size=64, seed=3)
    return folder


@pytest.fixture(scope="session")
def lungs(tmp_path_factory):
    path = tmp_path_factory.mktemp("lungs") / "lungs.onnx"
    path.write_bytes(lungs_onnx())
    return path


@pytest.fixture(scope="session")
def run(data, lungs, tmp_path_factory):
    """One whole run, with two images broken: one to train on and one to evaluate."""
    folder = tmp_path_factory.mktemp("broken") / "phantoms"
    manifest = divide(write_phantoms(folder, n=60, size=64, seed=3), RECIPE.split)
    manifest.write(folder / "split.csv")
    broken = [manifest.resolve(manifest.subset(side).records[0]) for side in ("train", "test")]
    for path in broken:
        path.write_bytes(b"no image")
    out = tmp_path_factory.mktemp("run") / "run"
    write_description(folder, DatasetDescription(name="drawn chests", licence="CC0"))
    progress = Steps()
    result = run_experiment(Experiment(RECIPE, folder / "split.csv", out, lungs=lungs), progress)
    return result, out, broken, progress
