"""The images of an experiment: labels checked, split, read and standardised."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumoscope.data.audit import inspect
from pneumoscope.data.folder import load
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.data.split import group_records, split
from pneumoscope.errors import DataError
from pneumoscope.experiment.plan import Experiment
from pneumoscope.model.bundle import default_bundle_path
from pneumoscope.model.limits import GateLimits
from pneumoscope.model.lungs import LUNGS_FILE, LungsOnBlack, OnnxLungSegmenter
from pneumoscope.parallel import Progress
from pneumoscope.predict.cache import ImageCache
from pneumoscope.predict.pipeline import Pipeline
from pneumoscope.training.dataset import Packed, check_classes, check_split, joined, pack
from pneumoscope.training.recipe import Recipe, SplitSpec

__all__ = [
    "additional_images",
    "are_of",
    "by_source",
    "divide",
    "limited",
    "lung_segmenter",
    "named_by_source",
    "pack_images",
    "prepare_manifest",
    "whole_radiographs",
    "with_additional",
]

log = logging.getLogger(__name__)

# Images of a source for its rate of rejection to mean something.
LEAST_OF_A_SOURCE = 100
OTHER_SOURCES = "training data"


def prepare_manifest(
    manifest: Manifest, recipe: Recipe, *, limit: int | None = None, progress: Progress | None = None
) -> Manifest:
    """Check labels, limit the images of each class, and split where the manifest has no split yet.

    Raises
    ------
    DataError
        For data that no network can be trained on.
    """
    classes, target = recipe.output_classes, recipe.output_target
    check_classes(manifest, classes, target)
    if limit is not None:
        manifest = limited(manifest, limit, recipe.seed)
    if not manifest.has_split:
        manifest = divide(manifest, recipe.split, progress)
    check_split(manifest, classes, target)
    return manifest


def divide(manifest: Manifest, how: SplitSpec, progress: Progress | None = None) -> Manifest:
    """Split a manifest; by patient means that copies of an image stay in one split too."""
    copies = inspect(manifest, progress=progress).groups if how.method == "patient" else None
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
    """Return the segmenter that the recipe needs, or None.

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
            f"{path}: no lung segmenter; train one with 'pneumoscope train-lungs', or give --lungs FILE"
        )
    return path


def additional_images(data: Path, manifest: Manifest, progress: Progress | None = None) -> Manifest:
    """Return the images of an additional data set that may be trained on.

    Copies of a validation or test image, by content or by the patient of a DICOM header, and all images of
    such a patient, of one source and patient identifier, are left out, also in a chain.

    Parameters
    ----------
    data : Path
        Its images without a split, and those of split ``train``, are used.
    manifest : Manifest
        The data set itself, with its split.
    """
    more = load(data, progress=progress)
    more = more.with_records(record for record in more.records if record.split in ("", "train"))
    held_out = [record for record in manifest.records if record.split in ("val", "test")]
    absolute = [
        replace(named_by_source(record), path=str(part.resolve(record).resolve()))
        for part in (manifest.with_records(held_out), more)
        for record in part.records
    ]
    if len({record.path for record in absolute}) < len(absolute):
        raise DataError(f"{data}: lists validation or test images; give a data set of other images")
    both = more.with_records(absolute)
    groups = group_records(both, inspect(both, progress=progress).groups)
    related = {position for group in groups if min(group) < len(held_out) for position in group}
    kept = [record for position, record in enumerate(more.records, len(held_out)) if position not in related]
    if lost := len(more) - len(kept):
        log.warning(
            "%s: %d images are copies of validation or test images, or of their patients, and are left out",
            data,
            lost,
        )
    return more.with_records(kept)


def with_additional(train: Manifest, added: Manifest | None) -> Manifest:
    """Add the images of an additional data set to the training images."""
    if added is None:
        return train
    renamed = [
        replace(named_by_source(record), path=str(added.resolve(record).resolve()), split="train")
        for record in added.records
    ]
    return train.with_records([*train.records, *renamed])


def named_by_source(record: Record) -> Record:
    """Return a record whose patient is named by source and identifier, which another source may use too."""
    return replace(record, patient_id=f"{record.source}/{record.patient_id}")


def by_source(train: Manifest) -> dict[str, Manifest]:
    """Divide training images by source; those of small sources, or of none, stay together."""
    count = Counter(record.source for record in train.records)
    parts: dict[str, list[Record]] = {}
    for record in train.records:
        large = record.source and count[record.source] >= LEAST_OF_A_SOURCE
        parts.setdefault(record.source if large else OTHER_SOURCES, []).append(record)
    return {name: train.with_records(records) for name, records in parts.items()}


def whole_radiographs(manifest: Manifest, recipe: Recipe) -> Manifest:
    """Leave out the images of the recipe's `lungs_only` sources, which are for training the network only."""
    return manifest.with_records(
        record for record in manifest.records if record.source not in recipe.lungs_only
    )


def are_of(records: Sequence[Record], first: Manifest) -> npt.NDArray[np.bool_]:
    """Return which records are of the data set itself and not additional, shape (N,)."""
    own = {record.path for record in first.records}
    return np.array([record.path in own for record in records], np.bool_)


def pack_images(
    images: Manifest, recipe: Recipe, lungs: Path | None, cache: ImageCache | None, progress: Progress
) -> Packed:
    """Read and standardise images for a recipe, and log how many are left out.

    The gate has its default limits, since the bundle's own is fitted later. Images of the recipe's
    `lungs_only` sources come last.
    """
    segmenter = OnnxLungSegmenter(lungs) if lungs else None
    whole = Pipeline(recipe.input, GateLimits(), segmenter=segmenter, cache=cache)
    pipelines: dict[str | None, Pipeline] = {None: whole}
    for levels in sorted(set(recipe.lungs_only.values())):
        masked = LungsOnBlack(inverted=levels == "inverted")
        pipelines[levels] = Pipeline(recipe.input, GateLimits(), segmenter=masked, force=True, cache=cache)
    parts = []
    for kind, pipeline in pipelines.items():
        own = images.with_records(
            record for record in images.records if recipe.lungs_only.get(record.source) == kind
        )
        if len(own):
            parts.append(
                pack(
                    own,
                    recipe.output_classes,
                    pipeline,
                    target=recipe.output_target,
                    keep_lungs=recipe.needs_lung_masks,
                    keep_boxes=recipe.tasks.boxes > 0,
                    progress=progress,
                )
            )
    packed = joined(parts)
    for status, count in Counter(one.status for one in packed.left_out).items():
        log.warning("%d of %d images are %s and left out", count, len(images), status)
    return packed
