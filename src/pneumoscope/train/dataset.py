"""Pictures packed for training: standardised once, held as bytes, read by index."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumoscope.data.labels import class_index
from pneumoscope.data.manifest import Manifest, Record
from pneumoscope.domain import DataError, UnreadableImageError
from pneumoscope.image.decode import read_radiograph
from pneumoscope.image.lungs import LungSegmenter
from pneumoscope.image.standardise import InputSpec, standardise

__all__ = ["MAX_UNREADABLE", "Packed", "check_classes", "class_indices", "pack"]

MAX_UNREADABLE = 0.05
"""Share of unreadable pictures above which a run stops: the data, not the pictures, is then wrong."""


@dataclass(frozen=True, eq=False)
class Packed:
    """Pictures ready for a network, with their labels.

    Parameters
    ----------
    pictures : ndarray of uint8, shape (N, C, S, S)
    labels : ndarray of int64, shape (N,)
        Index into the recipe's classes.
    records : tuple of Record
        Of the pictures, in the same order.
    unreadable : tuple of UnreadableImageError
        What was left out.
    """

    pictures: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    records: tuple[Record, ...]
    unreadable: tuple[UnreadableImageError, ...] = ()

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)


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
    """Refuse data that no network can learn from, before any epoch.

    Raises
    ------
    DataError
        If there are no pictures, only one class, an unknown label, or a split without some class.
    """
    if not len(manifest):
        raise DataError(f"{manifest.root}: no pictures found; give a folder with one sub-folder per class")
    counts = collections.Counter(class_indices(manifest.records, classes).tolist())
    if len(counts) == 1 and len(classes) > 1:
        only = classes[next(iter(counts))]
        raise DataError(
            f"{manifest.root}: all {len(manifest)} pictures are {only!r}; a second class is needed"
        )
    missing = [name for position, name in enumerate(classes) if not counts[position]]
    if missing:
        raise DataError(
            f"{manifest.root}: no picture of class {', '.join(missing)}; add some or drop the class"
        )
    for split in ("train", "val"):
        present = set(class_indices(manifest.subset(split).records, classes).tolist())
        lacking = [name for position, name in enumerate(classes) if position not in present]
        if lacking:
            raise DataError(
                f"{manifest.root}: split {split!r} has no picture of class {', '.join(lacking)}; "
                "add pictures or split again with other fractions"
            )


def pack(
    manifest: Manifest,
    classes: tuple[str, ...],
    spec: InputSpec,
    segment: LungSegmenter | None = None,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Packed:
    """Read and standardise every picture of a manifest, on all processors.

    Parameters
    ----------
    progress : callable
        Told the number of pictures done.

    Raises
    ------
    DataError
        If more than `MAX_UNREADABLE` of the pictures are unreadable.
    """
    labels = class_indices(manifest.records, classes)

    def one(record: Record) -> npt.NDArray[np.uint8] | UnreadableImageError:
        try:
            radiograph = read_radiograph(manifest.resolve(record), min_side=spec.decode_side)
        except UnreadableImageError as error:
            return error
        return np.rint(standardise(radiograph, spec, segment).pixels * 255).astype(np.uint8)

    pictures: list[npt.NDArray[np.uint8]] = []
    kept: list[int] = []
    unreadable: list[UnreadableImageError] = []
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        for index, result in enumerate(pool.map(one, manifest.records)):
            if isinstance(result, UnreadableImageError):
                unreadable.append(result)
            else:
                pictures.append(result)
                kept.append(index)
            progress(index + 1)
    if len(unreadable) > MAX_UNREADABLE * len(labels):
        raise DataError(
            f"{manifest.root}: {len(unreadable)} of {len(labels)} pictures are unreadable, the first: "
            f"{unreadable[0]}; mend or remove them (see 'pneumoscope data audit')"
        )
    shape = (0, spec.channels, spec.size, spec.size)
    stacked = np.stack(pictures) if pictures else np.zeros(shape, np.uint8)
    records = tuple(manifest.records[index] for index in kept)
    return Packed(stacked, labels[kept], records, tuple(unreadable))
