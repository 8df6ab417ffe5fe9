"""Several data sets as one, with the split that each has."""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pneumoscope.data.folder import patient_in_header
from pneumoscope.data.manifest import SPLITS, Manifest, Record
from pneumoscope.data.split import Groups, group_records
from pneumoscope.domain import DatasetDescription, Population
from pneumoscope.errors import DataError

__all__ = ["join", "joint_description"]


def join(
    manifests: Sequence[Manifest],
    prefixes: Mapping[int, str] | None = None,
    *,
    duplicates: Callable[[Manifest], Groups] | None = None,
) -> Manifest:
    """Join data sets that are split already into one manifest.

    A patient, or a copy of an image, that one set holds out is held out of the others too: ``test`` goes
    before ``val``, and ``val`` before ``train``. An image without an age gets the middle of the ages that the
    description of its set states, if these have both bounds, and one without a view the only one stated.

    Parameters
    ----------
    manifests : sequence of Manifest
        Each with a split; patients are the same person where their identifiers are equal, or the Patient IDs
        of their DICOM headers.
    prefixes : mapping of int to str, optional
        By position of a set: what to put before its patient identifiers, where another set writes the same
        persons so, or means others by the same identifiers.
    duplicates : callable, optional
        Returns, for all records, groups of positions that are copies of one image, such as the near
        duplicates of an audit; if not given, copies are files that the sets state the same SHA-256 of.

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
                f"{manifest.root}: an image has no split; split it first with 'pneumoscope data split'"
            )
    left_out = tuple(one for manifest in manifests for one in manifest.left_out)
    root = _common_root(manifests)
    records = tuple(
        _record(record, manifest, root, given.get(number, ""))
        for number, manifest in enumerate(manifests)
        for record in manifest.records
    )
    joined = Manifest(records, root, joint_description(manifests), left_out)
    same_patient = _same_in_header(manifests, given)
    return _held_out_together(joined, [*same_patient, *(duplicates(joined) if duplicates else ())])


def _common_root(manifests: Sequence[Manifest]) -> Path:
    try:
        return Path(os.path.commonpath([manifest.root.resolve() for manifest in manifests]))
    except ValueError as error:
        roots = ", ".join(str(manifest.root) for manifest in manifests)
        raise DataError(f"{roots}: are on different drives; copy the data sets to one drive") from error


def _record(record: Record, manifest: Manifest, root: Path, prefix: str) -> Record:
    population = (manifest.description or DatasetDescription()).population
    ages = [age for age in population.ages if age is not None]
    age = statistics.fmean(ages) if record.age is None and len(ages) == 2 else record.age
    view = population.views[0] if not record.view and len(population.views) == 1 else record.view
    # An image that is a link keeps its own name: what it points to may have no suffix, or be another's too.
    path = Path(os.path.relpath(manifest.root.resolve() / record.path, root)).as_posix()
    return replace(record, path=path, patient_id=f"{prefix}{record.patient_id}", age=age, view=view)


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
            if patient is not None and patient.key is not None:
                own[f"{prefixes.get(number, '')}{patient.key}"].append(position)
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
    """Return what several data sets state together, which `join` gives the joined manifest."""
    stated = [manifest.description for manifest in manifests if manifest.description is not None]

    def together(field: str, separator: str) -> str:
        return separator.join(dict.fromkeys(filter(None, (getattr(one, field) for one in stated))))

    return DatasetDescription(
        name=together("name", " + "),
        population=Population(),
        hospital=together("hospital", "; "),
        label_source=together("label_source", "; "),
        licence=together("licence", "; "),
        citation=together("citation", "; "),
    )
