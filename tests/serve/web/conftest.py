"""Servers that the tests of the web interface share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bundles import make_bundle
from pneumoscope.model.bundle import Bundle
from pneumoscope.model.manifest import Calibration
from web_server import RunningServer, running_server


@pytest.fixture(scope="session")
def server(web_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One with short time limits, so that tests of slow clients end soon."""
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


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that browsers may visit."""
    from page_driver import POINTS, serving

    folder = tmp_path_factory.mktemp("page") / "bundle"
    # Of the random networks, one that finds evidence, so that there is a heat map to look at.
    calibrations = (Calibration(operating_points=POINTS),)
    bundle = make_bundle(folder, seed=4, calibrations=calibrations, default_operating_point="low")
    with serving(bundle.path) as address:
        yield address


@pytest.fixture
def open_page(browser: Any, site: str) -> Iterator[Any]:
    """Give a function that opens the page; at the end no page had an error or called another server."""
    from page_driver import watched_pages

    with watched_pages(browser, site) as opener:
        yield opener
