"""What the DICOM headers of a data set say about its patients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pneumoscope.data.manifest import Record
from pneumoscope.data.tables import parse_view
from pneumoscope.image.decode import HEAD_BYTES, format_of, read_head
from pneumoscope.parallel import Progress

if TYPE_CHECKING:
    from pneumoscope.image.dicom_header import Patient

__all__ = ["as_headers_state", "name_nobody", "patient_in_header"]

# More patients than one person is listed as by mistake: images of one person are a few as a rule.
_MANY = 10


def as_headers_state(records: Sequence[Record], folder: Path, progress: Progress) -> list[Record]:
    """Return the records with what DICOM headers state, which goes before a table as in prediction.

    Images whose headers name one patient get the path of the first as patient, where nothing else names one:
    no identity is kept.

    Parameters
    ----------
    records : sequence of Record
        Those that nothing names a patient of have their path instead.
    folder : Path
        That their paths start from.
    progress : Progress
        Receives the number of headers read, and a line where an identifier may be that of many patients.
    """
    progress.step("reading headers")
    stated = progress.collect(_as_headers_state(records, folder), len(records))
    # A patient is named like the first of its images only by the header of the others.
    own = {record.path for record in records if record.patient_id == record.path}
    shared = Counter(record.patient_id for record in stated if record.patient_id in own)
    [(_, most)] = shared.most_common(1) or [("", 0)]
    if most > 1 and (most == len(stated) or most > max(_MANY, len(stated) / 2)):
        count = f"all {most}" if most == len(stated) else f"{most} of {len(stated)}"
        progress.message(
            f"{folder}: {count} images have one Patient ID, or one study, in their headers and count as one "
            "patient; if they are of several, give a table of patients with --patients"
        )
    return stated


def name_nobody(identifiers: Mapping[str, Collection[str]]) -> set[str]:
    """Return which identifiers of headers, such as ANONYMOUS, stand for many patients.

    Parameters
    ----------
    identifiers : mapping of str to collection of str
        For each the patients that a table or the folders state for its images. Few patients of one identifier
        are one person who is listed as several.
    """
    only = len(identifiers) == 1
    return {key for key, patients in identifiers.items() if len(set(patients)) > (1 if only else _MANY)}


def patient_in_header(path: Path) -> Patient | None:
    """Return what a DICOM file states about its patient; None for other files."""
    if format_of(read_head(path, HEAD_BYTES)) != "dicom":
        return None
    from pneumoscope.image.dicom import read_patient

    return read_patient(path)


def _as_headers_state(records: Sequence[Record], folder: Path) -> Iterator[Record]:
    first: dict[str, str] = {}
    for record in records:
        patient = patient_in_header(folder / record.path)
        if patient is None:
            yield record
            continue
        name = record.patient_id
        if name == record.path and patient.identity is not None:
            name = first.setdefault(patient.identity, record.path)
        yield replace(
            record,
            patient_id=name,
            age=record.age if patient.age is None else patient.age,
            sex=patient.sex or record.sex,
            view=parse_view(patient.view) or record.view,
        )
