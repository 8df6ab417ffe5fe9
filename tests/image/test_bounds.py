"""What a small file can make a reader hold: its size bounds neither its tags nor what it inflates to."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_files import COLUMNS, dicom, ramp
from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.decode import Limits, read_radiograph
from pneumoscope.image.dicom import read_header, read_patient
from pneumoscope.image.tiff import MAX_VALUES

WIDTH, HEIGHT, SAMPLES, STRIPS, STRIP_BYTES, TILE_WIDTH = 256, 257, 277, 273, 279, 322
BYTE, SHORT, LONG, SIGNED_SHORT, SIGNED_LONG = 1, 3, 4, 8, 9


def reason_of(data: bytes, **options: Any) -> Reason:
    with pytest.raises(UnreadableImageError) as caught:
        read_radiograph(data, **options)
    return caught.value.reason


def traced(action: Callable[[], Any]) -> tuple[Any, int]:
    """Return what an action returns and the most memory, in bytes, that it held at a time."""
    tracemalloc.start()
    try:
        return action(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


SQUARE = (np.arange(64 * 64) % 251).astype(np.uint8).reshape(64, 64)


def tiff(
    *entries: tuple[int, int, int, int | None], behind: bytes = b"", without: tuple[int, ...] = ()
) -> bytes:
    """Write a TIFF; entries are tag, type, count and value, where None is the place of bytes at its end."""
    plain = [(WIDTH, SHORT, 1, 64), (HEIGHT, SHORT, 1, 64), (258, SHORT, 1, 8), (259, SHORT, 1, 1)]
    plain += [(262, SHORT, 1, 1), (SAMPLES, SHORT, 1, 1), (278, SHORT, 1, 64), (STRIP_BYTES, LONG, 1, 4096)]
    every = [*entries, *(entry for entry in plain if entry[0] not in without)]
    start = 8 + 2 + 12 * (len(every) + 1) + 4
    directory = struct.pack("<HHII", STRIPS, LONG, 1, start)
    for tag, kind, count, value in every:
        directory += struct.pack("<HHII", tag, kind, count, start + 4096 if value is None else value)
    head = b"II*\0" + struct.pack("<IH", 8, len(every) + 1) + directory + bytes(4)
    return head + SQUARE.tobytes() + behind


def test_tags_that_are_not_used_are_not_unpacked() -> None:
    data = tiff((40_000, BYTE, 1_000_000, None), behind=bytes(1_000_000))
    image, peak = traced(lambda: read_radiograph(data))
    np.testing.assert_allclose(image.pixels, SQUARE / 255, atol=1e-6)
    assert peak < 1_000_000


@pytest.mark.parametrize("kind", [BYTE, 2, SIGNED_LONG, 13, 17, 18])
def test_tags_that_share_their_bytes_hold_no_more_than_the_file(kind: int) -> None:
    shared = [(tag, kind, 25_000, None) for tag in range(40_000, 42_000)]
    reason, peak = traced(lambda: reason_of(tiff(*shared, behind=bytes(200_000))))
    assert reason is Reason.CORRUPT
    assert peak < 1_000_000


def test_the_values_of_all_tags_and_pages_are_bounded() -> None:
    count = MAX_VALUES // 2 + 1
    tables = [(tag, BYTE, count, None) for tag in (STRIP_BYTES, 320)]
    data = tiff(*tables, behind=bytes(2 * count), without=(STRIP_BYTES,))
    with pytest.raises(UnreadableImageError, match=f"more than {MAX_VALUES}"):
        read_radiograph(data)
    page = tiff((320, BYTE, count, None), behind=bytes(count))
    following = 8 + 2 + 12 * int.from_bytes(page[8:10], "little")
    again = page[:following] + struct.pack("<I", len(page)) + page[following + 4 :] + page[8:]
    with pytest.raises(UnreadableImageError, match=f"more than {MAX_VALUES}"):
        read_radiograph(again)


def test_the_first_of_a_repeated_tag_counts_as_it_does_for_libtiff() -> None:
    assert reason_of(tiff((WIDTH, LONG, 1, 12_000), (HEIGHT, LONG, 1, 12_000))) is Reason.TOO_MANY_PIXELS
    image = read_radiograph(tiff((WIDTH, SHORT, 1, 64), (WIDTH, LONG, 1, 12_000)))
    np.testing.assert_allclose(image.pixels, SQUARE / 255, atol=1e-6)


@pytest.mark.parametrize(
    "entry",
    [(WIDTH, SIGNED_LONG, 1, 64), (SAMPLES, SIGNED_SHORT, 1, 30), (TILE_WIDTH, SIGNED_LONG, 1, 12_000)],
)
def test_a_size_that_only_libtiff_would_read_is_unsupported(entry: tuple[int, int, int, int]) -> None:
    assert reason_of(tiff(entry, without=(entry[0],))) is Reason.UNSUPPORTED_ENCODING


@pytest.mark.parametrize("excess", [0, 10_000])
def test_an_rle_segment_may_be_padded_but_makes_no_more_than_its_plane(excess: int) -> None:
    """Every two bytes of the excess would make 128."""
    rows = b"".join(bytes([COLUMNS - 1]) + row.tobytes() for row in ramp(8))
    segment = rows + bytes(64) + b"\x81\0" * excess
    frame = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56) + segment
    data = dicom(frame, pydicom.uid.RLELossless, bits=8, WindowCenter=128, WindowWidth=256)
    if not excess:
        np.testing.assert_allclose(read_radiograph(data).pixels, ramp(8) / 255, atol=1e-6)
        return
    reason, peak = traced(lambda: reason_of(data))
    assert reason is Reason.CORRUPT
    assert peak < 500_000


def deflated(extra: bytes = b"", **meta: Any) -> bytes:
    """Write a deflated radiograph, with more bytes behind its pixels and more in front of its data set."""
    data = dicom(ramp(), PatientID="Doe^Jane", WindowCenter=2048, WindowWidth=4096)
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    for keyword, value in meta.items():
        setattr(dataset.file_meta, keyword, value)
    head = io.BytesIO(b"\0" * 128 + b"DICM")
    head.seek(0, io.SEEK_END)
    pydicom.filewriter.write_file_meta_info(head, dataset.file_meta, enforce_standard=True)
    squeeze = zlib.compressobj(wbits=-15)
    start = 144 + int.from_bytes(data[140:144], "little")
    return head.getvalue() + squeeze.compress(data[start:] + extra) + squeeze.flush()


BOMB = bytes.fromhex("e17f0110") + b"OB\0\0" + (5_000_000).to_bytes(4, "little") + bytes(5_000_000)
LONG_META = {"PrivateInformationCreatorUID": "1.2.3", "PrivateInformation": bytes(5000)}


def wrong_length(data: bytes) -> bytes:
    """State a length of the file meta that ends behind the deflated bytes."""
    return data[:140] + (len(data) - 144).to_bytes(4, "little") + data[144:] + b"\x03\0"


def without_length(data: bytes) -> bytes:
    return data[:132] + data[144:]


@pytest.mark.parametrize("change", [bytes, wrong_length, without_length])
@pytest.mark.parametrize("meta", [{}, LONG_META], ids=["meta", "long-meta"])
def test_deflated_and_its_bomb(
    meta: dict[str, Any], change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    limits = Limits(max_bytes=100_000)
    path = tmp_path / "image"
    path.write_bytes(change(deflated(**meta)))
    np.testing.assert_allclose(read_radiograph(path, limits=limits).pixels, ramp() / 4095, atol=1e-6)
    assert read_header("image", path, limits).PatientID == "Doe^Jane"
    patient = read_patient(path, limits)
    assert patient is not None
    assert patient.key is not None

    bomb = change(deflated(BOMB, **meta))
    path.write_bytes(bomb)
    reason, peak = traced(lambda: reason_of(bomb, limits=limits))
    assert reason is Reason.FILE_TOO_LARGE
    assert peak < 1_000_000
    with pytest.raises(UnreadableImageError, match="limit"):
        read_header("image", bomb, limits)
    patient, peak = traced(lambda: read_patient(path, limits))
    assert patient is None
    assert peak < 1_000_000


def test_a_deflated_data_set_that_ends_early_is_cut_off() -> None:
    assert reason_of(deflated()[:-100]) is Reason.TRUNCATED


def test_a_deflated_data_set_is_inflated_once() -> None:
    """The inflated bytes begin with file meta information, which states that more is deflated."""
    inner = deflated(BOMB)
    start = 144 + int.from_bytes(inner[140:144], "little")
    squeeze = zlib.compressobj(wbits=-15)
    data = inner[:start] + squeeze.compress(inner[132:]) + squeeze.flush()
    reason, peak = traced(lambda: reason_of(data))
    assert reason is Reason.NO_PIXELS
    assert peak < 1_000_000
