"""A bundle and servers that the tests of the web face share."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import pytest

from bundles import make_bundle
from pictures import grey_levels
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
