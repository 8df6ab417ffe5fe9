"""Images packed for training: prepared once by the pipeline, held as bytes, read by index."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumoscope.data.labels import check_labels, possible_classes
from pneumoscope.data.manifest import Manifest, Record, ShareBox, parse_boxes
from pneumoscope.domain import Status, Target
from pneumoscope.errors import CAUTIONS, DataError
from pneumoscope.image.standardise import Standardised, mask_of_input, rotated_box
from pneumoscope.parallel import Progress, available_cpus, in_order
from pneumoscope.predict.inputs import input_items
from pneumoscope.predict.pipeline import Pipeline
from pneumoscope.predict.prepared import Prepared
from pneumoscope.training.sections import Sampling

__all__ = [
    "MAX_REJECTED",
    "MAX_UNREADABLE",
    "LeftOut",
    "Packed",
    "check_classes",
    "check_held_out",
    "check_packed",
    "check_split",
    "class_indices",
    "draw_chances",
    "joined",
    "no_images",
    "one_class",
    "pack",
]

MAX_UNREADABLE = 0.05
"""Share of unreadable images above which a run stops: the data set itself is then damaged."""

MAX_REJECTED = 0.5
"""Share of rejected images above which a run stops: the data are then not frontal chest radiographs."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An image that is not used, and why.

    Parameters
    ----------
    path : str
    status : {"rejected", "unreadable"}
    reason : str
        Code of a `Reason`.
    detail : str
        One sentence.
    """

    path: str
    status: Status
    reason: str
    detail: str


@dataclass(frozen=True, eq=False)
class Packed:
    """Images ready for a network, with their labels.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, 1, S, S)
    possible : ndarray of bool, shape (N, K)
        Classes that each label leaves open: one, or all of the target where it names only that.
    records : tuple of Record
        Of the images, in the same order.
    left_out : tuple of LeftOut
        The other images: unreadable, or rejected by the gate.
    lungs, boxes : ndarray of uint8, shape (N, 1, S, S), or None
        255 inside the lungs, or inside the boxes that a reader drew, and 0 outside; None where they were not
        requested.
    """

    images: npt.NDArray[np.uint8]
    possible: npt.NDArray[np.bool_]
    records: tuple[Record, ...]
    left_out: tuple[LeftOut, ...] = ()
    lungs: npt.NDArray[np.uint8] | None = None
    boxes: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Index of the class, shape (N,); the first one where the label leaves several open."""
        first: npt.NDArray[np.int64] = self.possible.argmax(axis=1)
        return first

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Each image's share in each class, shape (N, K): equal parts where the label leaves several open."""
        shares: npt.NDArray[np.float64] = self.possible / self.possible.sum(axis=1, keepdims=True)
        return shares

    def subset(self, positions: npt.NDArray[np.intp]) -> Packed:
        """Return some of the images, in the order of `positions`."""
        records = tuple(self.records[position] for position in positions)
        lungs, boxes = (None if maps is None else maps[positions] for maps in (self.lungs, self.boxes))
        return Packed(self.images[positions], self.possible[positions], records, lungs=lungs, boxes=boxes)


def joined(parts: Sequence[Packed]) -> Packed:
    """Return the images of several parts, which were packed alike, one part after the other."""
    if len(parts) == 1:
        return parts[0]

    def together(maps: list[npt.NDArray[np.uint8] | None]) -> npt.NDArray[np.uint8] | None:
        known = [one for one in maps if one is not None]
        return np.concatenate(known) if len(known) == len(maps) else None

    return Packed(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.possible for part in parts]),
        tuple(record for part in parts for record in part.records),
        tuple(one for part in parts for one in part.left_out),
        together([part.lungs for part in parts]),
        together([part.boxes for part in parts]),
    )


def class_indices(
    records: tuple[Record, ...], classes: tuple[str, ...], target: Target | None = None
) -> npt.NDArray[np.int64]:
    """Return the class of each record; where a label leaves several open, the first of them.

    Raises
    ------
    DataError
        If a label is none of the classes.
    """
    indices = [possible_classes(record.label, classes, record.path, target)[0] for record in records]
    return np.array(indices, dtype=np.int64)


def no_images(manifest: Manifest) -> DataError:
    """Return the error for a data set without images."""
    return DataError(f"{manifest.name}: no images found; give a folder with one subfolder per class")


def one_class(manifest: Manifest, only: str) -> DataError:
    """Return the error for a data set whose images have all the same label."""
    return DataError(f"{manifest.name}: all {len(manifest)} images are {only!r}; a second class is needed")


def check_classes(manifest: Manifest, classes: tuple[str, ...], target: Target | None = None) -> None:
    """Reject data that no network can be trained on, before any image is read.

    Raises
    ------
    DataError
        If there are no images, only one class, a missing class or an unknown label.
    """
    if not len(manifest):
        raise no_images(manifest)
    labels = (record.label for record in manifest.records)
    check_labels(labels, classes, manifest.name, target, training=True)
    counts = collections.Counter(class_indices(manifest.records, classes, target).tolist())
    if len(counts) == 1:
        raise one_class(manifest, classes[next(iter(counts))])
    missing = [name for position, name in enumerate(classes) if not counts[position]]
    if missing:
        raise DataError(
            f"{manifest.name}: no image of class {', '.join(missing)}; add some or drop the class"
        )


def check_split(manifest: Manifest, classes: tuple[str, ...], target: Target | None = None) -> None:
    """Reject a split on which no network can be trained, validated and tested.

    Raises
    ------
    DataError
        If a class is missing from the training or the validation images, there are no test images, or only
        some of the images have a split.
    """
    if lost := sum(not record.split for record in manifest.records):
        raise DataError(
            f"{manifest.name}: {lost} of {len(manifest)} images have no split; give every image one, or none"
        )
    for side in ("train", "val"):
        labels = class_indices(manifest.subset(side).records, classes, target)
        _check_present(labels, classes, f"{manifest.name}: split {side!r} has no image")
    if not len(manifest.subset("test")):
        raise DataError(f"{manifest.name}: split 'test' is empty; add images to it, for the evaluation")


def check_held_out(
    data: str, positive: npt.NDArray[np.bool_], parts: Mapping[str, npt.NDArray[np.intp]]
) -> None:
    """Check that each part has images with the target and without, and that so have the others without it.

    Parameters
    ----------
    data : str
        The data, for the message.
    positive : ndarray of bool, shape (N,)
        Which images have the target.
    parts : mapping of str to ndarray of intp
        Names of the parts, and positions of the images that each holds out.

    Raises
    ------
    DataError
        If there are only images of one kind, so that nothing can be trained or evaluated.
    """
    for name, held_out in parts.items():
        inside = np.zeros(len(positive), np.bool_)
        inside[held_out] = True
        for side, which in ((name, inside), (f"all but {name}", ~inside)):
            if len(set(positive[which].tolist())) < 2:
                raise DataError(
                    f"{data}: {side}: has images with the target only, or without it only; use fewer folds, "
                    "or leave out another source"
                )


def check_packed(data: str, classes: tuple[str, ...], **sides: Packed) -> None:
    """Stop where too many of the listed images are unreadable or rejected.

    Parameters
    ----------
    data : str
        The data, for the message.
    **sides : Packed
        By the name of their split.

    Raises
    ------
    DataError
        If more than `MAX_UNREADABLE` of the images are unreadable, more than `MAX_REJECTED` are rejected, or
        no image of one class is left in a split.
    """
    total = sum(len(packed) + len(packed.left_out) for packed in sides.values())
    for status, limit, fix in (
        ("unreadable", MAX_UNREADABLE, "fix or remove them (see 'pneumoscope data audit')"),
        ("rejected", MAX_REJECTED, "use frontal chest radiographs in full"),
    ):
        found = [one for packed in sides.values() for one in packed.left_out if one.status == status]
        if len(found) > limit * total:
            raise DataError(
                f"{data}: {len(found)} of {total} images are {status}, the first: {found[0].path}: "
                f"{found[0].detail}; {fix}"
            )
    for side, packed in sides.items():
        _check_present(packed.labels, classes, f"{data}: split {side!r} has no usable image")


def _check_present(labels: npt.NDArray[np.int64], classes: tuple[str, ...], lead: str) -> None:
    present = set(labels.tolist())
    lacking = [name for position, name in enumerate(classes) if position not in present]
    if lacking:
        raise DataError(
            f"{lead} of class {', '.join(lacking)}; add images or split again with other fractions"
        )


def pack(
    manifest: Manifest,
    classes: tuple[str, ...],
    pipeline: Pipeline,
    *,
    target: Target | None = None,
    keep_lungs: bool = False,
    keep_boxes: bool = False,
    progress: Progress | None = None,
) -> Packed:
    """Prepare every image of a manifest with the pipeline that prediction uses, on all CPUs.

    Parameters
    ----------
    target : Target, optional
        For labels that name the target and not one of its classes.
    keep_lungs : bool
        Return the lung masks too; the pipeline must have a segmenter.
    keep_boxes : bool
        Return the boxes of the records too.

    Returns
    -------
    Packed
        The images that passed; see `check_packed`.

    Raises
    ------
    DataError
        If a label is none of the classes.
    """
    progress = progress or Progress()
    possible = np.zeros((len(manifest), len(classes)), dtype=np.bool_)
    for row, record in zip(possible, manifest.records, strict=True):
        row[list(possible_classes(record.label, classes, record.path, target))] = True
    size = pipeline.spec.size
    images = np.zeros((len(manifest), 1, size, size), np.uint8)
    lungs = np.zeros_like(images) if keep_lungs else None
    boxes = np.zeros_like(images) if keep_boxes else None
    kept: list[int] = []
    left_out: list[LeftOut] = []
    prepared = in_order(input_items(manifest), pipeline.read, workers=available_cpus())
    for index, one in enumerate(prepared):
        if one.input is None:
            left_out.append(_left_out(one))
        else:
            images[len(kept)] = np.rint(one.input.pixels * 255)
            if lungs is not None:
                lungs[len(kept)] = _lung_mask(one.input)
            if boxes is not None:
                record = manifest.records[index]
                boxes[len(kept)] = _box_mask(one.input, parse_boxes(record.path, record.boxes))
            kept.append(index)
        progress.update(index + 1, len(manifest))
    return Packed(
        images[: len(kept)],
        possible[kept],
        tuple(manifest.records[index] for index in kept),
        tuple(left_out),
        None if lungs is None else lungs[: len(kept)],
        None if boxes is None else boxes[: len(kept)],
    )


def _lung_mask(image: Standardised) -> npt.NDArray[np.uint8]:
    """Return the lungs in the input, 0 or 255, shape (S, S); all 0 where none were found."""
    assert image.lungs is not None
    mask = mask_of_input(image.lungs, image.region, image.content, image.pixels.shape[-1])
    return mask.astype(np.uint8) * np.uint8(255)


def _box_mask(image: Standardised, boxes: tuple[ShareBox, ...]) -> npt.NDArray[np.uint8]:
    """Return boxes of the whole image in the input, 0 or 255, shape (S, S)."""
    side = image.pixels.shape[-1]
    top, left, bottom, right = image.region
    upper, near, lower, far = image.content
    mask = np.zeros((side, side), np.uint8)
    for x, y, width, height in boxes:
        first, begin, last, end = rotated_box((y, x, y + height, x + width), image.quarter_turns)
        rows = [upper + (lower - upper) * (edge - top) / (bottom - top) for edge in (first, last)]
        columns = [near + (far - near) * (edge - left) / (right - left) for edge in (begin, end)]
        first_row, last_row = (round(float(np.clip(row, 0, 1)) * side) for row in rows)
        first_column, last_column = (round(float(np.clip(column, 0, 1)) * side) for column in columns)
        mask[first_row:last_row, first_column:last_column] = 255
    return mask


def _left_out(one: Prepared) -> LeftOut:
    reason = next(reason for reason in one.reasons if reason not in CAUTIONS)
    return LeftOut(one.path, one.status, reason.value, one.message)


def draw_chances(records: Sequence[Record], sampling: Sampling) -> npt.NDArray[np.float64]:
    """Return the chance of each image in a draw, up to a factor, shape (N,); see `Sampling`."""
    groups = [(record.source, record.label, record.view) for record in records]
    sizes = collections.Counter(groups)
    return np.array([sizes[group] ** (sampling.exponent - 1) for group in groups], np.float64)
