"""What the folders above an image and its name say: class, patient, split and source.

The rules stand at the top of `pneumoscope.data.folder`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pneumoscope.data.labels import KNOWN_CLASSES, class_name, parse_kermany_name

__all__ = ["SPLIT_FOLDERS", "Layout", "Place"]

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Names of folders, in lower case, and the split that they mean."""

_CONTAINERS = frozenset({"images", "image", "img", "imgs", "data", "jpg", "jpeg", "png", "dicom", "dcm"})
_NO_CLASS = SPLIT_FOLDERS.keys() | _CONTAINERS
# Of BIDS, CheXpert and MIMIC-CXR, BRAX, and people who name folders themselves.
_PATIENT = re.compile(r"sub-\w+|id_[\da-f-]{8,}|(?:patient|subject|person|pat|p)[-_ ]?\d+", re.IGNORECASE)


class Place(NamedTuple):
    """What the place of an image says of it; text that is empty is unknown."""

    label: str
    patient: str
    split: str
    source: str


class Layout:
    """The folders of a data set, and which of them are classes.

    Parameters
    ----------
    folder : Path
        The data set.
    paths : sequence of str
        All its images, as POSIX paths relative to it.
    labels : mapping of str to str, optional
        Those that a table states, by path.
    """

    def __init__(self, folder: Path, paths: Sequence[str], labels: Mapping[str, str] | None = None) -> None:
        self._name = folder.resolve().name
        self._labels = labels or {}
        parents = {(PurePosixPath(path).parts[:-1], self._labels.get(path, "")) for path in paths}
        depths = ((parts, _class_depth(parts, label)) for parts, label in parents)
        # Folders that hold one of a known class, or of the name of its images' label, without splits and
        # containers: all in them are classes.
        self._above = {_meaningful(parts[:depth]) for parts, depth in depths if depth is not None}

    def is_unclear(self, path: str) -> bool:
        """Return whether a folder above an image may be its patient's, and nothing shows which one."""
        parents = PurePosixPath(path).parts[:-1]
        is_class = self._class_depth(parents)[1]
        return len(_meaningful(parents)) > 1 and not is_class and not _patient(parents)

    def place(self, path: str) -> Place:
        """Return what the place of an image says.

        Parameters
        ----------
        path : str
            One of the images.

        Returns
        -------
        Place
            The patient is the path itself where nothing names one.
        """
        parents, stated = PurePosixPath(path).parts[:-1], self._labels.get(path, "")
        depth, is_class = self._class_depth(parents)
        label = stated or (class_name(parents[depth]) if depth is not None else "")
        below = () if depth is None else _meaningful(parents[depth + 1 :])
        # Below a folder that is no class there may be studies, one patient in several of them.
        person = "" if is_class else _patient(parents)
        if not person and below and (is_class or not stated):
            person = below[0]
        known = parse_kermany_name(f"{self._name}/{path}")
        agrees = known is not None and _agree(known[0], label, is_class=is_class or bool(stated))
        # A folder for each patient goes before a name, if the label is sure. Viewers export every study as
        # IM-0001-0001 and so on, so such a name counts only with its label; person12_virus_34 is nobody
        # else's, in whatever folder.
        if known and ((person and (is_class or stated)) or not (agrees or known[2] == "person")):
            known = None
        if known and agrees:
            label = known[0]
        return Place(
            label=label,
            patient=known[1] if known else person or _patient(parents) or path,
            split=next((SPLIT_FOLDERS[p.lower()] for p in parents if p.lower() in SPLIT_FOLDERS), ""),
            source=known[2] if known else self._source(parents, depth),
        )

    def _class_depth(self, parents: tuple[str, ...]) -> tuple[int | None, bool]:
        """Return which folder above an image is its class, and whether a known class or a table says so."""
        depth = _class_depth(parents)
        if depth is not None:
            return depth, True
        candidates = [i for i, part in enumerate(parents) if part.lower() not in _NO_CLASS]
        others = (i for i in candidates if not _PATIENT.fullmatch(parents[i]))
        beside = next((i for i in others if _meaningful(parents[:i]) in self._above), None)
        return (candidates[0] if candidates else None, False) if beside is None else (beside, True)

    def _source(self, parents: tuple[str, ...], depth: int | None) -> str:
        above = _meaningful(parents[: depth or 0])
        return above[0] if above else self._name


def _meaningful(parts: tuple[str, ...]) -> tuple[str, ...]:
    """Return folders that are neither a split nor a mere container."""
    return tuple(part for part in parts if part.lower() not in _NO_CLASS)


def _patient(parents: tuple[str, ...]) -> str:
    """Return the last folder above an image that is named like one of a patient; empty where none is."""
    return next((part for part in reversed(parents) if _PATIENT.fullmatch(part)), "")


def _class_depth(parents: tuple[str, ...], label: str = "") -> int | None:
    """Return the last folder above an image that is named after a known class, or after its label."""
    known = [i for i, part in enumerate(parents) if class_name(part) in {label, *KNOWN_CLASSES}]
    return known[-1] if known else None


def _agree(by_name: str, label: str, *, is_class: bool) -> bool:
    """Return whether the label of a table or folder does not contradict that of the name.

    A folder that is only the topmost one, and may be no class, contradicts nothing.
    """
    if label == "pneumonia":
        return by_name != "normal"
    return label == by_name or not is_class
