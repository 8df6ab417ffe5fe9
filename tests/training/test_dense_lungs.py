from __future__ import annotations

import pytest
import torch

from pneumoscope.training import dense_lungs
from pneumoscope.training.dense_lungs import draw_dense_lungs

SIDE = 64


@pytest.fixture
def lungs():
    mask = torch.zeros(8, 1, SIDE, SIDE)
    mask[:, :, 16:48, 8:24] = mask[:, :, 16:48, 40:56] = 1
    return mask


@pytest.fixture
def images(lungs):
    """Dark lungs in grey."""
    return torch.where(lungs > 0, 0.1, 0.5) + 0.05 * torch.rand(lungs.shape)


def drawn(images, lungs, share=1.0, seed=0):
    return draw_dense_lungs(images, lungs, share, torch.Generator().manual_seed(seed))


def test_opacities_are_in_the_lungs_and_never_darker(images, lungs, monkeypatch):
    monkeypatch.setattr(dense_lungs, "LINES", 0)
    change = drawn(images, lungs) - images
    assert change.min() >= 0
    assert (change.amax(dim=(1, 2, 3)) > 0.02).all()
    far = torch.ones(SIDE, SIDE, dtype=torch.bool)
    far[12:52, 4:60] = False
    assert change[:, :, far].max() == 0


def test_lines_are_bright_and_cross_the_image(images, lungs, monkeypatch):
    monkeypatch.setattr(dense_lungs, "SHOWN", 1.0)
    change = drawn(images, torch.zeros_like(lungs)) - images
    assert change.min() >= 0
    assert (change.flatten(1) > 0.05).float().mean(dim=1).max() < 0.2
    assert (change.amax(dim=(1, 2, 3)) > 0.05).all()


def test_no_image_is_changed_without_a_share_and_some_with_half(images, lungs):
    assert torch.equal(drawn(images, lungs, share=0.0), images)
    changed = (drawn(images, lungs, share=0.5) != images).any(dim=(1, 2, 3))
    assert 0 < changed.sum() < len(images)


def test_the_same_seed_draws_the_same(images, lungs):
    assert torch.equal(drawn(images, lungs, seed=3), drawn(images, lungs, seed=3))
    assert not torch.equal(drawn(images, lungs, seed=3), drawn(images, lungs, seed=4))
