"""The engine that the tests of training share."""

from __future__ import annotations

import pytest

from pneumoscope.training.processes import make_fabric


@pytest.fixture(scope="session")
def fabric():
    return make_fabric("cpu")
