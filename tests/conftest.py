"""Fixtures and settings that all tests share."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A busy machine is slow now and then; that is no fault of the code.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

# Workers that run side by side have a processor each: more threads would only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what is slow first, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Spare the garbage collector the modules that the tests have imported, which stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real X-rays, or a skip that says how to give it."""
    folder = os.environ.get("PNEUMOSCOPE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real X-rays are absent: set PNEUMOSCOPE_DATA to their folder")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep prepared images out of the user's own cache."""
    os.environ["PNEUMOSCOPE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _operators_of_the_exporter_are_read_once() -> None:
    """Keep the ONNX exporter's table of operators, which takes a second to read, for all exports."""
    if "pneumoscope.training.onnx_export" not in sys.modules:  # nothing of these tests exports
        return
    registration = importlib.import_module("torch.onnx._internal.exporter._registration")
    read = functools.cache(registration.ONNXRegistry.from_torchlib)
    registration.ONNXRegistry.from_torchlib = staticmethod(read)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, or a skip that names the package."""
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("the browser tests need Chromium: install the package chromium")
    flags = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=flags)
        yield chromium
        chromium.close()
