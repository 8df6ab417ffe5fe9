"""Labelled images through the network: what is known of each is what prediction uses."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pydicom
import pytest

from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.evaluation.observe import Observed, observe
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
    # The record keeps what is stated; the population is chosen by the estimate, as in prediction.
    (estimate,) = (one.estimated_view for one in predictor.scores_iter(tmp_path / "viral.jpeg"))
    assert estimate in {"AP", "PA"}
    assert found.views == ("AP", "PA", estimate)
    assert found.of_images(np.array([0, 2])).views == ("AP", estimate)


def test_views_without_estimates_are_the_stated_ones(predictor):
    records = (Record("a.png", "normal", "a", view="PA"), Record("b.png", "viral", "b"))
    manifest = predictor.bundle.manifest
    known = np.eye(len(manifest.classes), dtype=bool)[:2]
    names, target = manifest.classes, manifest.target
    found = Observed(np.zeros(known.shape), names, target, known, np.arange(2), records, (None, None))
    assert found.views == ("PA", "unknown")
    assert found.of_images(np.array([1])).views == ("unknown",)
