"""Fixtures of the tests of the DICOM node."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundles import make_bundle
from log_scan import final_scan, scanned_logs  # noqa: F401
from pneumoscope.domain import CodedConcept, Estimate, OperatingPoint, Population, Target
from pneumoscope.model.bundle import Bundle
from pneumoscope.predict.predictor import Predictor
from pneumoscope.serve.dicom.config import Limits
from pneumoscope.serve.dicom.file_intake import FileIntake
from pneumoscope.serve.dicom.intake import Intake
from pneumoscope.serve.dicom.journal import Journal
from pneumoscope.serve.dicom.store import Store
from pneumoscope.serve.workers.pool import WorkerPool

pytest.importorskip(
    "highdicom", reason="the DICOM node needs more packages: in a clone, pip install '.[dicom]'"
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that states everything a report can say of it."""
    point = OperatingPoint(
        "balanced",
        0.5,
        criterion="near the maximum of Youden's J",
        chosen_on="a validation split",
        sensitivity=Estimate(0.93),
        specificity=Estimate(0.91),
    )
    return make_bundle(
        tmp_path_factory.mktemp("dicom") / "bundle",
        target=Target("pneumonia", ("bacterial", "viral"), CodedConcept("233604007", "SCT", "Pneumonia")),
        calibration={"operating_points": (point,), "conformal": (0.1, 0.1, 0.1), "conformal_alpha": 0.1},
        validated=(Population("children", (1, 5), ("AP",), hospital="H\u00f4pital d'enfants"),),
    )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """The journal of a node whose folder is that of the test."""
    journal = Journal(tmp_path, create=True)
    yield journal
    journal.close()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """The event loop of the tests of one file."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def pool(loop: asyncio.Runner, tiny: Bundle) -> Iterator[WorkerPool]:
    """One confined worker for the tests of one file."""

    async def started() -> WorkerPool:
        pool = WorkerPool(tiny.path, workers=1, module="pneumoscope.serve.dicom.worker")
        await pool.start()
        return pool

    pool = loop.run(started())
    yield pool
    loop.run(pool.stop())


@pytest.fixture
def files(tmp_path: Path, pool: WorkerPool, journal: Journal) -> FileIntake:
    """An intake of files that may have 1 MB."""
    return FileIntake(Intake(Store(tmp_path), journal), pool, Limits(max_dataset_mb=1))


@pytest.fixture(scope="session")
def shipped() -> Predictor:
    """The bundle that ships with the package."""
    return Predictor.load(workers=1)


@pytest.fixture(scope="session")
def dicom_files(shared_data: Path) -> list[Path]:
    """The DICOM files of the shared data that are images with a study."""
    return [path for path in sorted((shared_data / "dicom").glob("*.dcm")) if path.stem != "not_dicom_html"]
