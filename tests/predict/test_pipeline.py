from __future__ import annotations

import cv2
import numpy as np
import pytest

from bundles import make_bundle
from dicom_files import dicom, ramp
from images import write_image
from pneumoscope.data.walk import OWN_OUTPUT
from pneumoscope.domain import Population, Radiograph
from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.standardise import InputSpec, standardise
from pneumoscope.model.bundle import default_bundle_path, load_bundle
from pneumoscope.model.lungs import OnnxLungSegmenter
from pneumoscope.predict import pipeline as module
from pneumoscope.predict.cache import ImageCache
from pneumoscope.predict.inputs import InputItem
from pneumoscope.predict.pipeline import Pipeline
from pneumoscope.report.overlay import write_png


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    spec = InputSpec(size=64, lungs="crop", window="lungs")
    return make_bundle(tmp_path_factory.mktemp("lungs"), input=spec)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    paths = [write_image(folder / f"{seed}.png", seed, 100 + 20 * seed, 140) for seed in range(5)]
    write_image(paths[1], height=20, width=20)
    paths[3].write_bytes(b"")
    return paths


def items(paths) -> list[InputItem]:
    return [InputItem(str(path)) for path in paths]


def test_each_image_of_a_batch_is_prepared_as_it_is_alone(bundle, paths):
    prepared = Pipeline.of_bundle(bundle).read(items(paths))
    assert [one.path for one in prepared] == [str(path) for path in paths]
    assert [one.status for one in prepared] == ["ok", "rejected", "ok", "unreadable", "ok"]
    segment = OnnxLungSegmenter(bundle.lungs_path)
    for path, one in zip(paths, prepared, strict=True):
        assert (one.input is not None) == (one.status == "ok")
        if one.input:
            alone = standardise(read_radiograph(path), bundle.manifest.input, segment)
            np.testing.assert_array_equal(one.input.pixels, alone.pixels)
            assert one.input.region == alone.region


def test_by_force_what_the_gate_rejects_is_prepared_with_its_reasons(bundle, paths):
    (one,) = Pipeline.of_bundle(bundle, force=True).read(items([paths[1]]))
    assert one.status == "ok"
    assert one.reasons == (Reason.TOO_SMALL,)
    assert one.input is not None


def test_an_error_found_before_reading_is_a_row_under_its_own_path(bundle):
    error = UnreadableImageError("gone.png", Reason.NOT_FOUND, "there is no such file")
    (one,) = Pipeline.of_bundle(bundle).read([InputItem(error)])
    assert (one.path, one.status, one.reasons) == ("gone.png", "unreadable", ("not_found",))


def test_no_items_give_no_rows(bundle):
    assert Pipeline.of_bundle(bundle).read([]) == []


def test_lungs_need_a_segmenter(bundle):
    with pytest.raises(ValueError, match="needs a lung segmenter"):
        Pipeline(bundle.manifest.input)


def test_age_and_view_of_the_manifest_count_where_the_header_states_none(bundle, paths):
    validated = (Population("children", (1, 5), ("AP",)),)
    pipeline = Pipeline(InputSpec(size=64), validated=validated)
    known, other = pipeline.read(
        [InputItem(str(paths[0]), age=3.0, view="AP"), InputItem(str(paths[0]), age=50.0)]
    )
    assert (known.age, known.view, known.reasons) == (3.0, "AP", ())
    assert (other.status, other.reasons) == ("ok", (Reason.POPULATION_NOT_VALIDATED,))
    assert "1 to 5 years" in other.message
    (rejected,) = pipeline.read([InputItem(str(paths[1]), age=50.0)])
    assert rejected.reasons == (Reason.TOO_SMALL,)  # a caution about what is not predicted would only confuse


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the files that were decoded."""
    names: list[str] = []

    def counted(source, **options):
        names.append(options["name"])
        return read_radiograph(source, **options)

    monkeypatch.setattr(module, "read_radiograph", counted)
    return names


def test_with_a_cache_each_content_is_decoded_once_and_gives_the_same_input(bundle, paths, tmp_path, decoded):
    plain = Pipeline.of_bundle(bundle).read(items(paths))
    decoded.clear()
    cache = ImageCache(tmp_path)
    first = Pipeline.of_bundle(bundle, cache=cache).read(items(paths))
    assert len(decoded) == len(paths)
    renamed = tmp_path / "renamed.png"
    renamed.write_bytes(paths[2].read_bytes())
    decoded.clear()
    again = Pipeline.of_bundle(bundle, cache=ImageCache(tmp_path)).read(items([*paths, renamed]))
    assert decoded == [str(paths[3])]  # an unreadable file is tried again
    for one, other, expected in zip(first, again, plain, strict=False):
        assert (one.path, one.status, one.reasons, one.message) == (
            other.path,
            other.status,
            other.reasons,
            other.message,
        )
        assert (one.status, one.reasons) == (expected.status, expected.reasons)
        assert other.radiograph is None
        if expected.input:
            np.testing.assert_array_equal(one.input.pixels, other.input.pixels)
            np.testing.assert_allclose(one.input.pixels, expected.input.pixels, atol=0.5 / 255 + 1e-6)
            np.testing.assert_array_equal(other.input.lungs.mask, expected.input.lungs.mask)
            assert (other.input.region, other.input.lungs.box) == (
                expected.input.region,
                expected.input.lungs.box,
            )
    assert again[-1].path == str(renamed)
    np.testing.assert_array_equal(again[-1].input.pixels, again[2].input.pixels)


def test_another_input_or_gate_does_not_use_the_same_entries(bundle, paths, tmp_path, decoded):
    cache = ImageCache(tmp_path)
    Pipeline.of_bundle(bundle, cache=cache).read(items(paths[:1]))
    larger = bundle.manifest.input.model_copy(update={"size": 96})
    segmenter = OnnxLungSegmenter(bundle.lungs_path)
    (one,) = Pipeline(larger, bundle.manifest.gate, segmenter=segmenter, cache=cache).read(items(paths[:1]))
    assert one.input.pixels.shape == (1, 96, 96)
    stricter = bundle.manifest.gate.model_copy(update={"min_side": 500})
    spec = bundle.manifest.input
    (two,) = Pipeline(spec, stricter, segmenter=segmenter, cache=cache).read(items(paths[:1]))
    assert two.status == "rejected"
    assert len(decoded) == 3


def test_inverted_chests_are_corrected_without_statistics_too(shared_data, tmp_path):
    shipped = load_bundle(default_bundle_path())
    pipeline = Pipeline(shipped.manifest.input, segmenter=OnnxLungSegmenter(shipped.lungs_path))
    chests = sorted((shared_data / "kermany-original").rglob("*.jpeg"))[::5]
    given = pipeline.read(items(chests))
    assert not any(Reason.INVERTED in one.reasons for one in given)
    files = []
    for path in chests:
        files.append(tmp_path / path.with_suffix(".png").name)
        cv2.imwrite(str(files[-1]), 255 - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    found = pipeline.read(items(files))
    corrected = [one for one in found if Reason.INVERTED in one.reasons]
    assert len(corrected) >= 0.9 * len(chests)
    pairs = [
        (one, other) for one, other in zip(given, found, strict=True) if other in corrected and one.input
    ]
    assert np.median([np.abs(one.input.pixels - other.input.pixels).mean() for one, other in pairs]) < 0.01


def test_own_output_is_rejected_as_file_and_as_content_even_by_force(tmp_path):
    path = tmp_path / "a.heatmap.png"
    write_png(np.zeros((200, 200, 3), np.uint8), path)
    for force in (False, True):
        pipeline = Pipeline(InputSpec(size=64), force=force)
        rows = pipeline.read([InputItem(str(path)), InputItem(path.read_bytes(), "b.png")])
        assert [one.path for one in rows] == [str(path), "b.png"]
        assert {one.status for one in rows} == {"rejected"}
        assert {one.reasons for one in rows} == {(Reason.NOT_A_CHEST_RADIOGRAPH,)}
        assert "drew" in rows[0].message


def test_a_capture_of_the_node_is_rejected_as_file_and_as_content(tmp_path):
    header = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Manufacturer": "Pneumoscope"}
    (tmp_path / "own.dcm").write_bytes(dicom(ramp(), **header))
    items = [InputItem(str(tmp_path / "own.dcm")), InputItem(dicom(ramp(), preamble=False, **header))]
    rows = Pipeline(InputSpec(size=64), force=True).read(items)
    assert [(one.status, one.message) for one in rows] == [("rejected", OWN_OUTPUT)] * 2


def test_a_wrong_body_part_rejects_only_where_nothing_looks_for_lungs(bundle):
    grey = np.linspace(0, 1, 200 * 200, dtype=np.float32).reshape(200, 200)
    knee = Radiograph(grey, "k.dcm", "dicom", 200, 200, modality="DX", body_part="KNEE")
    (without,) = Pipeline(InputSpec(size=64)).admit([knee])
    assert (without.status, without.reasons) == ("rejected", (Reason.NOT_A_CHEST_RADIOGRAPH,))
    (found,) = Pipeline.of_bundle(bundle).admit([knee])
    assert (found.status, found.reasons) == ("ok", (Reason.BODY_PART_MISMATCH,))


def test_a_capture_is_not_said_to_lack_lungs_where_nothing_looks_for_them():
    grey = np.linspace(0, 1, 200 * 200, dtype=np.float32).reshape(200, 200)
    capture = Radiograph(grey, "s.dcm", "dicom", 200, 200, modality="SC")
    (rejected,) = Pipeline(InputSpec(size=64)).admit([capture])
    assert "its modality is SC" in rejected.message
