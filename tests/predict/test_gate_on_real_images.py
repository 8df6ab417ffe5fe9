"""The shipped gate on real images: floors a little below what was measured."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from pneumoscope.errors import Reason
from pneumoscope.image.decode import read_radiograph
from pneumoscope.predict.gate import check_pixels, inverted
from pneumoscope.predict.predictor import Predictor


@pytest.fixture(scope="module")
def predictor():
    predictor = Predictor.load(workers=1)
    if predictor.bundle.gate_statistics is None:
        pytest.skip("the shipped bundle has no gate statistics")
    return predictor


def chests(shared_data):
    children = sorted((shared_data / "kermany-224").rglob("*.jpeg"))[::260]
    return children + sorted((shared_data / "nih-adult" / "images").iterdir())[::26]


def test_knees_and_photographs_are_rejected(predictor, shared_data):
    found = predictor.predict(sorted((shared_data / "not-chest").iterdir())[::3])
    assert np.mean([one.status == "rejected" for one in found]) >= 0.95


def test_other_images_are_rejected_without_their_headers(predictor, shared_data):
    for name in ("CT1_UNC.dcm", "MR1_UNC.dcm", "RG3_UNC.dcm", "US1_RLE.dcm", "GH133.dcm"):
        stated = read_radiograph(shared_data / "dicom" / name)
        silent = replace(stated, modality=None, body_part=None)
        (one,) = predictor.predict_radiographs([silent])
        assert one.status == "rejected", name


def test_chests_pass_and_inverted_grayscale_is_corrected(predictor, shared_data):
    images = [read_radiograph(path) for path in chests(shared_data)]
    given = predictor.predict_radiographs(images)
    corrected = predictor.predict_radiographs([inverted(image) for image in images])
    assert np.mean([one.status == "ok" for one in given]) >= 0.97
    assert not any(Reason.INVERTED in one.reasons for one in given)
    assert np.mean([Reason.INVERTED in one.reasons for one in corrected]) >= 0.95


def test_a_patient_outside_the_validated_ages_is_predicted_with_a_caution(predictor, shared_data):
    image = read_radiograph(chests(shared_data)[0])
    (child,) = predictor.predict_radiographs([replace(image, age=4.0)])
    assert (child.status, child.reasons) == ("ok", ())
    for age in (0.2, 9.0, 34.0):
        (one,) = predictor.predict_radiographs([replace(image, age=age)])
        assert (one.status, one.reasons) == ("ok", (Reason.POPULATION_NOT_VALIDATED,))
        assert "1 to 5 years" in one.message


def test_bad_exposures_and_halves_of_chests_are_rejected(predictor, shared_data):
    limits = predictor.bundle.manifest.gate
    halves = []
    for path in chests(shared_data)[::4]:
        image = read_radiograph(path)
        black, white = image.pixels * np.float32(0.05), np.minimum(image.pixels * 40, 1)
        assert check_pixels(replace(image, pixels=black), limits) == [Reason.OVER_EXPOSED]
        assert check_pixels(replace(image, pixels=white), limits) == [Reason.UNDER_EXPOSED]
        half = cv2.resize(image.pixels[:, : image.pixels.shape[1] // 2], image.pixels.shape[::-1])
        halves.append(replace(image, pixels=half))
    found = predictor.predict_radiographs(halves)
    assert np.mean([one.status == "rejected" for one in found]) >= 0.7
