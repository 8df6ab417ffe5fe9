from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.errors import DataError
from pneumoscope.image.lungs import lung_field
from pneumoscope.model.lungs import LUNG_INPUT_SIZE, LUNGS_FILE, OnnxLungSegmenter
from pneumoscope.training.lungs import LungNet, Probability, dice, fit_lungs, read_masks


def draw_chest(rng, side=160):
    """Two dark ellipses on a bright ground, and their mask."""
    mask = np.zeros((side, side), np.uint8)
    for centre in (0.3, 0.7):
        middle = (round(side * (centre + rng.uniform(-0.04, 0.04))), round(side * rng.uniform(0.45, 0.55)))
        size = (round(side * rng.uniform(0.12, 0.16)), round(side * rng.uniform(0.28, 0.36)))
        cv2.ellipse(mask, middle, size, 0, 0, 360, 255, -1)
    grey = np.where(mask > 0, 60, 190) + rng.normal(0, 8, mask.shape)
    return grey.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def chests(tmp_path_factory):
    """48 images with masks, and one image without."""
    root = tmp_path_factory.mktemp("chests")
    rng = np.random.default_rng(0)
    (root / "images" / "normal").mkdir(parents=True)
    (root / "masks" / "normal").mkdir(parents=True)
    records = []
    for number in range(49):
        grey, mask = draw_chest(rng)
        name = f"normal/{number:02d}.jpeg"
        cv2.imwrite(str(root / "images" / name), grey)
        if number < 48:
            cv2.imwrite(str((root / "masks" / name).with_suffix(".png")), mask)
        records.append(Record(name, "normal", f"p{number}", "val" if number % 6 == 0 else "train"))
    return Manifest(tuple(records), root / "images"), root / "masks"


def test_images_and_masks_are_paired_by_name(chests):
    manifest, masks = chests
    images, paths, kept = read_masks(manifest, masks)
    assert images.shape == (48, LUNG_INPUT_SIZE, LUNG_INPUT_SIZE)
    assert images.dtype == np.uint8
    assert kept == list(range(48))
    assert [path.stem for path in paths] == [f"{number:02d}" for number in range(48)]


def test_the_network_keeps_the_size_of_its_input():
    network = LungNet().eval()
    assert network(torch.rand(2, 1, LUNG_INPUT_SIZE, LUNG_INPUT_SIZE)).shape == (2, 1, 128, 128)
    assert sum(weight.numel() for weight in network.parameters()) < 700_000


def test_what_is_exported_is_the_sigmoid_of_the_network():
    network = LungNet().eval()
    images = torch.rand(2, 1, LUNG_INPUT_SIZE, LUNG_INPUT_SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(Probability(network)(images), torch.sigmoid(network(images)))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [([1, 1, 0, 0], [1, 1, 0, 0], 1), ([1, 1, 0, 0], [0, 0, 1, 1], 0), ([1, 1, 0, 0], [1, 0, 0, 0], 2 / 3)],
)
def test_dice_is_twice_the_overlap_over_both(first, second, expected):
    assert dice(np.array(first, bool), np.array(second, bool)) == pytest.approx(expected, abs=1e-6)


def test_it_learns_to_find_lungs_and_what_it_exports_finds_them_in_new_images(chests, tmp_path):
    manifest, masks = chests
    result = fit_lungs(manifest, masks, tmp_path / "out", epochs=20, seed=0)
    assert result.path == tmp_path / "out" / LUNGS_FILE
    assert result.images == 48
    assert result.dice > 0.85
    assert result.dice_full > 0.85
    segment = OnnxLungSegmenter(result.path)
    grey, mask = draw_chest(np.random.default_rng(99), side=300)
    field = lung_field(segment(grey.astype(np.float32) / 255))
    assert field.plausible
    truth = cv2.resize(mask, (LUNG_INPUT_SIZE, LUNG_INPUT_SIZE), interpolation=cv2.INTER_AREA) > 127
    assert dice(field.mask, truth) > 0.85


def test_ten_steps_are_enough_to_warm_up(chests, tmp_path):
    manifest, masks = chests
    train = manifest.subset("train").records[:5]
    few = manifest.with_records([*train, *manifest.subset("val").records[:2]])
    assert fit_lungs(few, masks, tmp_path / "out", epochs=10).images == 7


def one_line(manifest, masks, out):
    with pytest.raises(DataError) as caught:
        fit_lungs(manifest, masks, out, epochs=1)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    return str(caught.value)


def test_masks_that_belong_to_no_image_are_one_line(chests, tmp_path):
    manifest, _ = chests
    assert "no mask belongs to an image" in one_line(manifest, tmp_path, tmp_path / "out")


def test_masks_on_one_side_alone_are_one_line(chests, tmp_path):
    manifest, masks = chests
    all_train = manifest.with_records(replace(record, split="train") for record in manifest.records)
    assert "0 to validation images" in one_line(all_train, masks, tmp_path / "out")


def test_a_mask_that_cannot_be_read_is_named(chests, tmp_path):
    manifest, _ = chests
    first = (tmp_path / manifest.records[0].path).with_suffix(".png")
    first.parent.mkdir()
    first.write_bytes(b"no image")
    assert f"{first}: not a readable mask" in one_line(manifest, tmp_path, tmp_path / "out")
