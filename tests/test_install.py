"""The base install, in an empty virtual environment: small, without the training stack, and it predicts.

The commands are those of README and tutorial: the wheel is made with ``pip wheel`` and installed as a file.
``pip install .`` does the same in one step.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from pneumoscope.data.phantom import write_phantoms

REPOSITORY = Path(__file__).parents[1]
MAX_MEGABYTES = 450
BYTECODE_MEGABYTES = 45  # what pip compiles on installing, and this test leaves out to save time
MAX_WHEEL_MEGABYTES = 10  # the network is 7.9 of them
DEMO_SECONDS = 10  # of processor time
NOT_IN_BASE = (
    "torch",
    "timm",
    "lightning_fabric",
    "tensorboard",
    "scipy",
    "sklearn",
    "imagehash",
    "matplotlib",
    "pyarrow",
    "requests",
)
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(arguments), cwd=cwd, capture_output=True, text=True, timeout=540, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the wheel of this checkout; return its path."""
    quick = ("--retries", "0", "--timeout", "10")
    probe = run(
        *PIP, "download", "--no-deps", *quick, "--dest", tmp_path_factory.mktemp("probe"), "hatchling"
    )
    if probe.returncode != 0:
        pytest.skip("pip reaches no package index, and an install into an empty environment needs one")
    folder = tmp_path_factory.mktemp("dist")
    done = run(*PIP, "wheel", "--no-deps", "--wheel-dir", folder, ".", cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("pneumoscope-*-py3-none-any.whl")
    return made


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment that holds the wheel, what it needs and nothing else; return its folder."""
    folder = tmp_path_factory.mktemp("base") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pins = ("--no-compile", "--constraint", REPOSITORY / "constraints.txt")
    done = run(*PIP, "--python", python, "install", *pins, wheel)
    assert done.returncode == 0, done.stderr
    return folder


def test_wheel(wheel: Path) -> None:
    assert wheel.stat().st_size / 1e6 < MAX_WHEEL_MEGABYTES
    names = zipfile.ZipFile(wheel).namelist()
    assert {"pneumoscope/bundles/default/model.onnx", "pneumoscope/samples/samples.csv"} <= set(names)
    assert not [name for name in names if name.startswith(("data/", "tests/"))], "the training set stays out"


def test_size(base: Path) -> None:
    files = [path for path in base.rglob("*") if path.is_file() and not path.is_symlink()]
    sizes = [path.stat().st_size for path in files if path.suffix != ".pyc"]
    assert sum(sizes) / 1e6 + BYTECODE_MEGABYTES < MAX_MEGABYTES


def test_no_training_stack(base: Path) -> None:
    assert importlib.util.find_spec("torch"), "and this environment has it"
    look = f"import importlib.util as u; print([n for n in {NOT_IN_BASE!r} if u.find_spec(n)])"
    # In isolated mode: nothing of this checkout may leak in.
    done = run(base / "bin" / "python", "-I", "-c", look)
    assert done.stdout.strip() == "[]", done.stderr


def test_demo_predicts_with_the_shipped_bundle_and_is_quick(base: Path, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(base / "bin" / "pneumoscope", "demo", "--json", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["predictions"]
    assert len(rows) == 8
    assert {row["decision"] for row in rows if row["status"] == "ok"} == {"pneumonia", "no pneumonia"}
    assert all((tmp_path / row["heatmap"]).is_file() for row in rows)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < DEMO_SECONDS


@pytest.mark.parametrize(
    "command",
    [
        "train default --data phantoms --out run",
        "evaluate phantoms --out evaluated",
        "data fetch kermany xrays",
    ],
)
def test_a_missing_extra_is_one_line(base: Path, tmp_path: Path, command: str) -> None:
    write_phantoms(tmp_path / "phantoms", n=3, seed=5)
    done = run(base / "bin" / "pneumoscope", *command.split(), cwd=tmp_path)
    assert done.returncode == 4
    *progress, line = done.stderr.strip().splitlines()
    assert len(progress) <= 2, "steps, and no traceback"
    assert line.startswith("error: ")
    assert "pip install '.[" in line
