"""The base install, in an empty virtual environment: small, without the training stack, and it predicts."""

from __future__ import annotations

import csv
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from pneumoscope.data.phantom import write_phantoms

REPOSITORY = Path(__file__).parents[1]
MAX_MEGABYTES = 450
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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # In isolated mode for Python itself: nothing of this checkout may leak in.
    return subprocess.run(list(arguments), capture_output=True, text=True, timeout=540, check=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an environment that holds `pip install .` and nothing else; return its folder."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    quick = ("--retries", "0", "--timeout", "10")
    probe = run(
        *pip, "download", "--no-deps", *quick, "--dest", tmp_path_factory.mktemp("probe"), "hatchling"
    )
    if probe.returncode != 0:
        pytest.skip("pip reaches no package index, and an install into an empty environment needs one")
    folder = tmp_path_factory.mktemp("base") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    done = run(
        *pip, "--python", python, "install", "--constraint", REPOSITORY / "constraints.txt", REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_size(base: Path) -> None:
    files = [path for path in base.rglob("*") if path.is_file() and not path.is_symlink()]
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    assert megabytes < MAX_MEGABYTES


def test_no_training_stack(base: Path) -> None:
    look = f"import importlib.util as u; print([n for n in {NOT_IN_BASE!r} if u.find_spec(n)])"
    done = run(base / "bin" / "python", "-I", "-c", look)
    assert done.stdout.strip() == "[]", done.stderr


def test_predicts_with_the_shipped_bundle(base: Path, tmp_path: Path) -> None:
    manifest = write_phantoms(tmp_path / "phantoms", n=3, seed=5)
    images = [str(manifest.resolve(record)) for record in manifest.records]
    out = tmp_path / "predictions.csv"
    # Phantoms are no X-rays: --force, so that the gate does not reject them.
    done = run(base / "bin" / "pneumoscope", "predict", *images, "--force", "--out", out)
    assert done.returncode == 0, done.stderr
    with out.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == images
    for row in rows:
        assert 0 <= float(row["p_pneumonia"]) <= 1
        assert row["decision"] in {"pneumonia", "no pneumonia"}


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
    words = [str(tmp_path / "phantoms") if word == "phantoms" else word for word in command.split()]
    done = subprocess.run(
        [base / "bin" / "pneumoscope", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 4
    *progress, line = done.stderr.strip().splitlines()
    assert len(progress) <= 2, "steps, and no traceback"
    assert line.startswith("error: ")
    assert "pip install 'pneumoscope[" in line
