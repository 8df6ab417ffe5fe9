from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pneumoscope.data.manifest import Record
from pneumoscope.errors import DataError
from pneumoscope.training import cross_fit as module
from pneumoscope.training.cross_fit import cross_fit
from pneumoscope.training.dataset import Packed
from pneumoscope.training.networks import build_recipe_network, save_weights
from pneumoscope.training.processes import make_fabric
from pneumoscope.training.recipe import Recipe

RECIPE = Recipe.model_validate(
    {
        "name": "tiny",
        "description": "For tests.",
        "classes": ["normal", "pneumonia"],
        "target": {"name": "pneumonia", "classes": ["pneumonia"]},
        "input": {"size": 16},
        "network": {"name": "custom-cnn", "channels": 1, "options": {"widths": [4]}},
        "phases": [{"epochs": 1, "lr": 0.01}],
        "batch": 4,
    }
)


def test_the_hash_of_what_a_run_is_started_with_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pneumoscope.data.drafts.rename", killed)
    with pytest.raises(KeyboardInterrupt):
        module._same(tmp_path / "images.sha256", "other images", np.arange(3))
    assert not list(tmp_path.iterdir())


PARTS = {"fold 1 of 1": np.arange(4)}


@pytest.fixture
def packed():
    labels = np.arange(12) % 2
    grey = np.random.default_rng(0).integers(0, 256, (12, 1, 16, 16), dtype=np.uint8)
    records = tuple(Record(f"{n}.png", RECIPE.classes[label], f"p{n}") for n, label in enumerate(labels))
    return Packed(grey, np.eye(2, dtype=bool)[labels], records)


def test_a_part_that_was_interrupted_while_it_was_written_is_done_again(packed, tmp_path, monkeypatch):
    def killed(file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module.np, "savez", killed)
        cross_fit(RECIPE, packed, PARTS, tmp_path, fabric=make_fabric("cpu"))
    (logits,) = cross_fit(RECIPE, packed, PARTS, tmp_path, fabric=make_fabric("cpu"))
    assert logits.shape == (4, 2)
    assert [one.name for one in (tmp_path / "part-1").glob("held-out*")] == ["held-out.npz"]


def test_a_finished_part_is_of_the_same_images_recipe_and_weights(packed, tmp_path, monkeypatch):
    fabric, out, weights = make_fabric("cpu"), tmp_path / "out", tmp_path / "1.safetensors"
    for seed in (1, 2):
        network = build_recipe_network(RECIPE.model_copy(update={"seed": seed}))
        save_weights(network, tmp_path / f"{seed}.safetensors")
    (first,) = cross_fit(RECIPE, packed, PARTS, out, fabric=fabric, weights=weights)
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("trained again"))
    (again,) = cross_fit(RECIPE, packed, PARTS, out, fabric=fabric, weights=weights)
    assert np.array_equal(first, again)
    message = "started with other folds, sources, --weights or another recipe; use another --out"
    for recipe, other in ((RECIPE, tmp_path / "2.safetensors"), (RECIPE.with_epochs(2), weights)):
        with pytest.raises(DataError, match=message):
            cross_fit(recipe, packed, PARTS, out, fabric=fabric, weights=other)
    less_certain = dataclasses.replace(packed, possible=packed.possible | [True, False])
    more_certain = dataclasses.replace(packed, possible=packed.possible | [False, True])
    for changed in (less_certain, more_certain):
        with pytest.raises(DataError, match="started with other images"):
            cross_fit(RECIPE, changed, PARTS, out, fabric=fabric, weights=weights)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04half", "no logits", "no archive"])
def test_damaged_logits_of_a_part_are_one_line_and_the_part_can_be_done_again(packed, tmp_path, content):
    fabric, stored = make_fabric("cpu"), tmp_path / "part-1" / "held-out.npz"
    (first,) = cross_fit(RECIPE, packed, PARTS, tmp_path, fabric=fabric)
    if content == "no logits":
        np.savez(stored, other=np.arange(3))
    elif content == "no archive":
        with stored.open("wb") as file:
            np.save(file, np.arange(3))
    else:
        stored.write_bytes(content)
    with pytest.raises(DataError, match=r"held-out\.npz: damaged; delete it and repeat the command"):
        cross_fit(RECIPE, packed, PARTS, tmp_path, fabric=fabric)
    stored.unlink()
    (again,) = cross_fit(RECIPE, packed, PARTS, tmp_path, fabric=fabric)
    assert np.array_equal(first, again)


def test_a_damaged_hash_is_one_line(packed, tmp_path):
    (tmp_path / "images.sha256").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="was started with other images"):
        cross_fit(RECIPE, packed, PARTS, tmp_path, fabric=make_fabric("cpu"))
