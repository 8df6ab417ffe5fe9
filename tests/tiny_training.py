"""A network that learns in seconds, and what tests of its training share."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import torch

from pneumoscope.data.manifest import Record
from pneumoscope.parallel import Progress
from pneumoscope.training import fit as fit_module
from pneumoscope.training.dataset import Packed
from pneumoscope.training.fit import fit
from pneumoscope.training.history import HISTORY_FILE, Epoch
from pneumoscope.training.networks import build_network
from pneumoscope.training.recipe import Recipe

__all__ = [
    "CONTENT",
    "EXPERT_SIZE",
    "LOSSES",
    "PATIENT",
    "TWO_PHASES",
    "WITH_EXPERT",
    "Killed",
    "Watch",
    "aged",
    "assert_same_weights",
    "history_of",
    "images",
    "recipe",
    "rows_of",
    "scripted",
    "trained",
    "with_expert",
]

CONTENT = {
    "name": "tiny",
    "description": "For tests.",
    "classes": ["normal", "pneumonia"],
    "input": {"size": 16},
    "network": {"name": "custom-cnn", "channels": 1, "dropout": 0.2, "options": {"widths": [4, 8]}},
    "phases": [{"epochs": 4, "lr": 0.02}],
    "batch": 8,
    "keep": "last",
}

# Of validation, by epoch, for a recipe whose first phase they end early.
PATIENT = {"phases": [{"epochs": 6, "lr": 0.02, "frozen": 2}, {"epochs": 4, "lr": 0.01}], "patience": 2}
LOSSES = [0.5, 0.3, 0.4, 0.31, 0.6, 0.5, 0.55, 0.52]


WITH_EXPERT = {
    "name": "test_efficientnet",
    "channels": 1,
    "pyramid": 8,
    "expert": {"population": {"name": "preschool", "ages": [0, 5]}},
}
EXPERT_SIZE = 64
TWO_PHASES = [{"epochs": 2, "lr": 0.01}, {"epochs": 2, "lr": 0.01, "expert": True}]


def recipe(**changes):
    return Recipe.model_validate(CONTENT | changes)


def images(count=32, seed=0, share=0.5):
    """Pneumonia is a bright right half."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) < share * count).astype(np.int64)
    grey = rng.integers(60, 120, (count, 1, 16, 16))
    grey[labels == 1, :, :, 8:] += 80
    records = tuple(Record(f"{i}.png", "normal", f"p{i}", source=f"s{i % 3}") for i in range(count))
    lungs = np.zeros((count, 1, 16, 16), np.uint8)
    lungs[:, :, 4:12, 2:14] = 255
    return Packed(grey.astype(np.uint8), np.eye(2, dtype=bool)[labels], records, lungs=lungs)


def with_expert(**changes):
    """Return a recipe whose network has an expert for young children, which its second phase trains."""
    content = {"network": WITH_EXPERT, "input": {"size": EXPERT_SIZE}, "phases": TWO_PHASES}
    return recipe(**content | changes)


def aged(count=32, seed=0):
    """Images whose first half are children; they are darker than the adults, so that a gate can tell."""
    rng = np.random.default_rng(seed)
    plain = images(count, seed)
    grey = (
        rng.integers(0, 8, (count, 1, EXPERT_SIZE, EXPERT_SIZE))
        + np.where(np.arange(count) % 2, 180, 0)[:, None, None, None]
    )
    ages = [40.0 if number % 2 else 5.0 for number in range(count)]
    records = tuple(replace(one, age=age) for one, age in zip(plain.records, ages, strict=True))
    return replace(plain, images=grey.astype(np.uint8), records=records, lungs=None)


class Watch(Progress):
    """Calls a function with the number of each epoch that is done."""

    def __init__(self, on_epoch=lambda _: None):
        self.on_epoch, self.lines = on_epoch, []

    def message(self, line):
        self.lines.append(line)
        self.on_epoch(int(line.split()[1].split("/")[0]))


def rows_of(run):
    """Return the history of a run."""
    with (run / HISTORY_FILE).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    counts = ("epoch", "phase")
    return [
        Epoch(**{name: int(v) if name in counts else float(v) for name, v in row.items()}) for row in rows
    ]


def trained(made, run, fabric, *, train=None, val=None, seed=0, **options):
    run.mkdir(exist_ok=True)
    network = build_network(made.network, 2, seed=seed)
    train, val = train or images(), val or images(16, seed=1)
    return fit(made, network, train, val, run, fabric=fabric, **options)


def assert_same_weights(first, second):
    theirs = second.state_dict()
    for key, value in first.state_dict().items():
        assert torch.equal(value, theirs[key]), key


class Killed(BaseException):
    """Like a signal: nothing catches it."""


def history_of(run):
    with (run / HISTORY_FILE).open(encoding="utf-8") as file:
        return [
            {name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)
        ]


def scripted(monkeypatch, losses):
    """Let validation find these losses, one an epoch."""
    left = iter(losses)
    monkeypatch.setattr(fit_module._Trainer, "_validate", lambda self: (next(left), 0.5, 0.5))
