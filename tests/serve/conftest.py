"""A bundle and an image that the tests of workers and servers share."""

from __future__ import annotations

import cv2
import pytest

from bundles import make_bundle
from images import grey_levels
from pneumoscope.domain import OperatingPoint
from pneumoscope.model.bundle import Bundle
from pneumoscope.model.manifest import Calibration


@pytest.fixture(scope="session")
def web_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    points = (OperatingPoint("screening", 0.0), OperatingPoint("rule-in", 1.0))
    return make_bundle(
        tmp_path_factory.mktemp("web") / "bundle",
        calibrations=(Calibration(operating_points=points, conformal=(0.0, 0.0, 0.0)),),
        default_operating_point="screening",
    )


@pytest.fixture
def png() -> bytes:
    return cv2.imencode(".png", grey_levels())[1].tobytes()
