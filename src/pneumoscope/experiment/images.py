"""The images of an experiment: labels checked, divided, read and standardised."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumoscope.data.audit import examine
from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.data.split import split
from pneumoscope.errors import DataError
from pneumoscope.experiment.plan import Experiment, Progress
from pneumoscope.model.bundle import default_bundle_path
from pneumoscope.model.lungs import LUNGS_FILE, OnnxLungSegmenter
from pneumoscope.training.dataset import Packed, check_classes, check_split, pack
from pneumoscope.training.recipe import Recipe, SplitSpec

__all__ = [
    "are_of",
    "by_data_set",
    "divide",
    "images_to_add",
    "limited",
    "lung_segmenter",
    "pack_images",
    "prepare_manifest",
    "with_more",
]

log = logging.getLogger(__name__)


def prepare_manifest(manifest: Manifest, recipe: Recipe, *, limit: int | None = None) -> Manifest:
    """Check labels, cut to `limit` images a class, and split where the manifest has no split yet.

    Raises
    ------
    DataError
        For data that no network can learn from.
    """
    check_classes(manifest, recipe.classes)
    if limit is not None:
        manifest = limited(manifest, limit, recipe.seed)
    if not manifest.has_split:
        manifest = divide(manifest, recipe.split)
    check_split(manifest, recipe.classes)
    return manifest


def divide(manifest: Manifest, how: SplitSpec) -> Manifest:
    """Split a manifest; by patient means that copies of a image stay on one side too."""
    copies = examine(manifest).groups if how.method == "patient" else None
    return split(manifest, fractions=how.fractions, seed=how.seed, method=how.method, duplicates=copies)


def limited(manifest: Manifest, limit: int, seed: int) -> Manifest:
    """Return at most `limit` images of each class, chosen by seed."""
    order = np.random.default_rng(seed).permutation(len(manifest))
    taken: dict[str, int] = {}
    kept = []
    for index in order:
        label = manifest.records[index].label
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= limit:
            kept.append(int(index))
    return manifest.with_records(tuple(manifest.records[index] for index in sorted(kept)))


def lung_segmenter(experiment: Experiment) -> Path | None:
    """Return the segmenter that the recipe's input needs, or None.

    Raises
    ------
    DataError
        If there is none.
    """
    if not experiment.recipe.needs_lungs:
        return None
    path = experiment.lungs or default_bundle_path() / LUNGS_FILE
    if not path.is_file():
        raise DataError(
            f"{path}: no lung segmenter; train one by 'pneumoscope train-lungs', or give --lungs FILE"
        )
    return path


def images_to_add(also: Path, manifest: Manifest) -> Manifest:
    """Return the images of a second set that are there to learn from.

    Copies of a validation or test image, by content or by the patient of a DICOM header, are left out.

    Parameters
    ----------
    also : Path
        Its images without a split, and those of split ``train``, are taken.
    manifest : Manifest
        The data set itself, with its split.
    """
    more = load(also)
    more = more.with_records(record for record in more.records if record.split in ("", "train"))
    held_out = [record for record in manifest.records if record.split in ("val", "test")]
    absolute = [
        replace(record, path=str(part.resolve(record).resolve()))
        for part in (manifest.with_records(held_out), more)
        for record in part.records
    ]
    if len({record.path for record in absolute}) < len(absolute):
        raise DataError(f"{also}: lists images that are held out; give a set of its own")
    copies = {
        position - len(held_out)
        for group in examine(more.with_records(absolute)).groups
        if min(group) < len(held_out)
        for position in group
    }
    kept = [record for position, record in enumerate(more.records) if position not in copies]
    if lost := len(more) - len(kept):
        log.warning("%s: %d images are copies of held-out ones and are left out", also, lost)
    return more.with_records(kept)


def with_more(train: Manifest, added: Manifest | None) -> Manifest:
    """Add the images of a second set to what is learnt from."""
    if added is None:
        return train
    renamed = [
        replace(
            record,
            path=str(added.resolve(record).resolve()),
            patient_id=f"{record.source}/{record.patient_id}",
            split="train",
        )
        for record in added.records
    ]
    return train.with_records([*train.records, *renamed])


def by_data_set(learnt: Manifest, first: Manifest) -> list[Manifest]:
    """Divide what was learnt from into the data set itself and what was added to it."""
    mine = are_of(learnt.records, first)
    parts = (np.flatnonzero(side) for side in (mine, ~mine))
    return [learnt.with_records(learnt.records[row] for row in part) for part in parts if part.size]


def are_of(records: Sequence[Record], first: Manifest) -> npt.NDArray[np.bool_]:
    """Tell which records are of the data set itself, and were not added to it; shape (N,)."""
    own = {record.path for record in first.records}
    return np.array([record.path in own for record in records], np.bool_)


def pack_images(records: Manifest, recipe: Recipe, lungs: Path | None, progress: Progress) -> Packed:
    """Read and standardise images as a recipe says, telling how far it is."""
    segment = OnnxLungSegmenter(lungs) if lungs else None
    packed = pack(
        records,
        recipe.classes,
        recipe.input,
        segment,
        keep_lungs=recipe.tasks.lungs > 0,
        progress=lambda done: progress.on_images(done, len(records)),
    )
    if packed.unreadable:
        log.warning("%d of %d images are unreadable and left out", len(packed.unreadable), len(records))
    return packed
