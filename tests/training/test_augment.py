from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumoscope.training.augment import Augmentation, augment, photometric, sample_affine, warp
from pneumoscope.training.recipe import load_recipe, recipe_names


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth_images(count=4, side=64):
    return torch.nn.functional.interpolate(
        torch.rand(count, 1, 6, 6, generator=generator(9)), size=(side, side), mode="bilinear"
    )


STRONG = Augmentation(
    area=(0.3, 1.2),
    aspect=(0.7, 1.4),
    rotate=30,
    flip=0.5,
    gamma=0.8,
    contrast=0.5,
    brightness=0.3,
    haze=0.3,
    sharpness=1.0,
    blur=0.02,
    noise=0.2,
    markers=3,
    cutout=0.4,
    corners=0.5,
)


def test_the_defaults_change_nothing():
    images = smooth_images()
    assert augment(images, Augmentation(), generator()) is images
    assert augment(images, Augmentation(), generator()) is images


def test_the_same_generator_gives_the_same_images():
    images = smooth_images()
    first, again, other = (augment(images, STRONG, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_global_random_state_is_neither_read_nor_changed():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = augment(smooth_images(), STRONG, generator())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(augment(smooth_images(), STRONG, generator()), first)


def test_images_of_a_batch_are_changed_each_in_its_own_way():
    same = smooth_images(1).expand(6, -1, -1, -1)
    changed = augment(same, STRONG, generator())
    distances = torch.cdist(changed.flatten(1), changed.flatten(1))
    assert (distances + 100 * torch.eye(6)).min() > 0.5


configs = st.builds(
    Augmentation,
    area=st.sampled_from([(1.0, 1.0), (0.3, 1.15)]),
    aspect=st.sampled_from([(1.0, 1.0), (0.5, 2.0)]),
    rotate=st.sampled_from([0.0, 180.0]),
    flip=st.sampled_from([0.0, 1.0]),
    gamma=st.sampled_from([0.0, 2.0]),
    contrast=st.sampled_from([0.0, 0.9]),
    brightness=st.sampled_from([0.0, 1.0]),
    haze=st.sampled_from([0.0, 1.0]),
    sharpness=st.sampled_from([0.0, 2.0]),
    blur=st.sampled_from([0.0, 0.001, 0.05]),
    noise=st.sampled_from([0.0, 1.0]),
    markers=st.sampled_from([0, 10]),
    cutout=st.sampled_from([0.0, 0.9]),
)


@settings(max_examples=60)
@given(configs, st.integers(0, 2**31), st.sampled_from([0.0, 1.0, None]))
def test_any_setting_gives_finite_grey_levels(config, seed, level):
    images = smooth_images(3, 32) if level is None else torch.full((3, 1, 32, 32), level)
    changed = augment(images, config, generator(seed))
    assert changed.shape == images.shape
    assert torch.isfinite(changed).all()
    # Interpolation rounds in the last place where grey levels are not touched.
    assert changed.min() >= 0
    assert changed.max() <= 1 + 1e-6


# Geometry


def test_a_flip_is_a_mirror_image():
    images = smooth_images()
    torch.testing.assert_close(augment(images, Augmentation(flip=1.0), generator()), images.flip(3))


def test_flips_happen_as_often_as_asked():
    theta = sample_affine(2000, Augmentation(flip=0.25), generator())
    assert float((theta[:, 0, 0] < 0).float().mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_rotation_turns_and_neither_shears_nor_scales(flip):
    theta = sample_affine(500, Augmentation(rotate=20, flip=flip), generator())[:, :, :2]
    torch.testing.assert_close(theta @ theta.transpose(1, 2), torch.eye(2).expand(500, 2, 2))
    torch.testing.assert_close(torch.det(theta), torch.full((500,), 1 - 2 * flip))
    angles = torch.rad2deg(torch.atan2(-theta[:, 0, 1], theta[:, 1, 1]))
    assert float(angles.abs().max()) <= 20
    assert float(angles.min()) < -15
    assert float(angles.max()) > 15


def test_a_crop_keeps_the_area_and_aspect_asked_for_and_stays_inside():
    config = Augmentation(area=(0.4, 0.9), aspect=(0.8, 1.25))
    theta = sample_affine(1000, config, generator())
    width, height = theta[:, 0, 0], theta[:, 1, 1]
    area, aspect = width * height, width / height
    assert 0.4 - 1e-5 <= float(area.min()) < 0.45
    assert 0.85 < float(area.max()) <= 0.9 + 1e-5
    assert 0.8 - 1e-5 <= float(aspect.min()) < float(aspect.max()) <= 1.25 + 1e-5
    inside = width <= 1
    reach = theta[:, 0, 2].abs() + width
    assert float(reach[inside].max()) <= 1 + 1e-5


def test_an_area_above_one_makes_the_image_smaller_inside_its_own_edge():
    image = torch.zeros(1, 1, 64, 64)
    image[..., 16:48, 16:48] = 1
    theta = sample_affine(1, Augmentation(area=(2.0, 2.0)), generator())
    shown = warp(image, theta)
    assert float(shown.sum()) == pytest.approx(32 * 32 / 2, rel=0.05)


def test_warp_can_change_the_size():
    identity = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    image = smooth_images(1)
    assert warp(image, identity, size=32).shape == (1, 1, 32, 32)
    torch.testing.assert_close(warp(image, identity), image)


def test_a_mask_is_warped_with_its_image():
    image = smooth_images(3)
    both = warp(torch.cat([image, image], dim=1), sample_affine(3, STRONG, generator()))
    assert torch.equal(both[:, 0], both[:, 1])


def test_maps_on_a_image_move_with_it_and_keep_their_values():
    image = smooth_images(3)
    mask = (image > 0.5).float()
    both = augment(torch.cat([image, mask], dim=1), STRONG, generator())
    alone = augment(image, STRONG, generator())
    assert torch.equal(both[:, :1], alone)
    assert torch.equal(both[:, 1:], warp(mask, sample_affine(3, STRONG, generator())))


# Grey levels


@pytest.mark.parametrize(
    "config",
    [
        Augmentation(gamma=0.5),
        Augmentation(contrast=0.3),
        Augmentation(brightness=0.2),
        Augmentation(haze=0.2),
        Augmentation(sharpness=0.5),
        Augmentation(blur=0.03),
        Augmentation(noise=0.1),
        Augmentation(markers=3),
        Augmentation(cutout=0.5),
    ],
    ids=lambda config: next(iter(config.model_fields_set)),
)
def test_each_change_changes_something(config):
    images = smooth_images(8)
    changed = photometric(images, config, generator())
    assert (changed - images).abs().flatten(1).max(dim=1).values.gt(1e-3).any()


def test_noise_has_at_most_the_spread_asked_for():
    grey = torch.full((64, 1, 64, 64), 0.5)
    spread = photometric(grey, Augmentation(noise=0.05), generator()).std(dim=(1, 2, 3))
    assert 0.04 < float(spread.max()) < 0.052
    assert float(spread.min()) < 0.01


def test_blur_softens_an_edge_and_keeps_the_mean():
    edge = torch.zeros(32, 1, 64, 64)
    edge[..., 32:] = 1
    soft = photometric(edge, Augmentation(blur=0.05), generator())
    steps = soft.diff(dim=3).amax(dim=(1, 2, 3))
    assert float(steps.min()) < 0.3
    assert float(steps.max()) > 0.99, "half of the images stay sharp"
    torch.testing.assert_close(soft.mean(dim=(1, 2, 3)), torch.full((32,), 0.5), atol=1e-3, rtol=0)


def test_gamma_leaves_black_and_white_alone():
    ends = torch.tensor([0.0, 1.0]).repeat(4, 1, 8, 4)
    torch.testing.assert_close(
        photometric(ends, Augmentation(gamma=1.0), generator()), ends, atol=0.02, rtol=0
    )


@pytest.mark.parametrize("name", recipe_names())
def test_the_augmentation_of_every_shipped_recipe_runs(name):
    images = torch.cat([smooth_images(2), torch.ones(2, 1, 64, 64)], dim=1)
    changed = augment(images, load_recipe(name).augmentation, generator())
    assert changed.shape == (2, 2, 64, 64)


def test_lungs_only_leaves_the_lungs_and_not_always_in_the_same_shape():
    images = torch.full((16, 1, 64, 64), 0.5)
    lungs = torch.zeros_like(images)
    lungs[..., 16:48, 8:28] = lungs[..., 16:48, 36:56] = 1
    changed = augment(torch.cat([images, lungs], dim=1), Augmentation(lungs_only=1.0), generator())
    torch.testing.assert_close(changed[:, 1:], lungs)
    shown = changed[:, :1] > 0
    assert not shown[..., :8, :].any()
    inside = (shown & (lungs > 0)).sum(dim=(1, 2, 3)) / lungs[0].sum()
    assert inside.mean() > 0.75
    assert inside.std() > 0.01
    assert len({tuple(one.flatten().tolist()) for one in shown}) == 16


def test_an_image_without_known_lungs_is_not_masked():
    images = torch.full((4, 1, 32, 32), 0.5)
    both = torch.cat([images, torch.zeros_like(images)], dim=1)
    torch.testing.assert_close(augment(both, Augmentation(lungs_only=1.0), generator())[:, :1], images)


def test_corners_erase_edges_and_leave_the_middle():
    images = smooth_images(16)
    changed = augment(images, Augmentation(corners=1.0), generator())
    middle = (slice(None), slice(None), slice(20, 44), slice(22, 42))
    torch.testing.assert_close(changed[middle], images[middle])
    differs = (changed - images).abs() > 1e-3
    assert (differs.flatten(1).float().mean(dim=1) > 0.02).float().mean() > 0.9
