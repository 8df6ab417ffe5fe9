"""Images packed for training: standardised once, held as bytes, read by index."""

from __future__ import annotations

import collections
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pneumoscope.data.labels import class_index, possible_classes
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.errors import DataError, UnreadableImageError
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.lungs import LungSegmenter
from pneumoscope.image.standardise import InputSpec, find_lungs, mask_of_input, standardise
from pneumoscope.parallel import available_cpus

__all__ = [
    "MAX_UNREADABLE",
    "Packed",
    "check_classes",
    "check_packed",
    "check_split",
    "class_indices",
    "pack",
]

MAX_UNREADABLE = 0.05
"""Share of unreadable images above which a run stops: the data, not the images, is then wrong."""


@dataclass(frozen=True, eq=False)
class Packed:
    """Images ready for a network, with their labels.

    Parameters
    ----------
    images : ndarray of uint8, shape (N, C, S, S)
    possible : ndarray of bool, shape (N, K)
        Classes that each label leaves open: one, or both kinds where it says pneumonia alone.
    records : tuple of Record
        Of the images, in the same order.
    unreadable : tuple of UnreadableImageError
        What was left out.
    lungs : ndarray of uint8, shape (N, 1, S, S), or None
        Where the segmenter finds lungs, 255, or not, 0; None where it was not asked for.
    """

    images: npt.NDArray[np.uint8]
    possible: npt.NDArray[np.bool_]
    records: tuple[Record, ...]
    unreadable: tuple[UnreadableImageError, ...] = ()
    lungs: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Index into the recipe's classes, shape (N,); the first one where several are possible."""
        first: npt.NDArray[np.int64] = self.possible.argmax(axis=1)
        return first

    def subset(self, positions: npt.NDArray[np.intp]) -> Packed:
        """Return some of the images, in the order of `positions`."""
        records = tuple(self.records[position] for position in positions)
        lungs = None if self.lungs is None else self.lungs[positions]
        return Packed(self.images[positions], self.possible[positions], records, lungs=lungs)


def class_indices(records: tuple[Record, ...], classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Return each record's class; bacterial and viral count as pneumonia where the classes know no kinds.

    Raises
    ------
    DataError
        If a label is none of the classes.
    """
    indices = [class_index(record.label, classes, record.path) for record in records]
    return np.array(indices, dtype=np.int64)


def check_classes(manifest: Manifest, classes: tuple[str, ...]) -> None:
    """Reject images that no network can learn from, before they are read.

    Raises
    ------
    DataError
        If there are no images, only one class, a missing class or an unknown label.
    """
    if not len(manifest):
        raise DataError(f"{manifest.root}: no images found; give a folder with one sub-folder per class")
    counts = collections.Counter(class_indices(manifest.records, classes).tolist())
    if len(counts) == 1:
        only = classes[next(iter(counts))]
        raise DataError(f"{manifest.root}: all {len(manifest)} images are {only!r}; a second class is needed")
    missing = [name for position, name in enumerate(classes) if not counts[position]]
    if missing:
        raise DataError(
            f"{manifest.root}: no image of class {', '.join(missing)}; add some or drop the class"
        )


def check_split(manifest: Manifest, classes: tuple[str, ...]) -> None:
    """Reject a split on which no network can be trained, chosen and evaluated.

    Raises
    ------
    DataError
        If a class is missing from the training or the validation images, there is nothing to evaluate, or only
        some of the images have a side.
    """
    if lost := sum(not record.split for record in manifest.records):
        raise DataError(
            f"{manifest.root}: {lost} of {len(manifest)} images have no split; give every image one, or none"
        )
    for side in ("train", "val"):
        labels = class_indices(manifest.subset(side).records, classes)
        _check_present(labels, classes, f"{manifest.root}: split {side!r} has no image")
    if not len(manifest.subset("test")):
        raise DataError(f"{manifest.root}: split 'test' is empty; give it images, or nothing can be reported")


def check_packed(root: Path, classes: tuple[str, ...], **sides: Packed) -> None:
    """Reject to train where too much of what was listed could not be read.

    Parameters
    ----------
    root : Path
        Of the data, for the message.
    **sides : Packed
        By the name of their split.

    Raises
    ------
    DataError
        If more than `MAX_UNREADABLE` of the images are unreadable, or all of one class in a split.
    """
    unreadable = [error for packed in sides.values() for error in packed.unreadable]
    total = len(unreadable) + sum(len(packed) for packed in sides.values())
    if len(unreadable) > MAX_UNREADABLE * total:
        raise DataError(
            f"{root}: {len(unreadable)} of {total} images are unreadable, the first: "
            f"{unreadable[0]}; fix or remove them (see 'pneumoscope data audit')"
        )
    for side, packed in sides.items():
        _check_present(packed.labels, classes, f"{root}: split {side!r} has no readable image")


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
    spec: InputSpec,
    segment: LungSegmenter | None = None,
    *,
    keep_lungs: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Packed:
    """Read and standardise every image of a manifest, on all processors.

    Parameters
    ----------
    segment : LungSegmenter, optional
        Needed where `spec.needs_lungs`, and to keep lungs.
    keep_lungs : bool
        Whether to return where the lungs are.
    progress : callable
        Told the number of images done.

    Returns
    -------
    Packed
        What could be read; see `check_packed`.

    Raises
    ------
    DataError
        If a label is none of the classes.
    """
    possible = _possible(manifest.records, classes)

    def one(record: Record) -> npt.NDArray[np.uint8] | UnreadableImageError:
        try:
            radiograph = read_radiograph(manifest.resolve(record), min_side=spec.decode_side)
        except UnreadableImageError as error:
            return error
        prepared = standardise(radiograph, spec, segment)
        maps = [prepared.pixels]
        if keep_lungs and segment is not None:
            found = prepared.lungs or find_lungs(radiograph, segment)
            mask = mask_of_input(found, prepared.region, prepared.content, spec.size)
            maps.append(mask[None].astype(np.float32))
        return np.rint(np.concatenate(maps) * 255).astype(np.uint8)

    images: list[npt.NDArray[np.uint8]] = []
    kept: list[int] = []
    unreadable: list[UnreadableImageError] = []
    with ThreadPoolExecutor(max_workers=available_cpus()) as pool:
        for index, result in enumerate(pool.map(one, manifest.records)):
            if isinstance(result, UnreadableImageError):
                unreadable.append(result)
            else:
                images.append(result)
                kept.append(index)
            progress(index + 1)
    shape = (0, spec.channels + keep_lungs, spec.size, spec.size)
    stacked = np.stack(images) if images else np.zeros(shape, np.uint8)
    records = tuple(manifest.records[index] for index in kept)
    lungs = stacked[:, spec.channels :] if keep_lungs else None
    return Packed(stacked[:, : spec.channels], possible[kept], records, tuple(unreadable), lungs)


def _possible(records: tuple[Record, ...], classes: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    possible = np.zeros((len(records), len(classes)), dtype=np.bool_)
    for row, record in zip(possible, records, strict=True):
        row[list(possible_classes(record.label, classes, record.path))] = True
    return possible
