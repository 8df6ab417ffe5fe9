"""DICOM: every transfer syntax, every step from stored value to grey level, and header attributes."""

from __future__ import annotations

import csv
import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_files import COLUMNS, ROWS, dicom, ramp
from pneumoscope.domain import ViewPosition
from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.decode import looks_like_image, read_radiograph
from pneumoscope.image.dicom import read_patient


def reason_of(data: bytes, **options: Any) -> Reason:
    with pytest.raises(UnreadableImageError) as caught:
        read_radiograph(data, **options)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def whole_range(bits: int) -> dict[str, float]:
    """Return the window that maps 0 to 0 and the largest value to 1."""
    return {"WindowCenter": (1 << bits) / 2, "WindowWidth": 1 << bits}


LOSSLESS = {
    "1.2.840.10008.1.2.4.57": lambda a: imagecodecs.jpeg8_encode(a, lossless=True, bitspersample=16),
    "1.2.840.10008.1.2.4.70": lambda a: imagecodecs.jpeg8_encode(a, lossless=True, bitspersample=12),
    "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_encode,
    "1.2.840.10008.1.2.4.90": lambda a: imagecodecs.jpeg2k_encode(a, level=0, codecformat="j2k"),
    "1.2.840.10008.1.2.4.201": imagecodecs.htj2k_encode,
}
LOSSY = {
    "1.2.840.10008.1.2.4.51": lambda a: imagecodecs.jpeg8_encode(a, level=98, bitspersample=12),
    "1.2.840.10008.1.2.4.81": lambda a: imagecodecs.jpegls_encode(a, level=2),
    "1.2.840.10008.1.2.4.91": lambda a: imagecodecs.jpeg2k_encode(a, level=70, codecformat="jp2"),
}


@pytest.mark.parametrize("syntax", [*LOSSLESS, *LOSSY])
def test_compressed_frames(syntax: str) -> None:
    frame = (LOSSLESS | LOSSY)[syntax](ramp())
    image = read_radiograph(dicom(frame, syntax, **whole_range(12)))
    assert (image.format, image.bits, image.modality) == ("dicom", 12, "CR")
    assert (image.height, image.width) == image.pixels.shape == (ROWS, COLUMNS)
    error = abs(image.pixels - ramp() / 4095)
    assert error.max() < 1e-6 if syntax in LOSSLESS else error.mean() < 0.005


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_native_frames(syntax: str, bits: int) -> None:
    image = read_radiograph(dicom(ramp(bits), syntax, bits=bits, **whole_range(bits)))
    np.testing.assert_allclose(image.pixels, ramp(bits) / ((1 << bits) - 1), atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_rle(bits: int) -> None:
    dataset = pydicom.dcmread(io.BytesIO(dicom(ramp(bits), bits=bits, **whole_range(bits))))
    dataset.compress(pydicom.uid.RLELossless)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    image = read_radiograph(buffer.getvalue())
    np.testing.assert_allclose(image.pixels, ramp(bits) / ((1 << bits) - 1), atol=1e-6)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_without_preamble(syntax: str, tmp_path: Path) -> None:
    data = dicom(ramp(), syntax, preamble=False, **whole_range(12))
    np.testing.assert_allclose(read_radiograph(data).pixels, ramp() / 4095, atol=1e-6)
    path = tmp_path / "IM0001"
    path.write_bytes(data)
    assert looks_like_image(path)


def test_preamble_may_be_another_formats_header() -> None:
    data = b"II*\0" + dicom(ramp(), **whole_range(12))[4:]
    assert read_radiograph(data).format == "dicom"


@pytest.mark.parametrize(
    ("photometric", "shape", "bright_is_high"),
    [
        ("MONOCHROME2", None, True),
        ("MONOCHROME1", None, False),
        ("MONOCHROME1", "INVERSE", False),
        ("MONOCHROME2", "IDENTITY", True),
        ("MONOCHROME2", "INVERSE", False),
    ],
)
def test_bright_is_dense(photometric: str, shape: str | None, bright_is_high: bool) -> None:
    elements = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}
    pixels = read_radiograph(dicom(ramp(), **whole_range(12), **elements)).pixels
    expected = ramp() / 4095
    np.testing.assert_allclose(pixels, expected if bright_is_high else 1 - expected, atol=1e-6)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.5, -300)])
def test_window_agrees_with_pydicom(function: str | None, slope: float, intercept: float) -> None:
    data = dicom(
        ramp(),
        WindowCenter=[700, 1],
        WindowWidth=[900, 2],
        VOILUTFunction=function,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
    )
    dataset = pydicom.dcmread(io.BytesIO(data))
    values = pydicom.pixels.apply_modality_lut(ramp(), dataset)
    reference = pydicom.pixels.apply_windowing(values, dataset)
    low, high = intercept, 4095 * slope + intercept  # the output range of PS3.3 C.11.2.1.2.1
    np.testing.assert_allclose(read_radiograph(data).pixels, (reference - low) / (high - low), atol=1e-5)


def lookup_table(first: int, entries: np.ndarray, bits: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [entries.size, first, bits]
    item.LUTData = entries.astype("<u2").tobytes()
    item["LUTDescriptor"].VR = "US"
    item["LUTData"].VR = "OW"
    return item


def test_lookup_tables_agree_with_pydicom() -> None:
    modality = lookup_table(100, (np.arange(3000) * 20).astype(np.uint16), 16)
    modality.ModalityLUTType = "US"
    voi = lookup_table(500, (np.sqrt(np.arange(40000)) * 20).astype(np.uint16), 12)
    data = dicom(
        ramp(), ModalityLUTSequence=Sequence([modality]), VOILUTSequence=Sequence([voi]), **whole_range(12)
    )
    dataset = pydicom.dcmread(io.BytesIO(data))
    values = pydicom.pixels.apply_modality_lut(ramp(), dataset)
    reference = pydicom.pixels.apply_voi(values, dataset)
    np.testing.assert_allclose(read_radiograph(data).pixels, reference / 4095, atol=1e-6)


def test_signed_values_and_padding() -> None:
    stored = np.linspace(-1000, 1000, ROWS * COLUMNS).reshape(ROWS, COLUMNS).astype(np.int16)
    stored[:5] = -2000
    elements = {
        "PixelRepresentation": 1,
        "PixelPaddingValue": -2000,
        "PhotometricInterpretation": "MONOCHROME1",
    }
    expected = 1 - np.clip((stored + 999.5) / 1999 + 0.5 - 0.5, 0, 1)
    for bits, frame in ((16, stored), (12, (stored & 0x0FFF).astype(np.uint16))):
        data = dicom(frame, bits=bits, WindowCenter=0.5, WindowWidth=2000, **elements)
        pixels = read_radiograph(data).pixels
        assert not pixels[:5].any()
        np.testing.assert_allclose(pixels[5:], expected[5:], atol=1e-3)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.80"])
def test_the_sign_of_a_codestream_of_more_bits_is_that_of_bits_stored(syntax: str) -> None:
    words = ((ramp().astype(int) - 2048) & 0x0FFF).astype(np.uint16)
    data = dicom(LOSSLESS[syntax](words), syntax, PixelRepresentation=1, WindowCenter=0, WindowWidth=4096)
    np.testing.assert_allclose(read_radiograph(data).pixels, ramp() / 4095, atol=1e-6)


def test_a_codestream_of_fewer_bits_than_bits_stored_has_no_sign() -> None:
    frame = imagecodecs.jpeg2k_encode(ramp(), level=0, codecformat="j2k", bitspersample=12)
    elements = {"bits": 16, "PixelRepresentation": 1} | whole_range(12)
    image = read_radiograph(dicom(frame, "1.2.840.10008.1.2.4.90", **elements))
    np.testing.assert_allclose(image.pixels, ramp() / 4095, atol=1e-6)


def test_without_a_window_percentiles_span_the_range() -> None:
    stored = np.full((ROWS, COLUMNS), 500, np.uint16)
    stored[:, ::2] = 900
    stored[0, :2] = 0, 4095  # a dead and a hot detector element
    stored[1] = 3000  # padding
    pixels = read_radiograph(dicom(stored, PixelPaddingValue=3000)).pixels
    assert not pixels[1].any()
    np.testing.assert_array_equal(np.unique(pixels[2:]), [0, 1])
    flat = read_radiograph(dicom(np.full((ROWS, COLUMNS), 7, np.uint16))).pixels
    assert not flat.any()


def test_overlay_bits_above_the_sample_do_not_show() -> None:
    stored = ramp() | np.uint16(0xF000)
    pixels = read_radiograph(dicom(stored, **whole_range(12))).pixels
    np.testing.assert_allclose(pixels, ramp() / 4095, atol=1e-6)


def test_codestream_overrules_a_wrong_header() -> None:
    """Unsigned JPEG 2000 under a header that says signed, and more bits than Bits Stored says."""
    frame = imagecodecs.jpeg2k_encode(ramp(12), level=0, codecformat="j2k", bitspersample=12)
    image = read_radiograph(dicom(frame, "1.2.840.10008.1.2.4.90", bits=10, **whole_range(12)))
    np.testing.assert_allclose(image.pixels, ramp() / 4095, atol=1e-6)
    signed = dicom(frame, "1.2.840.10008.1.2.4.90", PixelRepresentation=1, WindowCenter=0, WindowWidth=4096)
    expected = (((ramp().astype(int) ^ 0x800) - 0x800) + 2048) / 4095
    np.testing.assert_allclose(read_radiograph(signed).pixels, expected, atol=1e-3)


def test_color_is_reduced_to_luminance() -> None:
    grey = ramp(8)
    rgb = np.stack([grey] * 3, -1)
    ybr = np.stack([grey, np.full_like(grey, 128), np.full_like(grey, 128)], -1)
    subsampled = np.stack([grey[:, 0::2], grey[:, 1::2], *(np.full_like(grey[:, ::2], 128),) * 2], -1)
    elements: dict[str, Any] = {"SamplesPerPixel": 3, "bits": 8, "PlanarConfiguration": 0}
    jpeg = imagecodecs.jpeg8_encode(rgb, level=98)
    bare = imagecodecs.jpeg8_encode(rgb, level=98, colorspace="RGB", outcolorspace="RGB")
    frames = [
        dicom(rgb, **elements, PhotometricInterpretation="RGB"),
        dicom(
            np.moveaxis(rgb, -1, 0), **elements | {"PlanarConfiguration": 1}, PhotometricInterpretation="RGB"
        ),
        dicom(ybr, **elements, PhotometricInterpretation="YBR_FULL"),
        dicom(subsampled, **elements, PhotometricInterpretation="YBR_FULL_422"),
        dicom(jpeg, "1.2.840.10008.1.2.4.50", **elements, PhotometricInterpretation="YBR_FULL_422"),
        dicom(bare, "1.2.840.10008.1.2.4.50", **elements, PhotometricInterpretation="RGB"),
    ]
    for data in frames:
        np.testing.assert_allclose(read_radiograph(data).pixels, grey / 255, atol=0.012)


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422", "RGB"])
def test_lossless_colour_is_what_the_header_states(photometric: str, bits: int) -> None:
    """No decoder converts it: the luminance is the first component, or is mixed of red, green and blue."""
    first, second, third = ramp(bits), ramp(bits)[::-1], np.full_like(ramp(bits), 1 << (bits - 1))
    frame = imagecodecs.jpeg8_encode(
        np.stack([first, second, third], -1),
        lossless=True,
        bitspersample=bits,
        colorspace="RGB",
        outcolorspace="RGB",
    )
    elements: dict[str, Any] = {"SamplesPerPixel": 3, "bits": bits, "PlanarConfiguration": 0}
    image = read_radiograph(
        dicom(frame, "1.2.840.10008.1.2.4.70", **elements, PhotometricInterpretation=photometric)
    )
    mixed = 0.299 * first + 0.587 * second + 0.114 * third
    expected = mixed if photometric == "RGB" else first
    np.testing.assert_allclose(image.pixels * ((1 << bits) - 1), expected, atol=1)


def test_subsampled_colour_of_an_odd_width_is_damaged() -> None:
    pixels = np.zeros((ROWS, 7, 2), np.uint8)
    elements = {"SamplesPerPixel": 3, "bits": 8, "PlanarConfiguration": 0}
    data = dicom(pixels, **elements, Columns=7, PhotometricInterpretation="YBR_FULL_422")
    with pytest.raises(UnreadableImageError, match="odd number of columns"):
        read_radiograph(data)


def test_palette_color() -> None:
    tables = {}
    for color in ("Red", "Green", "Blue"):
        tables[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tables[f"{color}PaletteColorLookupTableData"] = (np.arange(256)[::-1] * 257).astype("<u2").tobytes()
    data = dicom(ramp(8), bits=8, PhotometricInterpretation="PALETTE COLOR", **tables)
    np.testing.assert_allclose(read_radiograph(data).pixels, 1 - ramp(8) / 255, atol=1e-5)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"NumberOfFrames": 2}, Reason.MULTI_FRAME),
        ({"Rows": 40000, "Columns": 40000}, Reason.TOO_MANY_PIXELS),
        ({"Rows": 0}, Reason.CORRUPT),
        ({"Rows": None}, Reason.CORRUPT),
        ({"Rows": ROWS + 1}, Reason.TRUNCATED),
        ({"BitsAllocated": 32, "BitsStored": 32}, Reason.UNSUPPORTED_ENCODING),
        ({"BitsStored": 17}, Reason.CORRUPT),
        ({"PhotometricInterpretation": "RGB"}, Reason.UNSUPPORTED_ENCODING),
    ],
)
def test_reasons(elements: dict[str, Any], reason: Reason) -> None:
    assert reason_of(dicom(ramp(), **elements)) is reason


def test_header_values_that_lead_to_no_grey_level_are_damage() -> None:
    data = dicom(ramp(), RescaleSlope="1e308", RescaleIntercept="0")
    assert reason_of(data) is Reason.CORRUPT


def test_the_patient_of_a_header_is_a_key_without_the_name(tmp_path: Path) -> None:
    for name, patient in (("a", "Doe^Jane"), ("b", "Doe^Jane"), ("c", "Roe"), ("d", None)):
        (tmp_path / name).write_bytes(dicom(ramp(), PatientID=patient))
    (tmp_path / "e").write_bytes(b"nothing")
    a, b, c, d, e = (read_patient(tmp_path / name) for name in "abcde")
    assert a == b != c
    assert a.key is not None
    assert "Doe" not in repr(a)
    assert d.key is e.key is None


@pytest.mark.parametrize(
    ("elements", "age", "sex", "view"),
    [
        ({"PatientAge": "003Y", "PatientSex": "F", "ViewPosition": "AP"}, 3, "F", ViewPosition.AP),
        ({"PatientBirthDate": "19700101", "StudyDate": "20200102"}, 50, "", ViewPosition.UNKNOWN),
        ({"PatientAge": "999Y", "PatientSex": "NO", "ViewPosition": "LL"}, None, "", ViewPosition.LATERAL),
    ],
)
def test_the_patient_of_a_header_is_the_one_that_reading_finds(
    tmp_path: Path, elements: dict[str, str], age: float | None, sex: str, view: ViewPosition
) -> None:
    (tmp_path / "a").write_bytes(dicom(ramp(), PatientID="Doe^Jane", **elements))
    found = read_patient(tmp_path / "a")
    assert found is not None
    image = read_radiograph(tmp_path / "a")
    assert (found.key, found.age, found.view) == (image.patient_key, image.age, image.view)
    assert (found.age, found.sex, found.view) == (age, sex, view)


def test_unknown_transfer_syntax_is_named() -> None:
    with pytest.raises(UnreadableImageError, match="MPEG2") as caught:
        read_radiograph(dicom(b"\0" * 64, "1.2.840.10008.1.2.4.100"))
    assert caught.value.reason is Reason.UNSUPPORTED_ENCODING


@pytest.mark.parametrize("syntax", [*LOSSLESS, *LOSSY])
def test_frame_without_its_end_and_of_another_size(syntax: str) -> None:
    frame = (LOSSLESS | LOSSY)[syntax](ramp())
    assert reason_of(dicom(frame[: len(frame) // 2], syntax)) in {Reason.TRUNCATED, Reason.CORRUPT}
    assert reason_of(dicom(frame, syntax, Rows=ROWS + 1)) is Reason.CORRUPT


@pytest.mark.parametrize("place", [303, 500, 700, 840])
def test_a_damaged_high_throughput_frame_is_no_image(place: int) -> None:
    """OpenJPH's error is lost on its way, and the part that was decoded comes back as if it were all."""
    frame = bytearray(LOSSLESS["1.2.840.10008.1.2.4.201"](ramp()))
    frame[place] ^= 0xFF
    assert reason_of(dicom(bytes(frame), "1.2.840.10008.1.2.4.201")) is Reason.CORRUPT


def test_codestream_bomb_behind_a_small_header() -> None:
    frame = bytearray(LOSSLESS["1.2.840.10008.1.2.4.90"](ramp()))
    frame[8:16] = (60000).to_bytes(4, "big") * 2
    assert reason_of(dicom(bytes(frame), "1.2.840.10008.1.2.4.90")) is Reason.TOO_MANY_PIXELS


def test_every_real_file(shared_data: Path) -> None:
    expected = {"chrJapMulti.dcm": Reason.NO_PIXELS, "not_dicom_html.dcm": Reason.NOT_AN_IMAGE}
    with (shared_data / "dicom" / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for row in rows:
            path = shared_data / "dicom" / row["file"]
            if row["file"] in expected:
                assert reason_of(path) is expected[row["file"]]  # type: ignore[arg-type]
                continue
            image = read_radiograph(path)
            assert (image.height, image.width) == (int(row["rows"]), int(row["cols"])), path.name
            assert image.bits == int(row["bits_stored"]), path.name
            assert image.modality is not None
            assert image.pixels.std() > 0.05, path.name
            assert image.pixels.min() >= 0, path.name
            assert image.pixels.max() <= 1, path.name


def test_one_image_in_all_its_transfer_syntaxes(shared_data: Path) -> None:
    """The same radiograph was saved in each: lossless ones agree exactly, lossy ones nearly."""
    folder = shared_data / "dicom"
    for stem in ("RG3", "CT1", "MR1"):
        plain = read_radiograph(folder / f"{stem}_UNC.dcm").pixels
        for path in sorted(folder.glob(f"{stem}_*.dcm")):
            pixels = read_radiograph(path).pixels
            if path.stem.endswith(("J2KR", "JLSL", "JPLL", "RLE")):
                np.testing.assert_allclose(pixels, plain, atol=1e-6, err_msg=path.name)
            elif stem != "CT1":  # lossy coding moves its padding value, and with it what is padding
                assert abs(pixels - plain).mean() < 0.03, path.name


def test_lungs_are_darker_than_mediastinum_in_both_polarities(shared_data: Path) -> None:
    for name in ("CR-MONO1-10-chest.dcm", "RG1_J2KI.dcm"):
        pixels = read_radiograph(shared_data / "dicom" / name).pixels
        height, width = pixels.shape
        rows = slice(int(0.3 * height), int(0.45 * height))
        middle = pixels[rows, int(0.45 * width) : int(0.55 * width)].mean()
        lungs = pixels[rows, int(0.15 * width) : int(0.35 * width)].mean()
        assert middle > lungs + 0.1, name


def test_threads(shared_data: Path) -> None:
    paths = sorted((shared_data / "dicom").glob("*1_*.dcm"))
    expected = [read_radiograph(path).pixels.mean() for path in paths]
    with ThreadPoolExecutor(4) as pool:
        means = [image.pixels.mean() for image in pool.map(read_radiograph, paths)]
    assert means == expected
