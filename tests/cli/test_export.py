from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest

from pneumoscope.cli import main
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.experiment import divide, exporting
from pneumoscope.model.bundle import load_bundle
from pneumoscope.model.manifest import Provenance
from pneumoscope.training.export import export_bundle
from pneumoscope.training.formats import open_network
from pneumoscope.training.networks import build_network, save_weights
from pneumoscope.training.recipe import Recipe, SplitSpec

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
    """The part of a run folder that exporting reads, with a bundle in float32."""
    folder = tmp_path_factory.mktemp("export") / "run"
    return write_run(folder, RECIPE)


def write_run(folder, recipe):
    network = build_network(recipe.network, 3, seed=0)
    images = np.random.default_rng(0).integers(0, 256, (32, 1, 32, 32), dtype=np.uint8)
    export_bundle(network, recipe, folder / "bundle", provenance=Provenance(), train_images=images)
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    save_weights(network, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, n=18, size=64, seed=4)
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


def test_a_run_folder_is_no_place_for_a_bundle(export, run_folder):
    before = sorted(run_folder.iterdir())
    code, _, err = export(run_folder, "--out", run_folder)
    assert code == 2
    assert "is a run folder" in " ".join(err.split())
    assert sorted(run_folder.iterdir()) == before


def test_a_folder_with_a_bundle_is_not_written_over(export, run_folder):
    code, _, err = export(run_folder, "--out", run_folder / "bundle")
    assert code == 4
    assert "holds a bundle already" in err


SUFFIXES = {
    "onnx": "onnx",
    "openvino": "xml",
    "torchscript": "pt",
    "keras": "h5",
    "safetensors": "safetensors",
}


@pytest.mark.parametrize("to", SUFFIXES)
def test_a_float_format_agrees_with_the_bundle_on_xrays(export, run_folder, phantoms, tmp_path, to):
    if find_spec({"openvino": "openvino", "keras": "keras"}.get(to, "torch")) is None:
        pytest.skip(f"needs the extra [{to}]")
    out = tmp_path / f"model.{SUFFIXES[to]}"
    code, printed, err = export(run_folder, "--out", out, "--to", to, "--check", phantoms, "--json", "-q")
    assert (code, err) == (0, "")
    facts = json.loads(printed)[to]
    assert facts["path"] == str(out)
    assert facts["largest_difference"] < 1e-5
    assert (facts["images"], facts["checked_on"]) == (18, str(phantoms))
    assert facts["bytes"] == sum(file.stat().st_size for file in tmp_path.iterdir())


def test_without_validation_images_the_samples_are_compared(export, run_folder, tmp_path):
    code, out, err = export(run_folder, "--out", tmp_path / "m.onnx", "--to", "onnx", "--quiet")
    assert (code, err) == (0, "")
    assert "on 8 X-rays (the sample images)" in out


def test_validation_images_of_the_run_are_compared_where_they_still_exist(export, run_folder, tmp_path):
    manifest = divide(write_phantoms(tmp_path / "data", n=30, size=64, seed=5), SplitSpec())
    (tmp_path / "run").mkdir()
    manifest.write(tmp_path / "run" / "split.csv")
    for name in ("bundle", "recipe.yaml", "model.safetensors"):
        (tmp_path / "run" / name).symlink_to(run_folder / name)
    held_out = manifest.subset("val").records
    manifest.resolve(held_out[0]).unlink()
    words = (tmp_path / "run", "--out", tmp_path / "m.onnx", "--to", "onnx", "--json", "-q")
    facts = json.loads(export(*words)[1])["onnx"]
    assert (facts["images"], facts["checked_on"]) == (len(held_out) - 1, "split val")


def test_eight_bits_are_measured_on_given_images_and_differ(export, run_folder, phantoms, tmp_path):
    words = (run_folder, "--to", "onnx-int8", "--check", phantoms, "--json", "-q")
    code, _, err = export(*words, "--out", tmp_path / "few.onnx")
    assert code == 4
    assert "0 images to measure activations on are too few" in err
    code, printed, err = export(*words, "--out", tmp_path / "m.onnx", "--ranges", phantoms)
    assert (code, err) == (0, "")
    assert 0 < json.loads(printed)["onnx-int8"]["largest_difference"] < 0.2
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_the_eight_bits_of_a_bundle_are_its_own_network_and_floats_are_told_apart(export, phantoms, tmp_path):
    run = write_run(tmp_path / "run", RECIPE.model_copy(update={"precision": "int8"}))
    words = (run, "--check", phantoms, "--json", "-q")
    eight = json.loads(export(*words, "--to", "onnx-int8", "--out", tmp_path / "eight.onnx")[1])["onnx-int8"]
    assert eight["largest_difference"] == 0
    code, _, err = export(*words, "--to", "onnx-int8", "--out", tmp_path / "m.onnx", "--ranges", phantoms)
    assert code == 4
    assert "its bundle has 8 bits already, with ranges of its own; leave --ranges out" in err
    assert not (tmp_path / "m.onnx").exists()
    assert (tmp_path / "eight.onnx").read_bytes() == (run / "bundle" / "model.onnx").read_bytes()
    code, printed, _ = export(run, "--check", phantoms, "-q", "--to", "onnx", "--out", tmp_path / "f.onnx")
    assert code == 0
    assert "the bundle's network has 8 bits" in printed


def test_a_file_that_differs_is_an_error_and_removed(export, run_folder, phantoms, tmp_path, monkeypatch):
    def louder(path, to, recipe):
        run = open_network(path, to, recipe)
        return lambda images: run(images) * 1.5

    monkeypatch.setattr(exporting, "open_network", louder)
    out = tmp_path / "m.onnx"
    code, _, err = export(run_folder, "--out", out, "--to", "onnx", "--check", phantoms, "-q")
    assert code == 4
    assert "would differ from the network" in err
    assert not out.exists()


def test_weights_that_are_not_those_of_the_bundle_are_an_error(export, run_folder, phantoms, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    save_weights(build_network(RECIPE.network, 3, seed=5), run / "model.safetensors")
    words = (run, "--out", tmp_path / "m.safetensors", "--to", "safetensors", "--check", phantoms, "-q")
    code, _, err = export(*words)
    assert code == 4
    assert "not the weights of the bundle beside it" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "onnx", "--out", "m.h5"), "ends in .onnx"),
        (("--to", "onnx", "--out", "nowhere/m.onnx"), "nowhere/m.onnx"),
        (("--to", "safetensors", "--out", "nowhere/m.safetensors"), "nowhere/m.safetensors"),
        (("--to", "torchscript", "--out", "nowhere/m.pt"), "nowhere/m.pt"),
        (("--to", "onnx", "--out", "m.onnx", "--check", "absent"), "no X-ray to compare on"),
    ],
)
def test_what_cannot_be_written_or_compared_is_one_line(
    export, run_folder, tmp_path, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    code, out, err = export(run_folder, *words, "-q")
    assert (code, out) == (4, "")
    (line,) = err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [("--ranges", "x", "--to", "onnx"), ("--check", "x")],
)
def test_options_of_another_format_are_wrong_use(export, run_folder, tmp_path, words):
    assert export(run_folder, "--out", tmp_path / "m", *words)[0] == 2


def test_files_of_the_run_are_not_written_over(export, run_folder):
    for name, to in (("bundle/model.onnx", "onnx"), ("model.safetensors", "safetensors")):
        before = (run_folder / name).read_bytes()
        assert export(run_folder, "--out", run_folder / name, "--to", to)[0] == 2
        assert (run_folder / name).read_bytes() == before


@pytest.mark.parametrize("to", ["bundle", "keras"])
def test_a_folder_that_is_no_run_is_one_line(export, tmp_path, to):
    code, out, err = export(tmp_path, "--out", tmp_path / "x.h5", "--to", to)
    assert (code, out) == (4, "")
    (line,) = err.splitlines()
    assert str(tmp_path) in line


def test_weights_of_another_network_are_one_line(export, run_folder, tmp_path):
    run_folder = shutil.copytree(run_folder, tmp_path / "run")
    save_weights(build_network(RECIPE.network, 2), run_folder / "model.safetensors")
    code, _, err = export(run_folder, "--out", tmp_path / "m.h5", "--to", "keras")
    assert code == 4
    assert "does not hold the weights of this recipe's network" in err


def test_an_unknown_format_is_wrong_use(export, run_folder, tmp_path):
    assert export(run_folder, "--out", tmp_path / "m", "--to", "caffe")[0] == 2
