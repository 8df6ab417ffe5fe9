"""``kill -9`` of the driver and of workers, images that kill a worker, and SIGTERM: the rows stay the same.

`benchmarks/batch_faults.py` does this for hours.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
from pyarrow import dataset

from pneumoscope.model.bundle import load_bundle
from pneumoscope.serve.batch import run_batch

# Ray starts a process for each worker, which takes minutes on a busy machine.
pytestmark = pytest.mark.timeout(600)

IMAGES, PART = 60, 5

# Kills the process that decodes a file with this word in its name, as a fault in a codec would.
DEADLY = """
import importlib.abc, importlib.machinery, os, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "pneumoscope.predict.pipeline":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            read = module.read_radiograph
            def deadly(source, **options):
                if "deadly" in options["name"]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return read(source, **options)
            module.read_radiograph = deadly
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def link_samples(folder: Path, count: int) -> Path:
    """Fill a folder with links to the X-rays of the package."""
    samples = sorted(Path(str(resources.files("pneumoscope") / "samples")).glob("*.jpeg"))
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03}.jpeg").symlink_to(samples[number % len(samples)])
    return folder


@pytest.fixture(scope="module")
def xrays(tmp_path_factory) -> Path:
    return link_samples(tmp_path_factory.mktemp("kills") / "in", IMAGES)


@pytest.fixture(scope="module")
def unbroken(xrays, tmp_path_factory, ray_address) -> list[dict]:
    output = tmp_path_factory.mktemp("unbroken") / "out"
    assert run_batch(str(xrays), str(output), load_bundle(), part_size=PART).adds_up
    return rows_of(output)


def rows_of(output: Path) -> list[dict]:
    return sorted(dataset.dataset(output / "parts").to_table().to_pylist(), key=lambda row: row["id"])


def start(xrays: Path, output: Path, address: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pneumoscope", "batch", xrays, output, "--address", address]
    words = [*map(str, command), "--part-size", str(PART)]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ | environment)


def until(found: Callable[[], object], seconds: float = 200) -> object:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return value


def parts(output: Path) -> list[Path]:
    return list((output / "parts").glob("part-*"))


def test_a_driver_that_is_killed_continues(xrays, unbroken, ray_address, tmp_path):
    output = tmp_path / "out"
    driver = start(xrays, output, ray_address)
    until(lambda: len(parts(output)) >= 2)
    driver.kill()
    driver.communicate()
    assert len(parts(output)) < IMAGES // PART
    driver = start(xrays, output, ray_address)
    _, err = driver.communicate(timeout=120)
    assert driver.returncode == 3
    assert "continuing: " in err
    assert "Traceback" not in err
    assert rows_of(output) == unbroken
    assert json.loads((output / "summary.json").read_text())["adds_up"] is True


@pytest.mark.long
def test_a_run_that_is_told_to_end_says_how_to_continue(xrays, unbroken, ray_address, tmp_path):
    output = tmp_path / "out"
    driver = start(xrays, output, ray_address)
    until(lambda: parts(output))
    driver.terminate()
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert f"interrupted; the same command continues, the finished parts are in {output}" in err
    assert run_batch(str(xrays), str(output), load_bundle()).adds_up
    assert rows_of(output) == unbroken


def test_workers_that_are_killed_are_replaced(xrays, unbroken, ray_address, tmp_path):
    output, killed = tmp_path / "out", set()

    def kill() -> None:
        while len(killed) < 3:
            for note in (output / "attempts").glob("*/*"):
                try:
                    number = json.loads(note.read_text())["pid"]
                except (OSError, ValueError):  # removed, or not written yet
                    continue
                if number not in killed:
                    killed.add(number)
                    os.kill(number, signal.SIGKILL)
                    break
            time.sleep(0.05)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = run_batch(str(xrays), str(output), load_bundle(), part_size=PART)
    assert len(killed) == 3
    assert summary.adds_up
    assert rows_of(output) == unbroken
    assert not (output / "attempts").exists()


@pytest.mark.long
def test_an_image_that_kills_its_worker_is_a_row(xrays, unbroken, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEADLY)
    source = link_samples(tmp_path / "in", PART * 2)
    (source / "003.jpeg").rename(source / "003-deadly.jpeg")
    search = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    driver = start(source, tmp_path / "out", "local", PYTHONPATH=search)
    _, err = driver.communicate(timeout=240)
    assert driver.returncode == 3, err
    rows = rows_of(tmp_path / "out")
    assert rows[3]["reasons"] == ["reader_stopped"]
    assert rows[3]["sha256"] == unbroken[3]["sha256"]
    columns = [name for name in rows[0] if name != "path"]
    for row, same in zip(rows, unbroken, strict=False):
        if row["id"] != 3:
            assert [row[name] for name in columns] == [same[name] for name in columns]
