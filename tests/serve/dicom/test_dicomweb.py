from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.serve.dicom.dicomweb import dicom_parts


@given(st.lists(st.binary(max_size=60).filter(lambda part: b"--b" not in part), max_size=4))
def test_the_parts_of_a_multipart_body(parts):
    body = (
        b"".join(b"\r\n--b\r\nContent-Type: application/dicom\r\n\r\n" + part for part in parts)
        + b"\r\n--b--\r\n"
    )
    assert dicom_parts("multipart/related; boundary=b", body) == parts
    assert dicom_parts('Multipart/Related; boundary="b"', body.removeprefix(b"\r\n")) == parts


@given(st.text(max_size=60), st.binary(max_size=100))
def test_any_body_has_parts_or_none(content_type, body):
    assert isinstance(dicom_parts(content_type, body), list)
