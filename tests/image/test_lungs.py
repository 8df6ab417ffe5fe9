from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from pneumoscope.errors import DataError
from pneumoscope.image.lungs import lung_field, mask_path, read_lung_mask


def chest():
    """Two lungs, rows 20 to 70, columns 15 to 45 and 55 to 85 of 100."""
    probability = np.full((100, 100), 0.1, np.float32)
    probability[20:70, 15:45] = probability[20:70, 55:85] = 0.9
    return probability


def test_two_lungs_are_found_with_their_box():
    field = lung_field(chest())
    assert field.plausible
    assert field.box == pytest.approx((0.20, 0.15, 0.70, 0.85))
    np.testing.assert_array_equal(field.mask, chest() > 0.5)


def test_the_box_is_in_fractions_of_each_side():
    assert lung_field(chest().repeat(2, axis=1)).box == pytest.approx((0.20, 0.15, 0.70, 0.85))


def test_specks_do_not_widen_the_box():
    speckled = chest()
    speckled[2:6, 2:6] = speckled[95, 95] = 1
    field = lung_field(speckled)
    assert field.box == pytest.approx((0.20, 0.15, 0.70, 0.85))
    assert not field.mask[:10].any()


def test_a_third_large_component_is_left_out():
    three = chest()
    three[80:98, 10:90] = 0.9  # 1,440 pixels against 1,500 in each lung
    assert lung_field(three).box == pytest.approx((0.20, 0.15, 0.70, 0.85))


def test_lungs_that_touch_are_one_component():
    joined = chest()
    joined[40:42, 45:55] = 0.9
    field = lung_field(joined)
    assert field.plausible
    assert field.mask.sum() == 3020


def test_the_threshold_is_inclusive_and_can_be_moved():
    assert lung_field(chest(), threshold=0.9).plausible
    assert not lung_field(chest(), threshold=0.91).plausible


@pytest.mark.parametrize(
    ("what", "rows", "columns"),
    [
        ("a dot", slice(50, 60), slice(50, 60)),
        ("a strip", slice(10, 90), slice(50, 60)),
        ("nearly everything", slice(2, 98), slice(2, 98)),
        ("nothing", slice(0, 0), slice(0, 0)),
    ],
)
def test_what_is_no_chest_is_not_plausible_and_keeps_the_whole_image(what, rows, columns):
    probability = np.zeros((100, 100), np.float32)
    probability[rows, columns] = 1
    field = lung_field(probability)
    assert not field.plausible
    assert field.box == field.padded_box(0.1) == (0.0, 0.0, 1.0, 1.0)


def test_the_margin_is_a_share_of_the_box():
    field = lung_field(chest())
    assert field.padded_box(0) == field.box
    assert field.padded_box(0.1) == pytest.approx((0.15, 0.08, 0.75, 0.92))
    assert field.padded_box(0.4) == pytest.approx((0.0, 0.0, 0.9, 1.0))


maps = st_numpy.arrays(
    np.float32, st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.floats(0, 1, width=32)
)


@settings(max_examples=60)
@given(maps)
def test_any_map_gives_a_box_inside_the_image(probability):
    field = lung_field(probability)
    top, left, bottom, right = field.box
    assert 0 <= top < bottom <= 1
    assert 0 <= left < right <= 1
    assert field.mask.shape == probability.shape
    assert not (field.mask & (probability < 0.5)).any()
    height, width = probability.shape
    if field.plausible:
        outside = field.mask.copy()
        outside[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = (
            False
        )
        assert not outside.any()


def test_the_reference_masks_of_children_are_plausible(shared_data):
    import cv2

    paths = sorted((shared_data / "lung-masks-224").rglob("*.png"))[::100]
    assert len(paths) > 20
    masks = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
    plausible = [lung_field((mask > 0).astype(np.float32)).plausible for mask in masks]
    assert np.mean(plausible) > 0.95


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_of_any_depth_and_name_is_read(tmp_path, dtype, monkeypatch):
    mask = np.zeros((8, 6), dtype)
    mask[2:5, 1:3] = 1
    path = tmp_path / "肺.png"
    path.write_bytes(cv2.imencode(".png", mask)[1].tobytes())
    monkeypatch.setattr(cv2, "imread", lambda *_: None)  # as on Windows, for such a name
    assert (read_lung_mask(path) == (mask > 0)).all()


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_what_is_no_mask_is_one_line(tmp_path, content):
    path = tmp_path / "mask.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"mask\.png: not a readable mask"):
        read_lung_mask(path)


def test_images_named_by_a_uid_have_a_mask_each(tmp_path):
    names = ("a/1.2.840.5", "a/1.2.840.6", "a/b.c.jpeg", "a/plain")
    found = [mask_path(tmp_path, name).relative_to(tmp_path).as_posix() for name in names]
    assert found == ["a/1.2.840.5.png", "a/1.2.840.6.png", "a/b.c.png", "a/plain.png"]
