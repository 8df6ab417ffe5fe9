"""The audit of a data set: unreadable files, duplicates, and leaks between the parts of its split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.data.duplicates import NEAR_DISTANCE, near_pairs, perceptual_hash
from pneumoscope.data.headers import name_nobody
from pneumoscope.data.manifest import SPLITS, Manifest, Record
from pneumoscope.data.split import connected
from pneumoscope.errors import DataError, Reason, UnreadableImageError
from pneumoscope.image.decode import read_radiograph
from pneumoscope.model.bundle import sha256_of
from pneumoscope.parallel import Progress, available_cpus, in_order

__all__ = ["AuditReport", "Inspection", "Leak", "Unreadable", "audit", "inspect"]

# The hash needs 64 pixels; a JPEG is decoded no larger than is needed for it.
_MIN_SIDE = 128
_MAX_THREADS = 4


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that could not be read: its path, the reason code and the message."""

    path: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Leak:
    """A patient or an image that is in several parts of the split.

    Parameters
    ----------
    what : str
        ``patient`` or ``duplicate``.
    name : str
        The patient, or the first of the images.
    splits : dict of str to int
        Number of images in each part.
    paths : tuple of str
        The images.
    """

    what: str
    name: str
    splits: dict[str, int]
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _FileFacts:
    """The result of reading one file."""

    sha256: str = ""
    width: int = 0
    height: int = 0
    hash: npt.NDArray[np.uint64] | None = None
    identity: str | None = None
    problem: Unreadable | None = None


@dataclass(frozen=True)
class Inspection:
    """The result of reading every file of a manifest; positions are those of its records.

    Parameters
    ----------
    manifest : Manifest
        With the SHA-256 of every file that could be read, and its width and height where none were stated:
        the original may have been larger.
    unreadable : tuple of Unreadable
        Files that could not be read.
    changed : tuple of str
        Files whose SHA-256 differs from the one in the manifest.
    exact : list of list of int
        Groups of identical files.
    near : list of list of int
        Groups of copies of one image, of which at least two are not identical files.
    same_key : list of list of int
        Groups of images whose DICOM headers name the same patient, or without a patient the same study.
        An identifier that stands for many patients of the manifest, such as ANONYMOUS, groups nothing.
    sizes : list of (int, int)
        Width and height of each file in pixels; 0 where it could not be read.
    """

    manifest: Manifest
    unreadable: tuple[Unreadable, ...]
    changed: tuple[str, ...]
    exact: list[list[int]]
    near: list[list[int]]
    same_key: list[list[int]]
    sizes: list[tuple[int, int]]

    @property
    def groups(self) -> list[list[int]]:
        """All groups that a split must not divide; for `pneumoscope.data.split`."""
        return [*self.exact, *self.near, *self.same_key]

    def readable(self) -> Inspection:
        """Return the inspection without the unreadable files, positions adjusted."""
        lost = {problem.path for problem in self.unreadable}
        kept = [i for i, record in enumerate(self.manifest.records) if record.path not in lost]
        at = {old: new for new, old in enumerate(kept)}

        def moved(groups: list[list[int]]) -> list[list[int]]:
            return [[at[i] for i in group] for group in groups]

        return replace(
            self,
            manifest=self.manifest.with_records(self.manifest.records[i] for i in kept),
            unreadable=(),
            # Only files that were read are in a group.
            exact=moved(self.exact),
            near=moved(self.near),
            same_key=moved(self.same_key),
            sizes=[self.sizes[i] for i in kept],
        )


@dataclass(frozen=True)
class AuditReport:
    """The findings of an audit.

    Parameters
    ----------
    root : str
        Folder of the images.
    images, patients : int
        How many the manifest lists.
    unreadable, changed, exact_duplicates, near_duplicates
        As in `Inspection`, groups as paths; unreadable with those in `Manifest.left_out`.
    label_conflicts : tuple of tuple of str
        Groups of duplicates with more than one label.
    leaks_found : tuple of Leak
        Patients and duplicates in more than one part of the split.
    balance : dict of str to dict of str to int
        Images by split and label; ``unsplit`` for those without a split.
    patients_by_split : dict of str to int
        Patients by split.
    sizes : dict of str to int
        Smallest, median and largest width and height of the files in pixels.
    near_distance : int or None
        Hamming distance used for near duplicates; None if they were not looked for.
    """

    root: str
    images: int
    patients: int
    unreadable: tuple[Unreadable, ...]
    changed: tuple[str, ...]
    exact_duplicates: tuple[tuple[str, ...], ...]
    near_duplicates: tuple[tuple[str, ...], ...]
    label_conflicts: tuple[tuple[str, ...], ...]
    leaks_found: tuple[Leak, ...]
    balance: dict[str, dict[str, int]]
    patients_by_split: dict[str, int]
    sizes: dict[str, int]
    near_distance: int | None

    @property
    def leaks(self) -> bool:
        """Whether a patient or an image is in more than one part of the split."""
        return bool(self.leaks_found)

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain lists, dicts, strings and numbers."""
        return {"leaks": self.leaks, **asdict(self)}

    def to_json(self) -> str:
        """Return the findings as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def rows(self) -> list[tuple[str, str, str]]:
        """Return rows for a table: what was looked for, how many were found, an example."""

        def row(name: str, found: Sequence[Any], example: Callable[[Any], str]) -> tuple[str, str, str]:
            return name, str(len(found)), example(found[0]) if found else ""

        patients = [leak for leak in self.leaks_found if leak.what == "patient"]
        copies = [leak for leak in self.leaks_found if leak.what == "duplicate"]
        return [
            row("unreadable files", self.unreadable, lambda u: f"{u.path} ({u.reason})"),
            row("files changed since listed", self.changed, str),
            row("groups of identical files", self.exact_duplicates, ", ".join),
            row("groups of near duplicates", self.near_duplicates, ", ".join),
            row("duplicates with different labels", self.label_conflicts, ", ".join),
            row("patients in several splits", patients, lambda k: f"{k.name} ({_counts(k.splits)})"),
            row("duplicates in several splits", copies, lambda k: ", ".join(k.paths)),
        ]


def audit(
    manifest: Manifest, *, near_distance: int | None = NEAR_DISTANCE, progress: Progress | None = None
) -> AuditReport:
    """Look for unreadable files, duplicates, conflicting labels and leaks.

    Parameters
    ----------
    manifest : Manifest
        With or without a split.
    near_distance : int or None
        Hamming distance, of 256 bits, up to which two images count as copies; None compares bytes only.
        The default is explained at `pneumoscope.data.duplicates.NEAR_DISTANCE`.
    progress : Progress, optional
        Receives the number of images read and their total.

    Raises
    ------
    DataError
        If there is no record, no file can be read, or the distance is out of range.
    """
    found = inspect(manifest, near_distance=near_distance, progress=progress)
    records = found.manifest.records

    def paths(groups: list[list[int]]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(records[i].path for i in group) for group in groups)

    copies = _merged(len(records), [*found.exact, *found.near])
    conflicts = [group for group in copies if len({records[i].label for i in group}) > 1]
    balance: dict[str, Counter[str]] = {}
    patients: dict[str, set[str]] = {}
    for record in records:
        side = record.split or "unsplit"
        balance.setdefault(side, Counter())[record.label] += 1
        patients.setdefault(side, set()).add(record.patient_id)
    order = [side for side in (*SPLITS, "unsplit") if side in balance]
    return AuditReport(
        root=str(manifest.root),
        images=len(records),
        patients=len({record.patient_id for record in records}),
        unreadable=(*found.unreadable, *map(_unlisted, manifest.left_out)),
        changed=found.changed,
        exact_duplicates=paths(found.exact),
        near_duplicates=paths(found.near),
        label_conflicts=paths(conflicts),
        leaks_found=_leaks(found, copies),
        balance={side: dict(sorted(balance[side].items())) for side in order},
        patients_by_split={side: len(patients[side]) for side in order},
        sizes=_sizes(found.sizes),
        near_distance=near_distance,
    )


def inspect(
    manifest: Manifest, *, near_distance: int | None = NEAR_DISTANCE, progress: Progress | None = None
) -> Inspection:
    """Read every file of a manifest once and find duplicates; parameters as for `audit`.

    Raises
    ------
    DataError
        If there is no record, no file can be read, or the distance is out of range.
    """
    if not len(manifest):
        raise DataError(f"{manifest.name}: the manifest lists no image; give one with images")
    if near_distance is not None and not 0 <= near_distance <= 256:
        raise DataError(f"near-duplicate distance {near_distance}: choose 0 to 256")
    progress = progress or Progress()
    progress.step("reading images")

    def read(records: Sequence[Record]) -> list[_FileFacts]:
        hashed = near_distance is not None
        return [_read(record.path, manifest.resolve(record), hashed=hashed) for record in records]

    workers = min(_MAX_THREADS, available_cpus())
    files = progress.collect(in_order(manifest.records, read, workers=workers), len(manifest))
    unreadable = tuple(one.problem for one in files if one.problem)
    if len(unreadable) == len(manifest):
        raise DataError(f"{manifest.name}: no file can be read; the first: {unreadable[0].detail}")
    pairs = list(zip(manifest.records, files, strict=True))
    return Inspection(
        manifest=manifest.with_records(
            replace(r, sha256=s.sha256, width=r.width or s.width, height=r.height or s.height)
            for r, s in pairs
        ),
        unreadable=unreadable,
        changed=tuple(r.path for r, s in pairs if r.sha256 and s.sha256 and r.sha256 != s.sha256),
        exact=_equal([one.sha256 for one in files]),
        near=_near(files, near_distance, progress) if near_distance is not None else [],
        same_key=_same_key(manifest.records, files),
        sizes=[(one.width, one.height) for one in files],
    )


def _read(name: str, path: Path, *, hashed: bool) -> _FileFacts:
    try:
        # Decoding comes first: any problem with the file becomes one typed error.
        image = read_radiograph(path, min_side=_MIN_SIDE)
        digest = sha256_of(path)
    except UnreadableImageError as error:
        return _FileFacts(problem=Unreadable(name, error.reason.value, error.detail))
    except OSError as error:
        return _FileFacts(
            problem=Unreadable(name, Reason.NO_PERMISSION.value, f"cannot be read ({error.strerror})")
        )
    near = perceptual_hash(image.pixels) if hashed else None
    return _FileFacts(digest, image.width, image.height, near, image.patient_key or image.study_uid)


def _unlisted(problem: UnreadableImageError) -> Unreadable:
    return Unreadable(problem.path, problem.reason.value, problem.detail)


def _equal(keys: list[str]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        if key:
            groups.setdefault(key, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _same_key(records: Sequence[Record], files: Sequence[_FileFacts]) -> list[list[int]]:
    patients: dict[str, set[str]] = {}
    for record, one in zip(records, files, strict=True):
        if one.identity:
            patients.setdefault(one.identity, set()).add(record.patient_id)
    nobody = name_nobody(patients)
    return _equal(["" if one.identity in nobody else one.identity or "" for one in files])


def _near(files: list[_FileFacts], distance: int, progress: Progress) -> list[list[int]]:
    progress.step("comparing images")
    at = [i for i, one in enumerate(files) if one.hash is not None]
    if not at:
        return []
    hashes = np.stack([one.hash for one in files if one.hash is not None])
    links = [(at[i], at[j]) for i, j, _ in near_pairs(hashes, distance, progress=progress)]
    groups = connected(len(files), links)
    return [group for group in groups if len({files[i].sha256 for i in group}) > 1]


def _merged(count: int, groups: list[list[int]]) -> list[list[int]]:
    links = [(group[0], i) for group in groups for i in group[1:]]
    return [group for group in connected(count, links) if len(group) > 1]


def _leaks(found: Inspection, copies: list[list[int]]) -> tuple[Leak, ...]:
    records = found.manifest.records
    by_patient = _equal([record.patient_id for record in records])
    people = _merged(len(records), [*by_patient, *found.same_key])
    leaks = []
    for what, groups in (("patient", people), ("duplicate", copies)):
        for group in groups:
            sides = Counter(records[i].split for i in group if records[i].split)
            if len(sides) > 1:
                members = tuple(records[i].path for i in group)
                name = records[group[0]].patient_id if what == "patient" else members[0]
                leaks.append(Leak(what, name, {s: sides[s] for s in SPLITS if s in sides}, members))
    return tuple(leaks)


def _sizes(files: Sequence[tuple[int, int]]) -> dict[str, int]:
    table = np.array([size for size in files if all(size)])
    sizes: dict[str, int] = {}
    for column, side in enumerate(("width", "height")):
        sizes[f"{side}_min"] = int(table[:, column].min())
        sizes[f"{side}_median"] = int(np.median(table[:, column]))
        sizes[f"{side}_max"] = int(table[:, column].max())
    return sizes


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} in {side}" for side, number in counts.items())
