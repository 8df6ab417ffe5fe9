"""The manifest: one row a image, with its label, its patient and the side of the split it is on."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pneumoscope.data.attributes import parse_age, parse_sex, parse_view
from pneumoscope.errors import DataError, MissingExtraError

__all__ = ["SPLITS", "Manifest", "Record", "load", "scan"]

SPLITS = ("train", "val", "test")
"""The sides of a split, in their usual order."""

_REQUIRED = ("path", "label", "patient_id")
_TABLES = (".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a data set; the columns of a manifest, in this order.

    Parameters
    ----------
    path : str
        POSIX path, relative to the root of the manifest (or absolute).
    label : str
        ``normal``, ``bacterial``, ``viral``, ``pneumonia`` or another class, in lower case.
    patient_id : str
        Equal for all images of one person; splits never divide it.
    split : {"train", "val", "test", ""}
        Empty where the image has not been given to a side yet.
    sha256 : str
        Of the file's bytes, as 64 hexadecimal digits; empty where it was not computed.
    width, height : int
        Of the original in pixels; 0 where unknown.
    source : str
        Data set, site or series that the image is from.
    age : float or None
        Of the patient, in years.
    sex : {"F", "M", "O", ""}
        Of the patient; empty where unknown.
    view : {"AP", "PA", "LL", ""}
        View position; empty where unknown.

    Raises
    ------
    DataError
        If path, label or patient is empty, the label has capitals, or the split is unknown.
    """

    path: str
    label: str
    patient_id: str
    split: str = ""
    sha256: str = ""
    width: int = 0
    height: int = 0
    source: str = ""
    age: float | None = None
    sex: str = ""
    view: str = ""

    def __post_init__(self) -> None:
        for name in _REQUIRED:
            if not getattr(self, name):
                raise DataError(f"{self.path or 'a record'}: its {name} is empty; give every image one")
        if self.label != self.label.lower():
            raise DataError(f"{self.path}: label '{self.label}' must be in lower case")
        if self.split and self.split not in SPLITS:
            raise DataError(f"{self.path}: split '{self.split}' must be train, val, test or empty")
        if self.width < 0 or self.height < 0:
            raise DataError(f"{self.path}: width and height must not be negative")


# Columns that are written only where some record knows what belongs there, and how they are read.
_OPTIONAL: dict[str, Callable[[object], Any]] = {"age": parse_age, "sex": parse_sex, "view": parse_view}
COLUMNS = tuple(field.name for field in fields(Record) if field.name not in _OPTIONAL)


@dataclass(frozen=True)
class Manifest:
    """A data set as an ordered table of records.

    Parameters
    ----------
    records : tuple of Record
        Each path once.
    root : Path
        Folder that the records' paths start from.

    Raises
    ------
    DataError
        If two records have the same path.
    """

    records: tuple[Record, ...]
    root: Path

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for record in self.records:
            if record.path in seen:
                raise DataError(f"{record.path}: listed twice; keep one row for each image")
            seen.add(record.path)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a manifest from CSV or Parquet, told apart by the suffix.

        The root is the folder named by an optional column ``root``, where that folder exists, else
        the folder of the manifest. Columns that a manifest does not know are ignored.

        Parameters
        ----------
        path : path-like
            A ``.csv`` (UTF-8, with a header) or ``.parquet`` file.

        Raises
        ------
        DataError
            If the file is absent or no table, lacks ``path``, ``label`` or ``patient_id``, or holds
            a wrong value; the line names file and row.
        MissingExtraError
            For Parquet where pyarrow is not installed.
        """
        path = Path(path)
        rows = _read_table(path, _REQUIRED)
        root = path.parent
        stored = rows[0].get("root") if rows else None
        if stored and (root / str(stored)).is_dir():
            root = root / str(stored)
        records = tuple(_record(row, f"{path}, row {number}") for number, row in enumerate(rows, start=1))
        return cls(records, root)

    def write(self, path: str | Path) -> None:
        """Write as CSV or Parquet, told apart by the suffix.

        Where the manifest lies elsewhere than the images' root, a column ``root`` holds the root.

        Raises
        ------
        DataError
            If the suffix is neither, or the file cannot be written.
        MissingExtraError
            For Parquet where pyarrow is not installed.
        """
        path = Path(path)
        root = self.root.resolve()
        extra = {} if path.parent.resolve() == root else {"root": root.as_posix()}
        known = [
            name
            for name in _OPTIONAL
            if any(getattr(record, name) not in {None, ""} for record in self.records)
        ]
        columns = (*COLUMNS, *known)
        rows = [{name: getattr(record, name) for name in columns} | extra for record in self.records]
        _write_table(path, rows, (*columns, *extra))

    @property
    def has_split(self) -> bool:
        """Whether some record has been given to a side."""
        return any(record.split for record in self.records)

    def subset(self, split: str) -> Manifest:
        """Return the records on one side of the split, in order."""
        return replace(self, records=tuple(record for record in self.records if record.split == split))

    def resolve(self, record: Record) -> Path:
        """Return where the image of a record lies."""
        return self.root / record.path

    def labels(self) -> list[str]:
        """Return the labels that occur, sorted."""
        return sorted({record.label for record in self.records})

    def fingerprint(self) -> str:
        """Return the SHA-256 over all paths, labels and file hashes, whatever their order or split."""
        digest = hashlib.sha256()
        for line in sorted(f"{r.path}\0{r.label}\0{r.sha256}\n" for r in self.records):
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def split_fingerprint(self) -> str:
        """Return the SHA-256 over who is on which side of the split, whatever their order."""
        digest = hashlib.sha256()
        for line in sorted(f"{r.path}\0{r.split}\n" for r in self.records):
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def with_records(self, records: Iterable[Record]) -> Manifest:
        """Return a manifest with the same root and other records."""
        return replace(self, records=tuple(records))


def scan(
    folder: str | Path,
    *,
    labels_csv: str | Path | None = None,
    patients_csv: str | Path | None = None,
    hash_files: bool = True,
) -> Manifest:
    """Build a manifest from a folder of images.

    The label comes from the table of labels if there is one, else from the file name (Kermany set),
    else from the class folder; see `pneumoscope.data.folder` for the rules.

    Parameters
    ----------
    folder : path-like
        Searched at any depth; a MedMNIST ``.npz`` file is unpacked beside itself.
    labels_csv : path-like, optional
        Table with a column ``path`` (or ``file``) and a column ``label``, optionally ``patient_id``
        and ``split``. By default ``labels.csv`` in the folder, if there is one.
    patients_csv : path-like, optional
        Table with a column ``path`` (or ``file``) and a column ``patient_id``.
    hash_files : bool
        Compute the SHA-256 of every file, which finds exact duplicates and changed files.

    Raises
    ------
    DataError
        If the folder is absent or has no image, or a image has no label.
    """
    from pneumoscope.data.folder import scan_folder

    folder = Path(folder)
    if folder.suffix.lower() == ".npz" and folder.is_file():
        from pneumoscope.data.medmnist import read_npz

        return read_npz(folder, folder.with_suffix(""))
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds the images")
    return scan_folder(folder, labels_csv=labels_csv, patients_csv=patients_csv, hash_files=hash_files)


def load(path: str | Path) -> Manifest:
    """Read a data set in whatever form it has: a folder, a manifest or a MedMNIST file.

    Parameters
    ----------
    path : path-like
        A folder is scanned, ``.csv`` and ``.parquet`` are read, ``.npz`` is unpacked beside itself.

    Raises
    ------
    DataError
        If it is none of these, or cannot be read.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() == ".npz":
        return scan(path)
    if path.suffix.lower() in _TABLES:
        return Manifest.read(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give a folder of images or a manifest")
    raise DataError(f"{path}: not a data set; give a folder, a manifest (.csv, .parquet) or a MedMNIST .npz")


def _record(row: Mapping[str, Any], where: str) -> Record:
    values: dict[str, Any] = {}
    for name in COLUMNS:
        value = row.get(name)
        if name in ("width", "height"):
            try:
                values[name] = int(value or 0)
            except (TypeError, ValueError) as error:
                raise DataError(f"{where}: {name} '{value}' is no whole number") from error
        else:
            values[name] = "" if value is None else str(value).strip()
    values |= {name: parse(row.get(name)) for name, parse in _OPTIONAL.items()}
    try:
        # A manifest written by hand on Windows may have backslashes.
        values["path"] = str(PurePosixPath(values["path"].replace("\\", "/"))) if values["path"] else ""
        return Record(**{**values, "label": values["label"].lower()})
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _read_table(path: Path, required: tuple[str, ...]) -> list[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix not in _TABLES:
        raise DataError(f"{path}: a manifest is a .csv or a .parquet file")
    columns, rows = read_parquet(path) if suffix == ".parquet" else read_csv(path)
    if missing := [name for name in required if name not in columns]:
        raise DataError(f"{path}: no column {', '.join(missing)}; a manifest needs {', '.join(required)}")
    return rows


def read_csv(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the column names and the rows of a CSV file with a header.

    Raises
    ------
    DataError
        If the file cannot be opened or is no CSV in UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows = [{k: v for k, v in row.items() if isinstance(k, str)} for row in reader]
            return [name for name in reader.fieldnames or [] if name], rows
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (csv.Error, UnicodeError) as error:
        raise DataError(f"{path}: no CSV table in UTF-8 ({error})") from error


def read_parquet(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the column names and the rows of a Parquet file; raises as `read_csv` does."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("reading Parquet", "parquet") from error
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or "no Parquet table"
        raise DataError(f"{path}: cannot be read ({reason})") from error
    return list(table.column_names), table.to_pylist()


def _write_table(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    suffix = path.suffix.lower()
    if suffix not in _TABLES:
        raise DataError(f"{path}: a manifest is a .csv or a .parquet file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        else:
            _write_parquet(path, rows, columns)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def _write_parquet(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("writing Parquet", "parquet") from error
    numbers = {"width": pa.int32(), "height": pa.int32(), "age": pa.float64()}
    kinds = {name: numbers.get(name, pa.string()) for name in columns}
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items()))), path)
