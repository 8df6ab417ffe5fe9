from __future__ import annotations

import numpy as np
import pytest

from pneumoscope.data.manifest import Record
from pneumoscope.training import cross_fit as module
from pneumoscope.training.cross_fit import cross_fit
from pneumoscope.training.dataset import Packed
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


def test_a_part_that_was_interrupted_while_it_was_written_is_done_again(tmp_path, monkeypatch):
    labels = np.arange(12) % 2
    grey = np.random.default_rng(0).integers(0, 256, (12, 1, 16, 16), dtype=np.uint8)
    records = tuple(Record(f"{n}.png", RECIPE.classes[label], f"p{n}") for n, label in enumerate(labels))
    packed = Packed(grey, np.eye(2, dtype=bool)[labels], records)
    parts = {"fold 1 of 1": np.arange(4)}

    def killed(file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module.np, "savez", killed)
        cross_fit(RECIPE, packed, parts, tmp_path, fabric=make_fabric("cpu"))
    (logits,) = cross_fit(RECIPE, packed, parts, tmp_path, fabric=make_fabric("cpu"))
    assert logits.shape == (4, 2)
    assert [one.name for one in (tmp_path / "part-1").glob("held-out*")] == ["held-out.npz"]
