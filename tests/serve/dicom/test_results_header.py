"""Patient and study go from an image into its results byte by byte, whatever the characters."""

from __future__ import annotations

import importlib.resources
import io
import json
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from pneumoscope.errors import DataError, UnreadableImageError
from pneumoscope.image.decode import DEFAULT_LIMITS
from pneumoscope.image.dicom import lenient_pydicom, read_header
from pneumoscope.image.limits import Limits
from pneumoscope.serve.dicom.header import COPIED, TYPE_2, copy_header, encode, required_uid
from results_of_studies import as_file, header

# As the character sets have them; the names are those of PS3.5 H, I and K.
NAMES = {
    "ISO_IR 192": "Wang^XiaoDong=\u738b^\u5c0f\u6771",
    "ISO_IR 100": "Buc^J\u00e9r\u00f4me",
    "ISO_IR 13": "\uff94\uff8f\uff80\uff9e^\uff80\uff9b\uff73",
    "ISO_IR 166": "\u0e2a\u0e21\u0e0a\u0e32\u0e22",
    "GB18030": "Wang^XiaoDong=\u738b^\u5c0f\u4e1c",
}
JAPANESE = b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B "


def target() -> Dataset:
    """Return an object without patient and study."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.34", "1.2.3.4"
    dataset.SeriesDescription = "AI result"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def copied(data: bytes) -> Dataset:
    """Return an object with the patient and study of a file, read again."""
    made = target()
    copy_header(read_header("image", data, DEFAULT_LIMITS), made)
    with lenient_pydicom():
        return pydicom.dcmread(io.BytesIO(encode(made)))


def raw(dataset: Dataset, keyword: str) -> bytes:
    """Return the bytes of an element, without padding."""
    value: Any = dataset.get_item(keyword).value
    value = value.encode() if isinstance(value, str) else value
    return (value or b"").rstrip(b" \0")


@pytest.mark.parametrize("charset", NAMES)
def test_names_of_every_character_set_are_copied(charset):
    data = as_file(header(SpecificCharacterSet=charset, PatientName=NAMES[charset]))
    result = copied(data)
    assert result.SpecificCharacterSet == charset
    assert str(result.PatientName) == NAMES[charset]
    assert raw(result, "PatientID") == b"P-17"


@pytest.mark.parametrize("charset", [["", "ISO 2022 IR 87"], ["ISO 2022 IR 13", "ISO 2022 IR 87"]])
def test_japanese_names_keep_their_escape_sequences(charset):
    plain = as_file(header(PatientName="N" * len(JAPANESE), SpecificCharacterSet=charset))
    result = copied(plain.replace(b"N" * len(JAPANESE), JAPANESE))
    assert list(result.SpecificCharacterSet) == charset
    assert raw(result, "PatientName") == JAPANESE.rstrip()
    assert str(result.PatientName).split("=")[1] == "\u5c71\u7530^\u592a\u90ce"


@settings(max_examples=60)
@given(
    name=st.binary(min_size=1, max_size=90).filter(lambda value: value.rstrip(b" \0") == value),
    charset=st.sampled_from(["ISO_IR 100", "ISO_IR 192", "ISO_IR 13", "\\ISO 2022 IR 87", "UNKNOWN", None]),
    syntax=st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]),
)
def test_any_bytes_of_a_name_are_copied(name, charset, syntax):
    size = len(name) + len(name) % 2
    held = header(SpecificCharacterSet="ISO_IR 100", PatientName="N" * size)
    charset_bytes = b"ISO_IR 100"
    data = as_file(held, syntax).replace(b"N" * size, name.ljust(size))
    if charset is None or charset == "UNKNOWN":
        data = data.replace(charset_bytes, b"UNKNOWN   ")
    elif len(charset) <= 10:
        data = data.replace(charset_bytes, charset.encode().ljust(10))
    assert raw(copied(data), "PatientName") == name


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_kind_of_element_is_copied_from_every_byte_order(syntax):
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "36554-4", "LN", "XR Chest Single view"
    issuer = Dataset()
    issuer.PatientID, issuer.IssuerOfPatientID = "X-9", "Praxis M\u00fcller"
    result = copied(
        as_file(
            header(
                PregnancyStatus=4,
                LongitudinalTemporalOffsetFromEvent=12.5,
                OtherPatientNames=["A^B", "C^D"],
                PatientWeight="71.5",
                ProcedureCodeSequence=[code],
                OtherPatientIDsSequence=[issuer],
                StudyDescription="X" * 200,
            ),
            syntax,
        )
    )
    assert result.PregnancyStatus == 4
    assert result.LongitudinalTemporalOffsetFromEvent == 12.5
    assert list(result.OtherPatientNames) == ["A^B", "C^D"]
    assert str(result.PatientWeight) == "71.5"
    assert result.ProcedureCodeSequence[0].CodeMeaning == "XR Chest Single view"
    assert result.OtherPatientIDsSequence[0].IssuerOfPatientID == "Praxis M\u00fcller"
    assert raw(result, "StudyDescription") == b"X" * 200


def test_all_attributes_of_the_modules_are_copied():
    """Those that highdicom knows; the page on DICOM results says so."""
    table = importlib.resources.files("highdicom") / "_standard" / "module_attribute_map.json"
    modules = json.loads(table.read_text("utf-8"))
    names = ("patient", "clinical-trial-subject", "general-study", "patient-study", "clinical-trial-study")
    attributes = {one["keyword"] for name in names for one in modules[name] if not one["path"]}
    assert attributes - set(COPIED) == set()


def test_missing_type_2_attributes_are_there_without_a_value():
    result = copied(as_file(header(**dict.fromkeys(TYPE_2))))
    for keyword in TYPE_2:
        assert keyword in result and raw(result, keyword) == b""


def test_nothing_of_the_image_itself_is_copied():
    result = copied(as_file(header(InstitutionName="St. Elsewhere", StationName="CR1")))
    assert "StationName" not in result and "InstitutionName" not in result and "Rows" not in result
    assert result.SeriesDescription == "AI result"
    assert result.SOPInstanceUID == "1.2.3.4"


def test_what_the_object_had_before_is_replaced():
    made = target()
    made.PatientName, made.PatientComments = "Somebody^Else", "of another patient"
    copy_header(read_header("image", as_file(header()), DEFAULT_LIMITS), made)
    assert str(made.PatientName) == "M\u00fcller^J\u00fcrgen" and "PatientComments" not in made


def test_a_sequence_that_cannot_be_parsed_is_left_out():
    inner = Dataset()
    inner.CodeValue = "QQQQQQQQ"
    data = as_file(header(ProcedureCodeSequence=[inner], PatientAge="070Y"))
    broken = data.replace(b"SH\x08\0QQQQQQQQ", b"SH\xff\x7fQQQQQQQQ")
    assert broken != data
    result = copied(broken)
    assert str(result.PatientName) == "M\u00fcller^J\u00fcrgen"


def test_real_headers_are_copied(dicom_files: list[Path]):
    for path in dicom_files:
        result, original = copied(path.read_bytes()), pydicom.dcmread(path, force=True)
        for keyword in COPIED[1:]:
            if keyword in original and not keyword.endswith("Sequence"):
                assert raw(result, keyword) == raw(original, keyword), (path, keyword)


@pytest.mark.parametrize("uid", ["", "1.2.x", "../../etc/passwd", "1" * 65, None])
def test_a_uid_that_no_result_can_be_filed_with_is_an_error(uid):
    dataset = Dataset()
    if uid is not None:
        with pydicom.config.disable_value_validation():
            dataset.StudyInstanceUID = uid
    with pytest.raises(DataError, match="no valid StudyInstanceUID"):
        required_uid(dataset, "StudyInstanceUID", "image 1")


def test_read_header_reads_files_and_bytes_up_to_the_pixels(tmp_path: Path):
    data = as_file(header(PixelData=b"\0" * 400))
    path = tmp_path / "image.dcm"
    path.write_bytes(data)
    for source in (path, data):
        assert "PixelData" not in read_header("image", source, DEFAULT_LIMITS)


def test_read_header_limits_what_a_deflated_file_inflates_to():
    bomb = as_file(header(PatientComments="x" * 60_000), DeflatedExplicitVRLittleEndian)
    assert len(bomb) < 5_000
    with pytest.raises(UnreadableImageError):
        read_header("image", bomb, Limits(max_bytes=20_000))
    assert read_header("image", bomb, DEFAULT_LIMITS).PatientID == "P-17"


@settings(max_examples=80)
@given(st.binary(max_size=300))
def test_read_header_reads_any_bytes_or_says_that_it_cannot(data):
    try:
        read_header("image", data, DEFAULT_LIMITS)
    except UnreadableImageError as error:
        assert str(error).startswith("image: ")
