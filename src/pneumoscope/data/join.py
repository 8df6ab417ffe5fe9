"""Several data sets as one, with the split that each has."""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pneumoscope.data.headers import patient_in_header
from pneumoscope.data.manifest import SPLITS, Manifest, Record
from pneumoscope.data.split import Groups, group_records
from pneumoscope.domain import DatasetDescription, Population
from pneumoscope.errors import DataError, counted
from pneumoscope.parallel import Progress

__all__ = ["join", "joint_description"]

NOT_STATED = "not stated"


def join(
    manifests: Sequence[Manifest],
    prefixes: Mapping[int, str] | None = None,
    *,
    duplicates: Callable[[Manifest], Groups] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Join data sets that are split already into one manifest.

    A patient, or a copy of an image, that one set holds out is held out of the others too: ``test`` goes
    before ``val``, and ``val`` before ``train``. An image without an age gets the middle of the ages that the
    description of its set states, if these have both bounds, and one without a view the only one stated.

    Parameters
    ----------
    manifests : sequence of Manifest
        Each with a split; patients are the same person where their identifiers are equal, or the Patient IDs
        of their DICOM headers. An image that is its own identifier, since nothing names a patient, is no
        other set's.
    prefixes : mapping of int to str, optional
        By position of a set: what to put before its patient identifiers, where another set writes the same
        persons so, or means others by the same identifiers.
    duplicates : callable, optional
        Returns, for all records, groups of positions that are copies of one image, such as the near
        duplicates of an audit; if not given, copies are files that the sets state the same SHA-256 of.
    progress : Progress, optional
        Receives a line that counts the identifiers that occur in several sets, and the images that changed
        their side.

    Returns
    -------
    Manifest
        Its root is the closest folder above all images; its description names all sets, and what they left
        out is in its `left_out`.

    Raises
    ------
    DataError
        If there is no set, an image is in two of them, a set has no split, or they are on several drives.
    MissingExtraError
        If scipy is not installed.
    """
    if not manifests:
        raise DataError("no data sets to join; name at least one manifest")
    given = prefixes or {}
    for manifest in manifests:
        if any(not record.split for record in manifest.records):
            raise DataError(
                f"{manifest.name}: an image has no split; split it first with 'pneumoscope data split'"
            )
    left_out = tuple(one for manifest in manifests for one in manifest.left_out)
    root = _common_root(manifests)
    records = tuple(
        record
        for number, manifest in enumerate(manifests)
        for record in _moved(manifest, root, given.get(number, ""))
    )
    joined = Manifest(records, root, joint_description(manifests), left_out)
    same_patient = _same_in_header(manifests, given)
    held_out = _held_out_together(joined, [*same_patient, *(duplicates(joined) if duplicates else ())])
    if progress is not None:
        moved = sum(one.split != other.split for one, other in zip(joined, held_out, strict=True))
        _say(_in_several(manifests, joined), moved, progress)
    return held_out


def _in_several(manifests: Sequence[Manifest], joined: Manifest) -> int:
    """Return how many patient identifiers occur in several sets."""
    sets: dict[str, set[int]] = defaultdict(set)
    numbers = (number for number, manifest in enumerate(manifests) for _ in manifest.records)
    for number, record in zip(numbers, joined.records, strict=True):
        sets[record.patient_id].add(number)
    return sum(len(found) > 1 for found in sets.values())


def _say(shared: int, moved: int, progress: Progress) -> None:
    moves = f"{counted(moved, 'image')} moved to the side that its patient or a copy is held out on"
    if shared:
        what = f"{counted(shared, 'patient identifier')} in several sets, taken for the same person"
        progress.message(f"{what}; {moves}; if they are different persons, name a set NAME=FILE")
    elif moved:
        progress.message(moves)


def _common_root(manifests: Sequence[Manifest]) -> Path:
    try:
        return Path(os.path.commonpath([manifest.root.resolve() for manifest in manifests]))
    except ValueError as error:
        roots = ", ".join(str(manifest.root) for manifest in manifests)
        raise DataError(f"{roots}: are on different drives; copy the data sets to one drive") from error


def _moved(manifest: Manifest, root: Path, prefix: str) -> Iterator[Record]:
    """Yield the records of a set as they are in the joined manifest."""
    here = manifest.root.resolve()

    def moved(path: str) -> str:
        # An image that is a link keeps its own name: what it points to may have no suffix, or be another's.
        return Path(os.path.relpath(here / path, root)).as_posix()

    # Where nothing names a patient, an image does: other sets may have images of the same name.
    images = {record.path for record in manifest.records}
    patients = {record.patient_id for record in manifest.records}
    named = {
        one: moved(one)
        for one in patients
        if one in images or os.path.isfile(here / one)  # noqa: PTH113 also where it is no name of a file
    }
    population = (manifest.description or DatasetDescription()).population
    ages = [age for age in population.ages if age is not None]
    for record in manifest.records:
        age = statistics.fmean(ages) if record.age is None and len(ages) == 2 else record.age
        view = population.views[0] if not record.view and len(population.views) == 1 else record.view
        patient = f"{prefix}{named.get(record.patient_id, record.patient_id)}"
        yield replace(record, path=moved(record.path), patient_id=patient, age=age, view=view)


def _same_in_header(manifests: Sequence[Manifest], prefixes: Mapping[int, str]) -> list[list[int]]:
    """Group records by the patient of their DICOM headers, whom each set names after a file of its own.

    An identifier that one set has for several patients on several sides, such as ANONYMOUS, names nobody.
    """
    together: dict[str, list[int]] = defaultdict(list)
    nobody: set[str] = set()
    start = 0
    for number, manifest in enumerate(manifests):
        own: dict[str, list[int]] = defaultdict(list)
        for position, record in enumerate(manifest.records):
            patient = patient_in_header(manifest.resolve(record))
            if patient is not None and patient.identity is not None:
                own[f"{prefixes.get(number, '')}{patient.identity}"].append(position)
        for key, positions in own.items():
            records = [manifest.records[position] for position in positions]
            if all(len({getattr(one, name) for one in records}) > 1 for name in ("patient_id", "split")):
                nobody.add(key)
            together[key] += [start + position for position in positions]
        start += len(manifest)
    return [group for key, group in together.items() if key not in nobody]


def _held_out_together(manifest: Manifest, together: Groups) -> Manifest:
    """Put each record on the last side of the split that its patient or a copy of its image is on."""
    sides = [SPLITS.index(record.split) for record in manifest.records]
    for group in group_records(manifest, together):
        last = max(sides[position] for position in group)
        for position in group:
            sides[position] = last
    return manifest.with_records(
        replace(record, split=SPLITS[side]) for record, side in zip(manifest.records, sides, strict=True)
    )


def joint_description(manifests: Sequence[Manifest]) -> DatasetDescription:
    """Return what several data sets state together, which `join` gives the joined manifest.

    What one set states is not taken for all: one without a description has the name of its folder and
    ``not stated`` for the rest, and so has a licence that a description leaves out. Nothing is stated where
    no set has a description.
    """
    if all(manifest.description is None for manifest in manifests):
        return DatasetDescription()

    def stated(manifest: Manifest, field: str) -> str:
        if manifest.description is None:
            return manifest.root.resolve().name if field == "name" else NOT_STATED
        value = str(getattr(manifest.description, field))
        return value or (NOT_STATED if field == "licence" else "")

    def together(field: str, separator: str) -> str:
        values = [value for value in dict.fromkeys(stated(one, field) for one in manifests) if value]
        return separator.join(values) if values != [NOT_STATED] else ""

    return DatasetDescription(
        name=together("name", " + "),
        population=Population(),
        hospital=together("hospital", "; "),
        label_source=together("label_source", "; "),
        licence=together("licence", "; "),
        citation=together("citation", "; "),
    )
