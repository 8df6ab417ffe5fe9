"""How long the fault tests run: short in the suite, long by ``make faults``."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from bundles import make_bundle
from log_scan import final_scan, scanned_logs  # noqa: F401
from pneumoscope.model.bundle import Bundle

pytest.importorskip(
    "pynetdicom", reason="the DICOM node needs more packages: in a clone, pip install '.[dicom]'"
)

LONG = os.environ.get("PNEUMOSCOPE_FAULTS") == "long"


@dataclass(frozen=True)
class Size:
    """How much is done; the seed of everything random."""

    kills: int
    instances: int
    datasets: int
    associations: int
    seed: int = 20261125


@pytest.fixture(scope="session")
def size() -> Size:
    short = Size(kills=1, instances=12, datasets=40, associations=40)
    long = Size(kills=200, instances=2000, datasets=10_000, associations=5_000)
    given = {
        name: int(os.environ[f"PNEUMOSCOPE_FAULTS_{name.upper()}"])
        for name in ("kills", "instances", "datasets", "associations", "seed")
        if f"PNEUMOSCOPE_FAULTS_{name.upper()}" in os.environ
    }
    return Size(**(vars(long if LONG else short) | given))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("faults") / "bundle")


@pytest.fixture(scope="session")
def record():
    """Return a function that notes what was measured, where PNEUMOSCOPE_FAULTS_OUT names a file."""

    def note(name: str, **values: object) -> None:
        out = os.environ.get("PNEUMOSCOPE_FAULTS_OUT")
        if out:
            with Path(out).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"test": name, **values}) + "\n")

    return note


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "faults" in Path(str(item.path)).parts:
            item.add_marker(pytest.mark.timeout(7200 if LONG else 300))
