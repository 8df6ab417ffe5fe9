"""Every command of the README is run, or a cheaper one in its place:

* ``make demo`` runs with few phantoms and one epoch, in the virtual environment that runs the tests.
* ``make check`` runs these tests: only its dry run is checked.
* ``pip install .`` is run by ``test_install.py``; of the install with all extras, the pins are checked.
* ``pneumoscope train`` runs every recipe on phantoms, small, for one epoch, from scratch.
* ``pneumoscope data fetch`` gets a mirror that does not exist, and must report it in one line.
* ``pneumoscope serve`` is started on a free port, its health is checked, and it is stopped.
* Everything else runs unchanged, in a folder that holds the files it names.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bundles import make_bundle
from pneumoscope.data import load, split
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.training.recipe import recipe_names

REPOSITORY = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONSTRAINTS = REPOSITORY / "constraints.txt"

TRIAL = ("--epochs", "1", "--limit", "12", "--no-pretrained")
# Inception needs 75 pixels, the VGG networks 32.
TRIAL_SIZE = {"inception-v3": "80"}
NO_MIRROR = ("--base-url", "http://127.0.0.1:9/")


def commands(*programs: str, text: str = README) -> list[str]:
    """Return the lines behind a ``$`` that call one of the programs, in the order of the page."""
    lines = [line for kind, block in BLOCK.findall(text) if kind == "console" for line in block.splitlines()]
    return [line[2:] for line in lines if line.startswith("$ ") and line[2:].split()[0] in programs]


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme") / "xrays"
    write_phantoms(folder, n=60, seed=3, size=160)
    return folder


@pytest.fixture
def folder(phantoms: Path, tmp_path: Path) -> Path:
    """Return a folder with the files that the README's commands name."""
    shutil.copytree(phantoms, tmp_path / "xrays")
    images = sorted((tmp_path / "xrays").rglob("*.jpeg"))
    shutil.copy(images[0], tmp_path / "chest.png")
    (tmp_path / "ward").mkdir()
    for image in images[::20]:
        shutil.copy(image, tmp_path / "ward")
    split(load(tmp_path / "xrays"), seed=1).write(tmp_path / "split.csv")
    return tmp_path


def test_every_command_is_tested() -> None:
    everything = re.findall(r"^\$ (.*)$", README, re.MULTILINE)
    assert everything == [line for line in everything if line in commands("make", "pip", "pneumoscope")], (
        "a program without a test below"
    )
    assert commands("make") == ["make demo", "make check"]
    assert commands("pip") == ["pip install .", "pip install --constraint constraints.txt '.[all]'"]


@pytest.mark.slow
def test_make_demo(tmp_path: Path) -> None:
    # The virtual environment of this run takes the place of .venv.
    few = [
        f"BIN={BIN}",
        f"DEMO={tmp_path / 'demo'}",
        "PHANTOMS=45",
        "NEW_PHANTOMS=6",
        "DEMO_TRAIN=--epochs 1",
    ]
    done = run(["make", "--assume-old=.venv/.installed", "demo", *few], REPOSITORY)
    assert done.returncode == 0, done.stderr
    reports = re.findall(r"^Report .*?: +(.*)$", done.stdout, re.MULTILINE)
    assert len(reports) == 2
    assert all("<html" in Path(report).read_text(encoding="utf-8") for report in reports)
    with (tmp_path / "demo" / "predictions.csv").open(encoding="utf-8") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["ok"] * 6
    assert len(list((tmp_path / "demo" / "heatmaps").glob("*.png"))) == 6


def test_make_check_runs_these_tests() -> None:
    done = run(["make", "--no-print-directory", "--dry-run", "--always-make", "check"], REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert "pip install --constraint constraints.txt" in done.stdout, "it sets up the environment"
    assert all(tool in done.stdout for tool in ("ruff check", "mypy", "lint-imports"))
    assert "-m pytest" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "target",
    re.findall(r"`make (\w+)", README + (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")),
)
def test_targets_exist(target: str) -> None:
    assert run(["make", "--dry-run", target], REPOSITORY).returncode == 0


def test_pins_cover_and_satisfy_the_requirements() -> None:
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().split("\n") if "==" in line)
    pinned = {canonicalize_name(name): pin for name, pin in pins.items()}
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    requirements = [Requirement(text) for text in sum(extras, start=project["dependencies"])]
    for requirement in requirements:
        if requirement.name != "pneumoscope":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_these_tests_run_with_the_pinned_versions() -> None:
    pins = [line.split("==") for line in CONSTRAINTS.read_text().split("\n") if "==" in line]
    # A local build tag, as in 2.12.1+cpu, is the same release.
    other = {name: version(name) for name, pin in pins if version(name).split("+")[0] != pin}
    assert other == {}


@pytest.mark.parametrize("command", [c for c in commands("pneumoscope") if " predict " in c])
def test_predict(command: str, folder: Path) -> None:
    if "--bundle runs/default" in command:
        make_bundle(folder / "runs" / "default")
    done = run(shlex.split(command), folder)
    words = shlex.split(command)
    if "--json" in words:
        rows = json.loads(done.stdout)
    else:
        text = (folder / "predictions.csv").read_text(encoding="utf-8") if "--out" in words else done.stdout
        rows = list(csv.DictReader(text.splitlines(), delimiter="," if "--out" in words else "\t"))
    assert [Path(row["path"]).name for row in rows] == (
        ["chest.png"] if "chest.png" in words else sorted(path.name for path in (folder / "ward").iterdir())
    ), done.stderr
    # The shipped model may or may not reject a phantom; the exit code must agree.
    predicted = sum(row["status"] == "ok" for row in rows)
    assert done.returncode == (0 if predicted == len(rows) else 3 if predicted else 4), done.stderr
    if "--heatmaps" in words:
        assert len(list((folder / "maps").glob("*.png"))) == len(rows)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", [c for c in commands("pneumoscope") if " train " in c])
def test_train(command: str, folder: Path) -> None:
    words = shlex.split(command)
    done = run([*words, *TRIAL, "--size", TRIAL_SIZE.get(words[2], "32")], folder)
    assert done.returncode == 0, done.stderr
    out = folder / words[words.index("--out") + 1]
    assert (out / "bundle" / "model.onnx").is_file()
    assert (out / "report.html").is_file()


def test_every_published_system_has_its_line() -> None:
    named = {shlex.split(command)[2] for command in commands("pneumoscope") if " train " in command}
    # The teacher is trained by the default recipe.
    assert named == set(recipe_names()) - {"phantom", "teacher"}


@pytest.mark.parametrize("command", [c for c in commands("pneumoscope") if " data fetch " in c])
def test_fetch(command: str, tmp_path: Path) -> None:
    done = run([*shlex.split(command), *NO_MIRROR], tmp_path)
    assert done.returncode == 4
    *progress, error = done.stderr.strip().splitlines()
    assert progress == ["downloading"]
    assert error.startswith("error: ")
    assert "127.0.0.1" in error


@pytest.mark.parametrize(
    "command",
    [c for c in commands("pneumoscope") if not re.search(r" (predict|train|data fetch|serve)\b", c)],
)
def test_unchanged(command: str, folder: Path) -> None:
    if "runs/default" in command:
        make_bundle(folder / "runs" / "default")
    (folder / "split.csv").unlink()
    done = run(shlex.split(command), folder)
    assert done.returncode == 0, done.stderr
    words = shlex.split(command)
    if "--out" in words:
        assert (folder / words[words.index("--out") + 1]).exists()


@pytest.mark.parametrize("command", [c for c in commands("pneumoscope") if " serve" in c])
def test_serve(command: str, tmp_path: Path) -> None:
    # A free port in place of the usual one, which may be taken.
    process = subprocess.Popen(
        [BIN / "pneumoscope", *shlex.split(command)[1:], "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        output = next(line for line in process.stdout if "http://127.0.0.1:" in line)
        address = re.search(r"http://127\.0\.0\.1:\d+", output)
        assert address is not None
        with urllib.request.urlopen(f"{address[0]}/healthz", timeout=30) as response:
            assert response.status == 200
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0
        process.stdout.close()


@pytest.mark.parametrize("code", [block for kind, block in BLOCK.findall(README) if kind == "python"])
def test_python(code: str, folder: Path) -> None:
    done = run([sys.executable, "-W", "error", "-c", code], folder)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + len(list((folder / "ward").iterdir()))


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:)([^)#]+)", README))
def test_links(target: str) -> None:
    assert (REPOSITORY / target).exists()
