"""Fixtures that every room shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real X-rays, or a skip that says how to give it."""
    folder = os.environ.get("PNEUMOSCOPE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real X-rays are absent: set PNEUMOSCOPE_DATA to their folder")
    return Path(folder)
