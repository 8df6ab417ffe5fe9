"""`make setup` on an index of empty packages, and `make demo` on a few X-rays."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PINS = dict(
    line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line
)
CUDA_BYTES = 3_000_000

pytestmark = pytest.mark.timeout(600)


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    quiet = {"MAKEFLAGS": "--no-print-directory", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(
        ["make", *words],
        cwd=REPOSITORY,
        env=os.environ | quiet | environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )


def wheel(
    folder: Path, name: str, version: str, needs: list[str] = (), extras: str = "", size: int = 0
) -> None:
    """Write a package that holds nothing but its description, and so many bytes."""
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata += [f"Provides-Extra: {extras}"] if extras else []
    metadata += [f"Requires-Dist: {need}" for need in needs]
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as file:
        file.writestr(f"{stem}.dist-info/METADATA", "\n".join(metadata) + "\n")
        file.writestr(
            f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{stem.partition('-')[0]}_data.bin", b"\0" * size)
        file.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of empty packages: a project whose torch is as on PyPI, with CUDA."""
    folder = tmp_path_factory.mktemp("index")
    wheel(folder, "numpy", PINS["numpy"])
    wheel(folder, "torch", PINS["torch"], ["nvidia-cublas"])
    wheel(folder, "torchvision", PINS["torchvision"], [f"torch=={PINS['torch']}"])
    wheel(folder, "nvidia-cublas", "13.1", size=CUDA_BYTES)
    needs = [f'{name}; extra == "dev"' for name in ("numpy", "torch", "torchvision")]
    wheel(folder, "pneumoscope", "1.0", needs, "dev")
    return folder


@pytest.fixture(scope="module")
def cpu_builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpu")
    wheel(folder, "torch", f"{PINS['torch']}+cpu")
    wheel(folder, "torchvision", f"{PINS['torchvision']}+cpu", [f"torch=={PINS['torch']}"])
    return folder


def setup(index: Path, venv: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(
        *("setup", f"VENV={venv}", f"PYTHON={sys.executable}", "WHAT=pneumoscope[dev]", *words),
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(index),
        PIP_EXTRA_INDEX_URL="",
        PIP_CONFIG_FILE=os.devnull,
    )


def installed(venv: Path) -> dict[str, str]:
    listed = subprocess.run(
        [venv / "bin" / "python", "-m", "pip", "list", "--format", "freeze"],
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("==") for line in listed.stdout.split())


def test_setup_says_how_much_it_downloads_before_it_does(index: Path, tmp_path: Path) -> None:
    done = setup(index, tmp_path / "venv")
    assert done.returncode == 0, done.stderr
    said = done.stdout.index("5 packages, ")
    assert said < done.stdout.index("Installing collected packages")
    total = re.search(r"packages, ([\d,]+) MB to download\n +(\d+) MB  (\S+)", done.stdout)
    assert total is not None
    assert total.groups() == ("3", "3", "nvidia-cublas")
    assert installed(tmp_path / "venv")["torch"] == PINS["torch"]


@pytest.mark.skipif(sys.platform != "linux", reason="torch comes with CUDA on Linux only")
def test_setup_for_the_cpu_installs_no_cuda(index: Path, cpu_builds: Path, tmp_path: Path) -> None:
    done = setup(index, tmp_path / "venv", "CPU=1", f"TORCH_INDEX={cpu_builds}")
    assert done.returncode == 0, done.stderr
    packages = installed(tmp_path / "venv")
    assert packages["torch"] == f"{PINS['torch']}+cpu"
    assert packages["torchvision"] == f"{PINS['torchvision']}+cpu"
    assert not [name for name in packages if name.startswith(("nvidia", "cuda", "triton"))]
    assert "0 MB to download" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="torch comes with CUDA on Linux only")
def test_setup_for_the_cpu_stops_where_there_is_no_build_for_it(index: Path, tmp_path: Path) -> None:
    done = setup(index, tmp_path / "venv", "CPU=1")
    assert done.returncode != 0
    assert "no torch for the CPU was found: make setup CPU=1 TORCH_INDEX=" in done.stderr
    assert "Installing collected packages" not in done.stdout
    assert not (tmp_path / "venv" / ".installed").exists(), "the next call tries again"


def test_an_address_is_an_index_and_a_folder_is_not(tmp_path: Path) -> None:
    for index, option in (("https://example.org/cpu", "--extra-index-url"), ("/wheels", "--find-links")):
        done = run("--dry-run", "--always-make", "setup", "CPU=1", f"TORCH_INDEX={index}")
        assert done.stdout.count(f"{option} '{index}'") == 2


def plan(path: Path, *packages: tuple[str, Path | str]) -> Path:
    report = {
        "install": [
            {
                "metadata": {"name": name, "version": "1"},
                "download_info": {
                    "url": file if isinstance(file, str) else file.as_uri(),
                    "archive_info": {},
                },
            }
            for name, file in packages
        ]
    }
    path.write_text(json.dumps(report))
    return path


def say(*words: Path | str) -> subprocess.CompletedProcess[str]:
    script = REPOSITORY / "tools" / "install_plan.py"
    return subprocess.run(
        [sys.executable, "-I", script, *words], capture_output=True, text=True, timeout=60, check=False
    )


def test_cuda_in_a_plan_stops_a_setup_for_the_cpu(tmp_path: Path) -> None:
    (tmp_path / "some file.whl").write_bytes(b"\0" * 2_000_000)
    report = plan(
        tmp_path / "plan.json", ("numpy", tmp_path / "some file.whl"), ("triton", tmp_path / "absent")
    )
    done = say(report, "--write", tmp_path / "plan.txt")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "2 packages, 2 MB to download and 1 packages of unknown size"
    assert (tmp_path / "plan.txt").read_text() == "numpy==1\ntriton==1\n"
    (tmp_path / "plan.txt").unlink()
    stopped = say(report, "--no-cuda", "--write", tmp_path / "plan.txt")
    assert stopped.returncode == 1
    assert stopped.stderr == "stopped: CUDA would be downloaded (triton)\n"
    assert not (tmp_path / "plan.txt").exists()


def test_a_server_that_is_not_reached_is_no_failure(tmp_path: Path) -> None:
    done = say(plan(tmp_path / "plan.json", ("numpy", "http://127.0.0.1:9/numpy.whl")))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "1 packages, 0 MB to download and 1 packages of unknown size\n"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Run `make demo` on the X-rays of the repository, on few of them, for one epoch of a small network."""
    folder = tmp_path_factory.mktemp("make") / "demo"
    # The virtual environment of this run takes the place of .venv.
    done = run(
        *("--assume-old=.venv/.installed", "demo", f"BIN={BIN}", f"DEMO={folder}"),
        *("RECIPE=custom-cnn", "DEMO_TRAIN=--epochs 1 --limit 40 --size 64"),
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, folder


@pytest.mark.slow
def test_demo_prints_what_to_believe_it_by(demo: tuple[str, Path]) -> None:
    output, folder = demo
    with (folder / "split.csv").open(encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    patients = {
        part: {one["patient_id"] for one in records if one["split"] == part} for part in ("train", "test")
    }
    assert not patients["train"] & patients["test"]
    assert Counter(one["label"] for one in records) == {"normal": 200, "bacterial": 200, "viral": 200}
    for part, members in patients.items():
        assert re.search(rf"^{part}\s+{len(members)}\s", output, re.MULTILINE), "patients of each part"
    assert len(re.findall(r"^AUROC\b.* \d\.\d+ \[\d\.\d+, \d\.\d+\]", output, re.MULTILINE)) == 2, (
        "with intervals"
    )
    assert "data fetch kermany kermany" in output
    assert "make demo DATA=kermany" in output


@pytest.mark.slow
def test_demo_writes_what_it_says(demo: tuple[str, Path]) -> None:
    output, folder = demo
    reports = re.findall(r"^Report .*?: +(.*)$", output, re.MULTILINE)
    assert len(reports) == 3
    assert all("<html" in Path(report).read_text(encoding="utf-8") for report in reports)
    with (folder / "predictions.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 8
    assert len(list((folder / "heatmaps").glob("*.png"))) == 8


def test_a_folder_with_the_word_phantoms_in_its_name_is_no_order_to_draw(tmp_path: Path) -> None:
    words = ("--dry-run", "--assume-old=.venv/.installed", "demo", f"DEMO={tmp_path}")
    assert "data phantom" in run(*words, "DATA=phantoms").stdout
    assert "data phantom" not in run(*words, "DATA=my phantoms").stdout


def test_node_demo_sends_the_x_rays_of_the_repository_unless_others_are_named(tmp_path: Path) -> None:
    def sent(*more: str, data: Path | str = "") -> str:
        words = ("--dry-run", "--assume-old=.venv/.installed", "node-demo", *more)
        done = run(*words, PNEUMOSCOPE_DATA=str(data), XRAYS="")
        return re.findall(r"node_demo.py '(.*)'$", done.stdout, re.MULTILINE)[0]

    assert sent() == "data/xrays-sample"
    assert (REPOSITORY / "data" / "xrays-sample").is_dir()
    assert sent(data=tmp_path) == "data/xrays-sample", "a folder of data without them"
    (tmp_path / "kermany-original").mkdir()
    assert sent(data=tmp_path) == str(tmp_path / "kermany-original")
    assert sent(f"XRAYS={tmp_path}", data=tmp_path) == str(tmp_path)


def test_bundle_asks_for_its_folders_before_anything_is_done(tmp_path: Path) -> None:
    done = run("--assume-old=.venv/.installed", "bundle", "XRAYS=", "MASKS=", f"MADE={tmp_path}/made")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "make bundle XRAYS=folder MASKS=folder"
    assert not (tmp_path / "made").exists()


def test_bundle_goes_on_where_images_were_left_out_and_keeps_what_it_cannot_replace(tmp_path: Path) -> None:
    words = ("--dry-run", "--assume-old=.venv/.installed", "bundle", f"MADE={tmp_path}")
    done = run(*words, "XRAYS=x", "MASKS=m", "NIH=n", "ADULTS=a", "NOT_CHEST=c", "UNKNOWN=u")
    assert done.returncode == 0, done.stderr
    commands = done.stdout.replace("\\\n", "").splitlines()
    steps = [one for one in commands if re.search(r"pneumoscope (data|train(-lungs)?|evaluate) ", one)]
    assert len(steps) == 12
    assert all(one.endswith("|| [ $? -eq 3 ]") for one in steps)  # the exit code of images left out
    signed, *others = [one for one in commands if " evaluate " in one]
    assert "--sign" in signed
    assert all("--add-to-card" in one for one in others), "the card names every set"
    export = next(number for number, one in enumerate(commands) if "pneumoscope export" in one)
    removal = commands.index("rm -rf src/pneumoscope/bundles/default")
    assert export < removal


@pytest.mark.long
def test_demo_on_phantoms(tmp_path: Path) -> None:
    done = run(
        *("--assume-old=.venv/.installed", "demo", "DATA=phantoms", f"BIN={BIN}", f"DEMO={tmp_path}/demo"),
        *("PHANTOMS=45", "NEW_PHANTOMS=6", "DEMO_TRAIN=--epochs 1"),
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    assert "nothing about real X-rays" in done.stdout
    with (tmp_path / "demo" / "predictions.csv").open(encoding="utf-8") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["ok"] * 6
