"""``--json`` of every command: one document on standard output, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from importlib.util import find_spec

import cv2
import numpy as np
import pytest

from bundles import make_bundle
from images import write_image
from pneumoscope.cli import main
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.model.manifest import Provenance
from pneumoscope.training.export import export_bundle
from pneumoscope.training.networks import build_network, save_weights
from pneumoscope.training.recipe import Recipe

RECIPE = {
    "name": "tiny",
    "description": "For tests.",
    "classes": ["normal", "bacterial", "viral"],
    "input": {"size": 32},
    "network": {"name": "custom-cnn", "channels": 1, "options": {"widths": [4, 8]}},
    "phases": [{"epochs": 2, "lr": 0.01}],
    "batch": 8,
}
COUNTS = {"images", "patients", "labels", "splits", "sources", "left_out", "fingerprint", "root"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, n=60, size=64, seed=5)
    return folder


@pytest.fixture
def call(capsys):
    """Run a command with --json; return its exit code and what it printed, as parsed."""

    def run(*words, code=0):
        with pytest.raises(SystemExit) as left:
            main([*map(str, words), "--json"])
        assert (left.value.code or 0) == code
        return json.loads(capsys.readouterr().out)

    return run


def named(bundle):
    return {"identity": bundle.identity, "path": str(bundle.path)}


def test_predict(call, bundle, tmp_path):
    write_image(tmp_path / "名前 é.png")
    (row,) = call("predict", "--bundle", bundle.path, tmp_path)
    assert row["path"] == str(tmp_path / "名前 é.png")
    assert row["bundle"] == bundle.identity


def test_info(call, bundle):
    facts = call("info", "--bundle", bundle.path)["bundle"]
    assert named(bundle).items() <= facts.items()


def test_phantom_split_summary_and_audit(call, tmp_path):
    facts = call("data", "phantom", tmp_path / "p", "--n", 30, "--size", 48)
    assert facts.keys() >= COUNTS
    assert facts["images"] == 30
    (tmp_path / "p" / "normal").mkdir(exist_ok=True)
    (tmp_path / "p" / "normal" / "broken.png").write_bytes(b"no image")
    made = call("data", "split", tmp_path / "p", "--out", tmp_path / "split.csv", code=3)
    assert made.keys() >= COUNTS
    assert made["manifest"] == str(tmp_path / "split.csv")
    assert [one["path"] for one in made["left_out"]] == ["normal/broken.png"]
    assert sum(part["images"] for part in made["splits"].values()) == made["images"] == 30
    summary = call("data", "summary", tmp_path / "split.csv")
    assert summary == {name: summary[name] for name in made if name != "manifest"}
    assert summary["fingerprint"] == made["fingerprint"]
    assert call("data", "audit", tmp_path / "split.csv")["leaks"] is False
    joined = call("data", "join", f"a={tmp_path / 'split.csv'}", "--out", tmp_path / "all" / "joined.csv")
    assert joined["manifest"] == str(tmp_path / "all" / "joined.csv")
    assert joined["splits"] == made["splits"]


def test_fetch(call, tmp_path):
    write_image(tmp_path / "xray.jpeg")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(4):
            name = f"chest_xray/train/NORMAL/IM-{number:04d}-0001.jpeg"
            archive.write(tmp_path / "xray.jpeg", name)
    facts = call("data", "fetch", "kermany", tmp_path / "out", "--from", tmp_path / "a.zip")
    assert facts.keys() >= COUNTS
    assert facts["manifest"] == str(tmp_path / "out" / "manifest.csv")
    assert facts["description"]["licence"].startswith("CC BY 4.0")


def test_export(call, tmp_path):
    bundle = make_bundle(tmp_path / "run" / "bundle")
    made = call("export", tmp_path / "run", "--out", tmp_path / "mine")
    assert made == {"bundle": {"identity": bundle.identity, "path": str(tmp_path / "mine")}}
    if find_spec("keras") is None:
        pytest.skip("needs the extra [keras]")
    recipe, run = Recipe.model_validate(RECIPE), tmp_path / "trained"
    network = build_network(recipe.network, 3, seed=0)
    export_bundle(network, recipe, run / "bundle", provenance=Provenance())
    (run / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    save_weights(network, run / "model.safetensors")
    made = call("export", run, "--out", tmp_path / "m.h5", "--to", "keras")
    assert made["keras"]["path"] == str(tmp_path / "m.h5")
    assert 0 <= made["keras"]["largest_difference"] < 1e-3


def test_train_lungs(call, capsys, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(30):
        mask = np.zeros((96, 96), np.uint8)
        for centre in (30, 66):
            cv2.ellipse(mask, (centre, 48), (12, 28), 0, 0, 360, 255, -1)
        grey = np.where(mask > 0, 60, 190) + rng.normal(0, 8, mask.shape)
        for folder, image in (("images", grey.clip(0, 255).astype(np.uint8)), ("masks", mask)):
            path = tmp_path / folder / "normal" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)
    words = ("--data", tmp_path / "images", "--masks", tmp_path / "masks", "--out", tmp_path / "lungs")
    made = call("train-lungs", *words, "--epochs", 1)
    assert made["path"] == str(tmp_path / "lungs" / "lungs.onnx")
    assert (made["images"], made["left_out"]) == (30, 0)
    assert 0 <= made["dice"] <= 1
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as left:
        main(["train-lungs", *map(str, words[:-1]), str(tmp_path / "file")])
    assert left.value.code == 4
    assert "file: cannot make this folder (File exists); name another one\n" in capsys.readouterr().err
    (tmp_path / "images" / "normal" / "3.png").write_bytes(b"no image")
    assert call("train-lungs", *words, "--epochs", 1, code=3)["left_out"] == 1


def test_serve_prints_its_address_when_it_is_ready(bundle):
    command = [sys.executable, "-m", "pneumoscope", "serve", "--bundle", str(bundle.path), "--port", "0"]
    with subprocess.Popen(
        [*command, "--workers", "1", "--json", "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    ) as process:
        lines = [process.stdout.readline()]
        while lines[-1].rstrip() != "}":
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        facts = json.loads("".join(lines))
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (rest, errors) == ("", "")
    assert facts["url"].startswith("http://127.0.0.1:")
    assert facts["this_machine_only"] is True
    assert facts["bundle"] == named(bundle)


def test_json_is_valid_where_the_terminal_is_not_utf8(bundle, tmp_path):
    write_image(tmp_path / "名前 é.png")
    table = "path,label,patient_id\n名前 é.png,名前,p\n"
    (tmp_path / "labels.csv").write_text(table, encoding="utf-8")
    for words in (
        ["predict", "--bundle", bundle.path, tmp_path / "名前 é.png"],
        ["data", "summary", tmp_path / "labels.csv"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "pneumoscope", *words, "--json"],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
            check=True,
        )
        json.loads(done.stdout.decode("ascii"))


def test_a_name_that_the_terminal_cannot_write_is_escaped(bundle, tmp_path):
    write_image(tmp_path / "名前.png")
    done = subprocess.run(
        [sys.executable, "-m", "pneumoscope", "predict", "--bundle", bundle.path, tmp_path],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        check=True,
    )
    assert rb"\u540d\u524d.png" in done.stdout


def test_an_error_leaves_standard_output_empty(capsys, tmp_path):
    for words in (
        ["info", "--bundle", tmp_path],
        ["data", "summary", tmp_path],
        ["export", tmp_path, "--out", tmp_path / "x"],
    ):
        with pytest.raises(SystemExit) as left:
            main([*map(str, words), "--json"])
        out, err = capsys.readouterr()
        assert (left.value.code, out) == (4, "")
        assert err.startswith("error: ")
