"""The images that the trials of a search are trained and scored on: splits ``train`` and ``val`` only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from pneumoscope.data.audit import inspect
from pneumoscope.data.drafts import replacing
from pneumoscope.data.manifest import Manifest
from pneumoscope.data.split import folds
from pneumoscope.experiment.images import lung_segmenter, pack_images
from pneumoscope.experiment.plan import Experiment
from pneumoscope.experiment.run_folder import SPLIT_FILE, read_note
from pneumoscope.parallel import Progress
from pneumoscope.training.dataset import Packed, check_held_out, check_packed, joined
from pneumoscope.training.recipe import Recipe

__all__ = ["FOLDS_FILE", "TrialImages", "divide_folds"]

FOLDS_FILE = "folds.json"


def divide_folds(out: Path, manifest: Manifest, count: int, seed: int, progress: Progress) -> None:
    """Divide the images of splits ``train`` and ``val`` into folds of patients, and write them.

    Copies of an image stay in one fold. The file has the paths of each fold's images.
    """
    pool = manifest.with_records(one for one in manifest.records if one.split in ("train", "val"))
    groups = inspect(pool, progress=progress).groups
    parts = folds(pool, count, seed, duplicates=groups)
    paths = [[pool.records[position].path for position in part] for part in parts]
    with replacing(out / FOLDS_FILE) as file:
        file.write(json.dumps(paths) + "\n")


class TrialImages:
    """Standardised images by what a recipe does with them; recipes that do the same share them.

    Parameters
    ----------
    experiment : Experiment
        Its folder holds ``split.csv`` and, for cross-validation, ``folds.json``.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._manifest = Manifest.read(experiment.out / SPLIT_FILE)
        path = experiment.out / FOLDS_FILE
        self._folds = read_note(path, list) if path.exists() else []
        # The images of one recipe only: a search over the input size would fill the memory.
        self._kept: tuple[object, Packed, Packed] | None = None

    def parts(self, recipe: Recipe, progress: Progress | None = None) -> Iterator[tuple[Packed, Packed]]:
        """Yield training and validation images of each part that a trial is scored on.

        Raises
        ------
        DataError
            If too many images are unreadable or rejected.
        """
        train, val = self._packed(recipe, progress or Progress())
        if not self._folds:
            yield train, val
            return
        pool = joined([train, val])
        paths = np.array([record.path for record in pool.records])
        folds = {
            f"fold {number} of {len(self._folds)}": np.flatnonzero(np.isin(paths, held_out))
            for number, held_out in enumerate(self._folds, start=1)
        }
        check_held_out(self._manifest.name, recipe.target_mask[pool.labels], folds)
        for held_out in folds.values():
            others = np.setdiff1d(np.arange(len(pool)), held_out)
            yield pool.subset(others), pool.subset(held_out)

    def _packed(self, recipe: Recipe, progress: Progress) -> tuple[Packed, Packed]:
        # Only keys of `FIXED` decide on the rest of what is packed; they are the same in all trials.
        key = (recipe.input, recipe.needs_lung_masks, recipe.tasks.boxes > 0)
        if self._kept is None or self._kept[0] != key:
            self._kept = None
            experiment, manifest = replace(self.experiment, recipe=recipe), self._manifest
            lungs, cache = lung_segmenter(experiment), experiment.open_cache()
            train, val = (
                pack_images(manifest.subset(side), recipe, lungs, cache, progress)
                for side in ("train", "val")
            )
            check_packed(manifest.name, recipe.output_classes, train=train, val=val)
            self._kept = (key, train, val)
        return self._kept[1], self._kept[2]
