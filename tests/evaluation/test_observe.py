"""Labelled images through the network: what is known of each is what prediction uses."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import pydicom
import pytest

from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.evaluation.observe import observe
from pneumoscope.predict.predictor import Predictor

SAMPLES = Path(str(resources.files("pneumoscope") / "samples"))


@pytest.fixture(scope="module")
def predictor():
    return Predictor.load(workers=1)


def test_age_and_view_are_those_of_the_header_else_of_the_manifest(predictor, tmp_path):
    header = pydicom.dcmread(SAMPLES / "child.dcm")
    header.PatientAge = "004Y"
    header.save_as(tmp_path / "child.dcm")
    for name in ("normal.jpeg", "viral.jpeg"):
        shutil.copy(SAMPLES / name, tmp_path)
    records = (
        Record("child.dcm", "bacterial", "a", age=70.0, view="PA"),
        Record("normal.jpeg", "normal", "b", age=40.0, view="PA"),
        Record("viral.jpeg", "viral", "c"),
    )
    found = observe(predictor, Manifest(records, tmp_path))
    assert [(one.age, one.view) for one in found.records] == [(4.0, "AP"), (40.0, "PA"), (None, "")]
    assert [one is None for one in found.estimated] == [True, True, False]
