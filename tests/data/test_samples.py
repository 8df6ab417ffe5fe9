"""The samples that ship: real, small, of known source, and written out as they are."""

from __future__ import annotations

import csv
import hashlib
import shutil

import numpy as np
import pydicom
import pytest

from pneumoscope.data.samples import SAMPLES_TABLE, read_samples, samples_folder, write_samples
from pneumoscope.errors import DataError
from pneumoscope.image.decode import read_radiograph

CHILD = ("normal", "bacterial", "viral")
FREE = {"CC BY 4.0"}


@pytest.fixture(scope="module")
def samples():
    return {sample.path: sample for sample in read_samples()}


def test_there_are_eight_and_no_other_files(samples):
    assert len(samples) == 8
    assert {path.name for path in samples_folder().iterdir()} == {*samples, SAMPLES_TABLE}


def test_they_are_within_a_megabyte():
    assert sum(path.stat().st_size for path in samples_folder().iterdir()) < 1e6


def test_each_class_and_each_kind_is_there(samples):
    labels = [sample.label for sample in samples.values()]
    assert set(labels) == {*CHILD, "shoulder", "hand"}
    assert {read_radiograph(samples_folder() / path).format for path in samples} == {"jpeg", "dicom"}


def test_all_say_where_they_are_from_and_under_which_licence(samples):
    for sample in samples.values():
        assert all((sample.content, sample.source, sample.licence, sample.attribution, sample.patient_id))
        assert sample.licence in FREE


def test_the_inverted_one_is_bright_where_the_others_are_dark(samples):
    def corner(path):
        return float(np.median(read_radiograph(samples_folder() / path).pixels[:40, :40]))

    assert corner("inverted.jpeg") > 0.5 > corner("normal.jpeg")


def test_the_dicom_file_is_a_whole_computed_radiography_image():
    image = pydicom.dcmread(samples_folder() / "child.dcm")
    assert image.SOPClassUID.name == "Computed Radiography Image Storage"
    assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
    # Type 1 and 2 attributes of the modules of the IOD, PS3.3 A.2.3; type 2 ones may be empty.
    for keyword in (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
        *("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID"),
        *("AccessionNumber", "Modality", "SeriesInstanceUID", "SeriesNumber", "Manufacturer"),
        *("BodyPartExamined", "ViewPosition", "InstanceNumber", "PatientOrientation", "KVP"),
        *("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated"),
        *("BitsStored", "HighBit", "PixelRepresentation", "PixelData", "LossyImageCompression"),
    ):
        assert keyword in image, keyword
    assert image.pixel_array.shape == (image.Rows, image.Columns)
    assert (image.PatientIdentityRemoved, image.Modality, image.ViewPosition) == ("YES", "CR", "AP")


def test_written_files_are_those_of_the_package(tmp_path):
    written = write_samples(tmp_path / "new" / "samples")
    assert written == read_samples(tmp_path / "new" / "samples") == read_samples()
    for path in samples_folder().iterdir():
        copy = tmp_path / "new" / "samples" / path.name
        assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(path.read_bytes()).digest()
    write_samples(tmp_path / "new" / "samples")  # once more is no error


def test_another_file_of_the_name_is_not_overwritten(tmp_path):
    (tmp_path / "normal.jpeg").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"normal\.jpeg: is another file of that name"):
        write_samples(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["normal.jpeg"], "nothing is half written"


def test_samples_of_an_earlier_version_are_replaced(tmp_path):
    write_samples(tmp_path)
    table = (tmp_path / SAMPLES_TABLE).read_text()
    (tmp_path / SAMPLES_TABLE).write_text(table.replace("normal", "other"))
    (tmp_path / "hand.jpeg").write_bytes(b"another hand")
    write_samples(tmp_path)
    assert (tmp_path / SAMPLES_TABLE).read_text() == table
    assert (tmp_path / "hand.jpeg").read_bytes() == (samples_folder() / "hand.jpeg").read_bytes()


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: cannot write there"):
        write_samples(tmp_path / "file")


def test_a_folder_that_lacks_an_image_is_reported(tmp_path):
    write_samples(tmp_path)
    (tmp_path / "hand.jpeg").unlink()
    with pytest.raises(DataError, match=r"samples\.csv: lists hand\.jpeg, which is absent"):
        read_samples(tmp_path)


def test_a_table_without_a_column_is_reported(tmp_path):
    shutil.copytree(samples_folder(), tmp_path / "s")
    with (tmp_path / "s" / SAMPLES_TABLE).open("w", newline="") as file:
        csv.writer(file).writerow(["path", "label"])
    with pytest.raises(DataError, match="licence"):
        read_samples(tmp_path / "s")
