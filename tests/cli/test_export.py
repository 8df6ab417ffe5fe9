from __future__ import annotations

from importlib.util import find_spec

import pytest

from bundles import make_bundle
from pneumoscope.cli import main
from pneumoscope.model.bundle import load_bundle
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


@pytest.fixture
def run_folder(tmp_path):
    """The part of a run folder that exporting reads."""
    folder = tmp_path / "run"
    make_bundle(folder / "bundle")
    (folder / "recipe.yaml").write_text(RECIPE.to_yaml(), encoding="utf-8")
    save_weights(build_network(RECIPE.network, 3, seed=0), folder / "model.safetensors")
    return folder


@pytest.fixture
def export(capsys):
    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(["export", *map(str, words)])
        return left.value.code, *capsys.readouterr()

    return run


def test_the_bundle_of_a_run_becomes_one_of_its_own(export, run_folder, tmp_path):
    code, out, err = export(run_folder, "--out", tmp_path / "mine")
    assert (code, err) == (0, "")
    mine, original = load_bundle(tmp_path / "mine"), load_bundle(run_folder)
    assert out == f"{tmp_path / 'mine'}: {original.identity}\n"
    assert mine.manifest == original.manifest
    assert mine.model_path.read_bytes() == original.model_path.read_bytes()


def test_a_folder_with_a_bundle_is_not_written_over(export, run_folder):
    code, _, err = export(run_folder, "--out", run_folder / "bundle")
    assert code == 4
    assert "holds a bundle already" in err


@pytest.mark.skipif(find_spec("keras") is None, reason="needs the extra [keras]")
def test_a_run_becomes_a_keras_file(export, run_folder, tmp_path):
    code, out, err = export(run_folder, "--out", tmp_path / "model.h5", "--to", "keras", "--quiet")
    assert (code, err) == (0, "")
    assert (tmp_path / "model.h5").read_bytes().startswith(b"\x89HDF")
    assert float(out.rsplit(" ", 1)[1]) < 1e-3


@pytest.mark.parametrize("to", ["bundle", "keras"])
def test_a_folder_that_is_no_run_is_one_line(export, tmp_path, to):
    code, out, err = export(tmp_path, "--out", tmp_path / "x.h5", "--to", to)
    assert (code, out) == (4, "")
    (line,) = err.splitlines()
    assert str(tmp_path) in line


def test_weights_of_another_network_are_one_line(export, run_folder, tmp_path):
    save_weights(build_network(RECIPE.network, 2), run_folder / "model.safetensors")
    code, _, err = export(run_folder, "--out", tmp_path / "m.h5", "--to", "keras")
    assert code == 4
    assert "does not hold the weights of this recipe's network" in err


def test_an_unknown_format_is_wrong_use(export, run_folder, tmp_path):
    assert export(run_folder, "--out", tmp_path / "m", "--to", "caffe")[0] == 2
