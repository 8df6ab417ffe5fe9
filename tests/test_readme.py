"""Every command of README and tutorial is run, or a cheaper one in its place; outputs are compared.

* Commands and Python code that are followed by their output run unchanged, each page from top to bottom, as a
  reader would; numbers may differ a little (`notebooks/build_outputs.py`).
* ``make demo`` is run by ``test_make.py``.
* ``make check`` runs these tests: only its dry run is checked.
* ``pip`` is run by ``test_install.py``; of the install with all extras, the pins are checked.
* ``pneumoscope train`` runs every recipe on 60 X-rays, small, for one epoch, from scratch; `make check`
  runs one of them here and one in ``make demo``, and `make test-long` the others.
* ``pneumoscope data fetch`` gets a mirror that does not exist, and must report it in one line.
* ``pneumoscope serve`` is started on a free port, its health is checked, and it is stopped.
* Everything else runs unchanged, in a folder that holds the files it names.
"""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import pneumoscope
from bundles import make_bundle
from pneumoscope import Record
from pneumoscope.cli import main
from pneumoscope.data import load, split
from pneumoscope.training.recipe import recipe_names

REPOSITORY = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CONSTRAINTS = REPOSITORY / "constraints.txt"

sys.path.insert(0, str(REPOSITORY / "notebooks"))  # it imports its neighbour
builder = SimpleNamespace(**runpy.run_path(str(REPOSITORY / "notebooks" / "build_outputs.py")))
sys.path.pop(0)
PAGES: dict[str, str] = {path.name: path.read_text(encoding="utf-8") for path in builder.PAGES}
FIX = "run `make tutorial`"

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Of the trainings, those that `make check` runs.
QUICK = re.compile(r" train \S+ .* runs/transfer$")
LONG = pytest.mark.long
TRIAL = ("--epochs", "1", "--no-pretrained")
# Inception needs 75 pixels, the VGG networks 32.
TRIAL_SIZE = {"inception-v3": "80"}
NO_MIRROR = ("--base-url", "http://127.0.0.1:9/")


def commands(*programs: str) -> list[str]:
    """Return the lines behind a ``$`` on all pages that call one of the programs, each once."""
    blocks = [block for page in PAGES.values() for kind, block in BLOCK.findall(page) if kind == "console"]
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [line for line in dict.fromkeys(lines) if line.split()[0] in programs]


SHOWN = {
    shlex.join(command)
    for page in PAGES.values()
    for example in builder.examples(page)
    for command in example.commands
}
# Those that no page shows the output of.
SILENT = [command for command in commands("pneumoscope") if command not in SHOWN]


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the files that the commands name.

    They are X-rays of 60 patients in folders ``train`` and ``test``, as they are downloaded, the same as
    those of another hospital, and a ward of three.
    """
    (tmp_path / "ward").mkdir()
    patients: dict[str, dict[str, Record]] = {}
    xrays = load(REPOSITORY / "data" / "xrays-sample")
    for record in xrays:
        patients.setdefault(record.label, {}).setdefault(record.patient_id, record)
    for records in patients.values():
        images = [xrays.resolve(record) for record in list(records.values())[:20]]
        shutil.copy(images[0], tmp_path / "ward")
        for number, image in enumerate(images):
            for place in (f"xrays/{'train' if number % 4 else 'test'}", "hospital-b"):
                copy = tmp_path / place / image.parent.name / image.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(image, copy)
    builder.prepare(tmp_path)
    for name in ("split.csv", "full.csv"):
        split(load(tmp_path / "xrays"), seed=1).write(tmp_path / name)
    split(load(tmp_path / "xrays"), method="random", seed=1).write(tmp_path / "random.csv")
    return tmp_path


def make_bundles(command: str, folder: Path) -> None:
    """Make the bundles that a command reads."""
    for name in ("runs/transfer", "model"):
        if re.search(rf"(?<!--out ){name}\b", command):
            make_bundle(folder / name)


def test_every_command_is_tested() -> None:
    for name, page in PAGES.items():
        lines = re.findall(r"^\$ (.*)$", page, re.MULTILINE)
        programs = {line.split()[0] for line in lines}
        assert programs <= {"make", "pip", "pneumoscope"}, f"{name}: a program without a test below"
    assert commands("make") == ["make demo", "make check"]
    assert commands("pip") == [
        "pip install .",
        "pip wheel --no-deps --wheel-dir dist .",
        f"pip install dist/pneumoscope-{pneumoscope.__version__}-py3-none-any.whl",
        "pip install --constraint constraints.txt '.[all]'",
    ], "test_install.py runs these"


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if builder.examples(page)])
def test_outputs(name: str, tmp_path: Path) -> None:
    builder.prepare(tmp_path)
    for example in builder.examples(PAGES[name]):
        printed = builder.run(example, tmp_path)
        assert builder.differences(example.output, printed) == [], f"{example.code}{FIX}"
    if name == "README.md":
        compare_first_image(tmp_path)


def compare_first_image(folder: Path) -> None:
    """Compare the first image of the README with the heat map of the demo that it shows."""
    (shown,) = re.findall(r"^!\[[^]]+\]\((.*)\)$", README, re.MULTILINE)
    (path,) = re.findall(r"`(pneumoscope-demo/heatmaps/\S+\.png)`", README)
    with Image.open(REPOSITORY / shown) as image, Image.open(folder / path) as drawn:
        assert image.size == drawn.size, "run `make screenshots`"
        difference = np.abs(np.asarray(image.convert("L"), float) - np.asarray(drawn.convert("L"), float))
    assert difference.mean() < 2, "grey levels: it is the same image, as a JPEG file"


def test_a_wrong_output_is_found() -> None:
    differences = builder.differences
    assert differences("a.jpeg  0.95  ok\n", "a.jpeg  0.97  ok") == []
    assert differences("took 12 s, 0:01:12", "took 40 s, 0:02:00") == []
    assert len(differences("a.jpeg  0.95  ok", "a.jpeg  0.80  ok")) == 1
    assert len(differences("600 images", "601 images")) == 1
    assert len(differences("pneumonia", "normal")) == 1
    assert len(differences("one\ntwo", "one")) == 1
    page = "```console\n$ pneumoscope info\n```\n\ntext\n\n```python\n1\n```\n\n```text\n`1`\n```\n"
    assert [(one.kind, one.output) for one in builder.examples(page)] == [("python", "`1`\n")]


def test_make_check_runs_these_tests() -> None:
    done = run(["make", "--no-print-directory", "--dry-run", "--always-make", "check"], REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert "--constraint constraints.txt" in done.stdout, "it sets up the environment"
    assert all(tool in done.stdout for tool in ("ruff check", "mypy", "lint-imports"))
    assert "-m pytest" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "target",
    sorted(
        {
            target
            for text in [*PAGES.values(), (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")]
            for target in re.findall(r"`make (\w+)", text)
        }
    ),
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


@pytest.fixture
def ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str, str]]:
    """Give a function that runs a command in the folder and returns its exit code, output and errors.

    It runs in this process: loading its libraries takes longer than most commands do.
    """

    def call(command: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        with pytest.raises(SystemExit) as left:
            main(shlex.split(command)[1:])
        return (int(left.value.code or 0), *capsys.readouterr())

    return call


Ended = Callable[[str], tuple[int, str, str]]


@pytest.mark.parametrize("command", [c for c in SILENT if " predict " in c])
def test_predict(command: str, folder: Path, ended: Ended) -> None:
    make_bundles(command, folder)
    words = shlex.split(command)
    code, out, err = ended(command)
    if "--json" in words:
        rows = json.loads(out)
    else:
        text = (folder / "predictions.csv").read_text(encoding="utf-8") if "--out" in words else out
        rows = list(csv.DictReader(text.splitlines(), delimiter="," if "--out" in words else "\t"))
    names = sorted(path.name for path in (folder / "ward").iterdir())
    assert [Path(row["path"]).name for row in rows] == names, err
    # A bundle may or may not reject an image; the exit code must agree.
    predicted = sum(row["status"] == "ok" for row in rows)
    assert code == (0 if predicted == len(rows) else 3 if predicted else 4), err
    if "--heatmaps" in words:
        assert len(list((folder / "maps").glob("*.png"))) == len(rows)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=() if QUICK.search(c) else LONG) for c in SILENT if " train " in c]
)
def test_train(command: str, folder: Path, ended: Ended) -> None:
    words = shlex.split(command)
    size = TRIAL_SIZE.get(words[2], "32")
    code, _, err = ended(shlex.join([*words, *TRIAL, "--size", size]))
    assert code == 0, err
    out = folder / words[words.index("--out") + 1]
    assert (out / "bundle" / "model.onnx").is_file()
    assert (out / "report.html").is_file()


def test_every_published_system_has_its_line() -> None:
    named = {shlex.split(command)[2] for command in commands("pneumoscope") if " train " in command}
    # The teacher is trained by the default recipe; two have pages of their own.
    assert named == set(recipe_names()) - {"finetune", "hospitals", "phantom", "teacher"}


@pytest.mark.parametrize("command", [c for c in SILENT if " data fetch " in c])
def test_fetch(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pneumoscope.data.download.time.sleep", lambda seconds: None)  # between its attempts
    with pytest.raises(SystemExit) as left:
        main([*shlex.split(command)[1:], *NO_MIRROR])
    assert left.value.code == 4
    *progress, error = capsys.readouterr().err.strip().splitlines()
    assert progress in ([], ["downloading"]), "and no traceback"
    assert error.startswith("error: ")
    assert "127.0.0.1" in error


@pytest.mark.parametrize(
    "command", [c for c in SILENT if not re.search(r" (predict|train|data fetch|serve)\b", c)]
)
def test_unchanged(command: str, folder: Path, ended: Ended) -> None:
    make_bundles(command, folder)
    words = shlex.split(command)
    out = folder / words[words.index("--out") + 1] if "--out" in words else None
    if out is not None and out.is_file():
        out.unlink()
    code, _, err = ended(command)
    assert code == 0, err
    assert out is None or out.exists()


@pytest.mark.parametrize("command", [c for c in SILENT if " serve" in c])
def test_serve(command: str, tmp_path: Path) -> None:
    make_bundles(command, tmp_path)
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


@pytest.mark.parametrize(
    "code",
    [
        block
        for page in PAGES.values()
        for kind, block in BLOCK.findall(page)
        if kind == "python" and block not in {example.code for example in builder.examples(page)}
    ],
)
def test_python(code: str, folder: Path) -> None:
    (folder / "ward" / "child.dcm").write_bytes(next((folder / "ward").glob("*.jpeg")).read_bytes())
    done = run([sys.executable, "-W", "error", "-c", code], folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)", README))))
def test_links(target: str) -> None:
    assert (REPOSITORY / target).exists()
