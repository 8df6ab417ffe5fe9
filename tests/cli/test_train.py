from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from pneumoscope import experiment
from pneumoscope.cli import main
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.experiment import tuning
from pneumoscope.model.bundle import load_bundle
from pneumoscope.training.recipe import load_recipe

EPOCHS = 15
RECIPE = {
    "name": "tiny",
    "description": "For tests.",
    "classes": ["normal", "bacterial", "viral"],
    "input": {"size": 32},
    "network": {"name": "custom-cnn", "channels": 1, "dropout": 0.2, "options": {"widths": [4, 8]}},
    "phases": [
        {"epochs": 5, "lr": 0.01, "frozen": 1},
        {"epochs": EPOCHS - 5, "lr": 0.01, "schedule": "cosine"},
    ],
    "augmentation": {"area": [0.8, 1.1], "flip": 0.5, "noise": 0.05},
    "batch": 8,
    "ema": 0.95,
    "split": {"fractions": [0.6, 0.2, 0.2]},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with phantoms and a recipe."""
    folder = tmp_path_factory.mktemp("train")
    write_phantoms(folder / "phantoms", n=45, size=64, seed=1)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    return folder


def start(place, *words, launcher=("-m", "pneumoscope")):
    """Start `pneumoscope train` as its users do, with warnings as errors."""
    command = [sys.executable, "-W", "error::UserWarning:pneumoscope", *launcher, "train", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=place, env=environment, **pipes)


def finished(process):
    try:
        out, err = process.communicate(timeout=280)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out, err


TINY = ("tiny.yaml", "--data", "phantoms")


@pytest.fixture
def train(place, capsys, monkeypatch):
    """Run `train` in this process."""
    monkeypatch.chdir(place)

    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(["train", *map(str, words)])
        return left.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def unbroken(place):
    return *finished(start(place, *TINY, "--out", "unbroken", "--json")), place / "unbroken"


def test_progress_is_plain_lines_and_the_result_json(unbroken):
    out, err, run = unbroken
    summary = json.loads(out)
    path = str(Path("unbroken") / "bundle")
    assert summary["bundle"] == {"identity": load_bundle(run).identity, "path": path}
    assert summary["left_out"] == 0
    assert 0 <= summary["auroc"]["low"] <= summary["auroc"]["value"] <= summary["auroc"]["high"] <= 1
    metrics = json.loads((run / "metrics.json").read_text())
    assert summary["accuracy_all_classes"] == metrics["all_classes"]["accuracy"]
    assert summary["test_images"] == metrics["images"]
    lines = err.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch ")] == [
        f"{number}/{EPOCHS}" for number in range(1, EPOCHS + 1)
    ]
    assert "Warning" not in err


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_weights(train, place, unbroken):
    history = place / "killed" / "history.csv"
    process = start(place, *TINY, "--out", "killed")
    while not history.exists() or len(history.read_text().splitlines()) < 4:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    rows = len(history.read_text().splitlines()) - 1
    assert rows < EPOCHS, "killed in the middle"
    assert not (place / "killed" / "model.safetensors").exists()

    code, _, err = train(*TINY, "--out", "killed", "--resume")
    assert code == 0, err
    done = [int(line.split()[1].split("/")[0]) for line in err.splitlines() if line.startswith("epoch ")]
    assert done[0] > 1, "it goes on"
    assert done[-1] == EPOCHS
    whole = load_file(unbroken[2] / "model.safetensors")
    resumed = load_file(place / "killed" / "model.safetensors")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    with history.open(encoding="utf-8") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(1, EPOCHS + 1))


def test_a_shipped_recipe_runs_with_changes_and_an_unreadable_image_is_exit_code_3(train, tmp_path):
    write_phantoms(tmp_path / "data", n=48, size=64, seed=2)
    (tmp_path / "data" / "NORMAL" / "broken.jpeg").write_bytes(b"no image")
    out = tmp_path / "run"
    options = ("--epochs", 1, "--limit", 17, "--size", 32, "--seed", 3, "--split", "random", "--patience", 2)
    code, printed, err = train("custom-cnn", "--data", tmp_path / "data", "--out", out, *options)
    assert code == 3
    assert f"1 unreadable image left out: {out / 'left-out.csv'}" in err
    recipe = load_recipe(str(out / "recipe.yaml"))
    assert (recipe.epochs, recipe.patience) == (1, 2)
    assert recipe.input.size == 32
    assert (recipe.seed, recipe.split.seed, recipe.split.method) == (3, 3, "random")
    assert "AUROC, pneumonia against the rest" in printed
    assert f"bundle: {out / 'bundle'}" in printed
    assert f"report: {out / 'report.html'}" in printed
    assert {path.name for path in out.iterdir()} >= {
        "plot.jpg",
        "report.html",
        "model.safetensors",
        "split.csv",
    }


def test_an_existing_run_is_rejected(train, unbroken):
    code, out, err = train(*TINY, "--out", "unbroken")
    assert (code, out) == (4, "")
    assert err == "error: unbroken: holds a run already; use --resume to continue it, or another --out\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("custom-cn",), "did you mean 'custom-cnn'?"),
        (("absent.yaml",), "recipe cannot be read"),
        (("vgg16", "--weights", "absent.pth"), "no such weights file"),
        (("custom-cnn", "--pretrained"), "use --no-pretrained"),
        (("custom-cnn", "--size", 16), "input.size: 16 pixels are too few"),
        (("custom-cnn", "--data", "nowhere"), "nowhere"),
        (("default", "--lungs", "absent.onnx"), "absent.onnx: no lung segmenter"),
        (("custom-cnn", "--target", "infiltrate"), "write it as NAME=CLASS[,CLASS...]"),
        (("custom-cnn", "--target", "infiltrate=lobar"), "no image of class lobar"),
        (("custom-cnn", "--target", "pneumonia=normal,viral,bacterial"), "must be outside of the target"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_4(train, tmp_path, words, message):
    recipe, *options = words
    # Quiet: on a busy machine there would be a line for the libraries that are loaded.
    code, out, err = train(recipe, "--data", "phantoms", "--out", tmp_path / "run", *options, "-q")
    assert (code, out) == (4, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--epochs", 0), ("--limit", 2), ("--size", 8), ("--size", 4000), ("--split", "by-eye"),
        ("--no-pretrained", "--weights", "w.pth"), ("--unknown",), ("--cache", "c", "--no-cache"),
        ("--out", "phantoms/run"),
    ],
)  # fmt: skip
def test_wrong_use_is_exit_code_2(train, tmp_path, words):
    code, out, err = train("custom-cnn", "--data", "phantoms", "--out", tmp_path / "run", *words)
    assert (code, out) == (2, "")
    assert "Usage" in err


def test_weights_from_a_file_start_the_network_and_count_as_pretrained(train, place, tmp_path):
    """With weights the frozen layers stay frozen, and so keep the file's values."""
    import timm

    options = {"channels": [8, 8, 16, 16], "stem_width": 8}
    source = timm.create_model("resnet10t", **options)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    changes = {
        "network": {"name": "resnet10t", "pretrained": True, "options": options},
        "phases": [{"epochs": 1, "lr": 0.01, "frozen": "backbone"}],
        "ema": None,
    }
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(RECIPE | changes), encoding="utf-8")
    words = (tmp_path / "net.yaml", "--data", "phantoms", "--out", tmp_path / "run")
    code, _, err = train(*words, "--weights", tmp_path / "w.safetensors")
    assert code == 0, err
    trained = load_file(tmp_path / "run" / "model.safetensors")
    assert torch.equal(trained["backbone.model.layer1.0.conv1.weight"], source.layer1[0].conv1.weight)


def test_the_shipped_network_is_trained_further(train, place, tmp_path):
    words = ("finetune", "--data", "phantoms", "--out", tmp_path / "run", "--epochs", 2, "--size", 64)
    code, _, err = train(*words, "--limit", 8, "--weights", "shipped")
    assert code == 0, err
    trained = load_bundle(tmp_path / "run")
    shipped = load_bundle()
    assert trained.manifest.provenance.pretrained == f"bundle {shipped.identity}"
    started = json.loads((tmp_path / "run" / "inputs.json").read_text(encoding="utf-8"))["weights"]
    assert started == shipped.identity
    # Two epochs at these rates change it little; from ImageNet these weights would be unrelated.
    before, after = (
        {
            one.name.removesuffix("_16_bits"): numpy_helper.to_array(one).ravel()
            for one in onnx.load(bundle.model_path).graph.initializer
        }
        for bundle in (shipped, trained)
    )
    for name in ("backbone.join.0.weight", "backbone.join.3.weight"):
        assert np.corrcoef(before[name], after[name])[0, 1] > 0.9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "custom-cnn", "--data", "phantoms", "--out", "none"), "Training needs"),
        (("export", "run", "--out", "m.h5", "--to", "keras"), "Writing keras needs"),
        (("train-lungs", "--data", "phantoms", "--masks", "m", "--out", "none"), "Training needs"),
    ],
)
def test_without_the_packages_for_training_it_says_what_to_install(place, words, message):
    script = "import sys; sys.modules['torch'] = None; from pneumoscope.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", script, *words, "-q"], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message} more packages: in a clone, pip install '.[")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nowhere", "no such file or folder; give a folder of images or a manifest"),
        ("nowhere.csv", "nowhere.csv: "),
        ("nowhere.npz", "no such folder"),
    ],
)
def test_absent_data_are_noticed_before_the_libraries_are_loaded(place, data, message):
    script = "import sys; sys.modules['torch'] = None; from pneumoscope.cli import main; main(sys.argv[1:])"
    words = ("train", "custom-cnn", "--data", data, "--out", "none")
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=place, capture_output=True, text=True, check=False
    )
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line[:7]) == (4, "error: ")
    assert message in line
    assert "packages" not in line


def test_the_data_may_be_on_the_machine_of_the_first_process_only(train, monkeypatch):
    called = []
    monkeypatch.setattr(experiment, "train", lambda *words, **options: called.append(words))
    assert train("custom-cnn", "--data", "nowhere", "--out", "none")[0] == 4
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert train("custom-cnn", "--data", "nowhere", "--out", "none")[0] == 0
    assert called == [("custom-cnn", Path("nowhere"), Path("none"))]


@pytest.mark.parametrize("command", ["train", "cross-validate", "tune"])
def test_an_interrupted_run_says_how_it_continues(place, tmp_path, capsys, monkeypatch, command):
    def begun(*_words, **_options):
        (tmp_path / "run").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", begun)
    monkeypatch.setattr(experiment, "cross_validate", begun)
    monkeypatch.setattr(tuning, "tune", begun)
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as left:
        main([command, *TINY, "--out", str(tmp_path / "run")])
    assert left.value.code == 130
    option = " with --resume" if command == "train" else ""
    last = f"interrupted; the same command{option} continues, what is finished is in {tmp_path / 'run'}"
    assert capsys.readouterr().err.splitlines()[-1] == last


def test_data_with_other_labels_need_a_target(train, tmp_path):
    for name in ("clear", "lobar", "diffuse"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "1.png").write_bytes(b"never read")
    recipe = {key: value for key, value in RECIPE.items() if key != "classes"}
    (tmp_path / "open.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    words = (tmp_path / "open.yaml", "--data", tmp_path / "data", "--out", tmp_path / "run")
    code, _, err = train(*words)
    assert code == 4
    (line,) = err.splitlines()
    assert "clear, diffuse, lobar; name it with --target NAME=CLASS" in line


def test_a_wrong_label_names_the_manifest_also_in_the_current_folder(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text("path,label,patient_id\n1.png,normal,1\n2.png,covid,2\n", encoding="utf-8")
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    code, _, err = train("recipe.yaml", "--data", "labels.csv", "--out", "run")
    (line,) = err.splitlines()
    assert (code, line.partition(": label 'covid'")[0]) == (4, "error: labels.csv")
