"""A bundle and servers that the tests of the web face share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import cv2
import pytest

from bundles import make_bundle
from images import grey_levels
from pneumoscope.model.bundle import Bundle
from web_server import RunningServer, running_server


@pytest.fixture(scope="session")
def web_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    points = ({"name": "screening", "threshold": 0.0}, {"name": "rule-in", "threshold": 1.0})
    return make_bundle(
        tmp_path_factory.mktemp("web") / "bundle",
        operating_points=points,
        default_operating_point="screening",
        conformal=(0.0, 0.0, 0.0),
    )


@pytest.fixture(scope="session")
def server(web_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One with short times, so that what is slow ends soon."""
    limits = {
        "head_timeout": 2,
        "idle_timeout": 2,
        "body_timeout": 8,
        "job_timeout": 20,
        "max_file_bytes": 3_000_000,
        "max_request_bytes": 5_000_000,
        "max_files": 8,
        "max_connections": 60,
    }
    with running_server(web_bundle.path, tmp_path_factory.mktemp("served"), **limits) as running:
        yield running


@pytest.fixture
def png() -> bytes:
    return cv2.imencode(".png", grey_levels())[1].tobytes()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that browsers may visit."""
    from page_driver import POINTS, serving

    folder = tmp_path_factory.mktemp("page") / "bundle"
    # Of the random networks, one that finds evidence, so that there is a heat map to look at.
    bundle = make_bundle(folder, seed=4, operating_points=POINTS, default_operating_point="low")
    with serving(bundle.path) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, or a skip that says how to get it."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("the browser tests need Chromium: install the package chromium")
    flags = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any, site: str) -> Iterator[Any]:
    """Give a function that opens the page; at the end no page had an error or called elsewhere."""
    from page_driver import watched_pages

    with watched_pages(browser, site) as opener:
        yield opener
