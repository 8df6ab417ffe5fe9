"""The sample images that ship with the package: real radiographs with source, licence and true label.

`benchmarks/make_samples.py` makes them; ``samples.csv`` beside them is their table.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pneumoscope.data.tables import read_rows, require_columns
from pneumoscope.errors import DataError

__all__ = ["SAMPLES_TABLE", "Sample", "read_samples", "samples_folder", "write_samples"]

SAMPLES_TABLE = "samples.csv"
"""Name of the table of samples, in their folder."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample image: a row of ``samples.csv``.

    Parameters
    ----------
    path : str
        File name, in the folder of samples.
    label : str
        True label: ``normal``, ``bacterial`` or ``viral``; for an image that is no frontal chest radiograph,
        what it is instead.
    patient_id : str
        Of the source, as in a manifest.
    content : str
        What the image is, in a sentence.
    source, licence, attribution : str
        Data set and file that it was made from, terms of use, and whom to credit.
    """

    path: str
    label: str
    patient_id: str
    content: str
    source: str
    licence: str
    attribution: str


def samples_folder() -> Path:
    """Return the folder of the samples in the installed package."""
    return Path(str(resources.files("pneumoscope") / "samples"))


def read_samples(folder: Path | None = None) -> tuple[Sample, ...]:
    """Read the table of samples, in its order.

    Parameters
    ----------
    folder : Path, optional
        A folder that `write_samples` wrote; that of the package if not given.

    Raises
    ------
    DataError
        If the table is absent or lacks a column, or an image that it lists is absent.
    """
    folder = samples_folder() if folder is None else folder
    table = folder / SAMPLES_TABLE
    columns, rows = read_rows(table)
    names = tuple(Sample.__dataclass_fields__)
    require_columns(table, columns, names)
    samples = tuple(Sample(**{name: str(row[name] or "") for name in names}) for row in rows)
    for sample in samples:
        if not (folder / sample.path).is_file():
            raise DataError(f"{table}: lists {sample.path}, which is absent; install pneumoscope again")
    return samples


def write_samples(out: Path) -> tuple[Sample, ...]:
    """Write the samples and their table into a folder, which is created; may be repeated.

    Parameters
    ----------
    out : Path
        Folder.

    Returns
    -------
    tuple of Sample
        The images written, in the order of the table.

    Raises
    ------
    DataError
        If a file of the same name and another content is there, or the folder cannot be written.
    """
    samples, source = read_samples(), samples_folder()
    names = [SAMPLES_TABLE, *(sample.path for sample in samples)]
    contents = {name: (source / name).read_bytes() for name in names}
    try:
        earlier = _written_before(out)
        for name, content in contents.items():
            if name not in earlier and (out / name).exists() and (out / name).read_bytes() != content:
                raise DataError(f"{out / name}: is another file of that name; choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (out / name).write_bytes(content)
    except OSError as error:
        raise DataError(f"{out}: cannot write there ({error.strerror}); choose another folder") from error
    return samples


def _written_before(out: Path) -> set[str]:
    """Return the names of files that this or another version wrote, by the table that it left."""
    try:
        columns, rows = read_rows(out / SAMPLES_TABLE)
        if columns != list(Sample.__dataclass_fields__):
            return set()
        return {SAMPLES_TABLE, *(row["path"] for row in rows)}
    except DataError:
        return set()
