"""`pneumoscope train` under torchrun: two processes on the CPU against one with the same batch."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pneumoscope.cli import main
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.model.bundle import load_bundle

pytestmark = pytest.mark.slow

EPOCHS = 12
# Without random numbers that depend on the process (augmentation, dropout), so that both must agree.
RECIPE = {
    "name": "tiny",
    "description": "For tests.",
    "classes": ["normal", "bacterial", "viral"],
    "input": {"size": 32},
    "network": {"name": "custom-cnn", "channels": 1, "options": {"widths": [4, 8]}},
    "phases": [
        {"epochs": 2, "lr": 0.01, "frozen": 1},
        {"epochs": EPOCHS - 2, "lr": 0.01, "schedule": "cosine"},
    ],
    "batch": 8,
    "ema": 0.95,
    "optimizer": "sgd",
    "split": {"fractions": [0.6, 0.2, 0.2]},
}
TINY = ("tiny.yaml", "--data", "phantoms")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with phantoms, of which one is no image, and recipes."""
    folder = tmp_path_factory.mktemp("together")
    write_phantoms(folder / "phantoms", n=60, size=64, seed=1)
    (folder / "phantoms" / "NORMAL" / "broken.jpeg").write_bytes(b"no image")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    (folder / "odd.yaml").write_text(yaml.safe_dump(RECIPE | {"batch": 9}), encoding="utf-8")
    return folder


def start(place, *words):
    """Start two processes as users do."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*command, "-m", "pneumoscope", "train", *words],
        cwd=place,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    try:
        return process.communicate(timeout=200)
    finally:
        end(process)


def end(process):
    """Kill a run that this test has started: torchrun, and its processes, which have their own sessions."""
    if process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for one in (process.pid, *map(int, children)):
            os.kill(one, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def one(place):
    """The run of one process."""
    before = Path.cwd()
    os.chdir(place)
    try:
        with pytest.raises(SystemExit) as left:
            main(["train", *TINY, "--out", "one"])
    finally:
        os.chdir(before)
    assert left.value.code == 3, "one image is left out"
    return place / "one"


@pytest.fixture(scope="module")
def two(place):
    """The run of two processes."""
    process = start(place, *TINY, "--out", "two", "--json")
    out, err = finished(process)
    assert process.returncode == 0, err
    return place / "two", out, err


def history(run):
    with (run / "history.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.long
def test_two_processes_train_as_one_does(one, two):
    """Sums are in another order, and bf16 rounds them: weights differ in the third digit at most."""
    for alone, together in zip(history(one), history(two[0]), strict=True):
        assert (alone["epoch"], alone["lr"]) == (together["epoch"], together["lr"])
        for name in ("train_loss", "val_loss"):
            assert float(together[name]) == pytest.approx(float(alone[name]), abs=5e-3), name
    theirs = load_file(two[0] / "model.safetensors")
    for name, value in load_file(one / "model.safetensors").items():
        assert torch.allclose(value.float(), theirs[name].float(), rtol=0.02, atol=0.02), name
    alone, together = (json.loads((run / "metrics.json").read_text()) for run in (one, two[0]))
    assert together["images"] == alone["images"]


def test_one_of_two_processes_writes_and_prints(place, two):
    run, out, err = two
    summary = json.loads(out)
    assert summary["bundle"]["identity"] == load_bundle(run).identity
    assert summary["left_out"] == 1
    epochs = [line.split()[1] for line in err.splitlines() if line.startswith("epoch ")]
    assert epochs == [f"{number}/{EPOCHS}" for number in range(1, EPOCHS + 1)]
    assert len((run / "left-out.csv").read_text().splitlines()) == 2
    assert "rank" not in err.lower()


@pytest.mark.long
def test_two_processes_that_are_killed_resume(place, two):
    process = start(place, *TINY, "--out", "killed")
    rows = place / "killed" / "history.csv"
    try:
        while not rows.exists() or len(rows.read_text().splitlines()) < 4:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.005)
    finally:
        end(process)
    assert len(history(place / "killed")) < EPOCHS, "killed in the middle"
    process = start(place, *TINY, "--out", "killed", "--resume")
    _, err = finished(process)
    assert process.returncode == 0, err
    assert "epoch 1/" not in err, "it goes on"
    resumed, whole = (load_file(run / "model.safetensors") for run in (place / "killed", two[0]))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    assert [int(row["epoch"]) for row in history(place / "killed")] == list(range(1, EPOCHS + 1))


@pytest.mark.long
def test_an_error_is_one_line_of_one_process(place):
    process = start(place, "odd.yaml", "--data", "phantoms", "--out", "odd")
    _, err = finished(process)
    assert process.returncode == 1, "of torchrun"
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: batch: 9 images cannot be divided over 2 processes; start a number that divides it "
        "(--nproc-per-node), or change the batch of the recipe"
    ]
    assert "pneumoscope/" not in err, "no traceback of this program"
    assert not (place / "odd").exists()
