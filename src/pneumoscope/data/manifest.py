"""The manifest: one row for each image, with its label, patient and split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pneumoscope.data.description import read_description
from pneumoscope.data.labels import class_name
from pneumoscope.data.layout import SPLIT_FOLDERS
from pneumoscope.data.tables import (
    parse_age,
    parse_sex,
    parse_text,
    parse_view,
    parse_whole,
    read_rows,
    require_columns,
    write_rows,
)
from pneumoscope.domain import DatasetDescription
from pneumoscope.errors import DataError, UnreadableImageError

__all__ = ["SPLITS", "Manifest", "Record", "ShareBox", "parse_boxes"]

ShareBox = tuple[float, float, float, float]
"""Left and upper edge, width and height of a box, as shares of the image's width and height."""

SPLITS = ("train", "val", "test")
"""The names of the splits, in their usual order."""

_REQUIRED = ("path", "label", "patient_id")


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
        Empty where the image has none yet.
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
    boxes : str
        Where a reader saw the finding, as ``x,y,width,height`` in shares of the image, several separated by
        ``;``; empty where nothing was drawn.

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
    boxes: str = ""

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


def parse_boxes(name: str, text: str) -> tuple[ShareBox, ...]:
    """Return the boxes of an image, each as x, y, width and height in shares of it.

    Parameters
    ----------
    name : str
        The image, for messages.
    text : str
        As in `Record.boxes`.

    Raises
    ------
    DataError
        If they are written differently, or a box has no area inside the image.
    """
    boxes = []
    for one in filter(None, (part.strip() for part in text.split(";"))):
        try:
            x, y, width, height = (float(number) for number in one.split(","))
        except ValueError as error:
            raise DataError(f"{name}: box '{one}' is not x,y,width,height") from error
        if not (0 <= x < 1 and 0 <= y < 1 and 0 < width <= 1 and 0 < height <= 1):
            raise DataError(f"{name}: box '{one}' must be in shares of the image, from 0 to 1")
        boxes.append((x, y, width, height))
    return tuple(boxes)


# Columns that are written only where some record has a value, and how they are read.
_OPTIONAL: dict[str, Callable[[object], Any]] = {
    "age": parse_age,
    "sex": parse_sex,
    "view": parse_view,
    "boxes": parse_text,
}
COLUMNS = tuple(field.name for field in fields(Record) if field.name not in _OPTIONAL)
_NUMBERS = {"width": int, "height": int, "age": float}


@dataclass(frozen=True)
class Manifest:
    """A data set as an ordered table of records.

    Parameters
    ----------
    records : tuple of Record
        Each path once.
    root : Path
        Folder that the records' paths start from.
    description : DatasetDescription or None
        The content of ``dataset.yaml``; None where there is none.
    left_out : tuple of UnreadableImageError
        Files and folders of a scanned folder that could not be read and are no records.
    origin : Path or None
        The file that the records were read from; None for a scanned folder.

    Raises
    ------
    DataError
        If two records have the same path.
    """

    records: tuple[Record, ...]
    root: Path
    description: DatasetDescription | None = None
    left_out: tuple[UnreadableImageError, ...] = field(default=(), compare=False)
    origin: Path | None = field(default=None, compare=False)

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
        """Read a manifest from CSV or Parquet, by the suffix, and its ``dataset.yaml``.

        The root is the folder named by an optional column ``root``, the same in all rows, where that folder
        exists, else the folder of the manifest. Columns may have one of the other names in
        `pneumoscope.data.tables.ALIASES`; unknown ones are ignored. The ``dataset.yaml`` beside the
        manifest is read, else the one in the root.

        Parameters
        ----------
        path : path-like
            A ``.csv`` (with a header) or ``.parquet`` file; `pneumoscope.data.tables` has the rules.

        Raises
        ------
        DataError
            If the file is absent or no table, lacks ``path``, ``label`` or ``patient_id``, or holds
            a wrong value or another root; the line names file and row.
        MissingExtraError
            For Parquet where pyarrow is not installed.
        """
        path = Path(path)
        columns, stream = read_rows(path, only=(*COLUMNS, *_OPTIONAL, "root"), aliases=True)
        require_columns(path, columns, _REQUIRED)
        rows = list(stream)
        root = path.parent / _stored_root(path, rows)
        records = tuple(_record(row, f"{path}, row {number}") for number, row in enumerate(rows, start=1))
        return cls(records, root, read_description(path.parent) or read_description(root), origin=path)

    def write(self, path: str | Path) -> None:
        """Write as CSV or Parquet, by the suffix.

        Where the manifest is not written into the images' root, a column ``root`` holds the root.

        Raises
        ------
        DataError
            If the suffix is neither, a name cannot be read again as it is, or the file cannot be written.
        MissingExtraError
            For Parquet where pyarrow is not installed.
        """
        path = Path(path)
        root = self.root.resolve()
        extra = {} if path.parent.resolve() == root else {"root": root.as_posix()}
        for name in (*extra.values(), *(record.path for record in self.records)):
            _check_name(path, name)
        known = [
            name
            for name in _OPTIONAL
            if any(getattr(record, name) not in {None, ""} for record in self.records)
        ]
        columns = (*COLUMNS, *known)
        rows = [{name: getattr(record, name) for name in columns} | extra for record in self.records]
        write_rows(path, rows, (*columns, *extra), types=_NUMBERS)

    @property
    def name(self) -> str:
        """The data set in messages: the file that was read, or the folder that was scanned."""
        return str(self.origin or self.root)

    @property
    def has_split(self) -> bool:
        """Whether some record has a split."""
        return any(record.split for record in self.records)

    def subset(self, split: str) -> Manifest:
        """Return the records of one split, in order."""
        return replace(self, records=tuple(record for record in self.records if record.split == split))

    def resolve(self, record: Record) -> Path:
        """Return where the image of a record lies."""
        return self.root / record.path

    def labels(self) -> list[str]:
        """Return the labels that occur, sorted."""
        return sorted({record.label for record in self.records})

    def fingerprint(self) -> str:
        """Return the SHA-256 over all paths, labels and file hashes, whatever their order or split."""
        return _sha256(f"{r.path}\0{r.label}\0{r.sha256}\n" for r in self.records)

    def split_fingerprint(self) -> str:
        """Return the SHA-256 over all paths and their splits, whatever their order."""
        return _sha256(f"{r.path}\0{r.split}\n" for r in self.records)

    def with_records(self, records: Iterable[Record]) -> Manifest:
        """Return a manifest with other records, and the same root and description."""
        return replace(self, records=tuple(records))


def _stored_root(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the column ``root`` where it names a folder, else an empty text."""
    stored = [str(row.get("root") or "") for row in rows]
    for number, root in enumerate(stored, start=1):
        if root != stored[0]:
            raise DataError(
                f"{path}, row {number}: root '{root}' differs from '{stored[0]}' in row 1; write one root in "
                "all rows, and the paths relative to it"
            )
    return stored[0] if stored and (path.parent / stored[0]).is_dir() else ""


def _check_name(path: Path, name: str) -> None:
    """Raise for a name that readers of tables would change: they turn backslashes and strip space."""
    if "\\" in name or name != name.strip():
        raise DataError(
            f"{path}: cannot hold the name {name!r} with its backslash or space at an end; rename the file"
        )


def _record(row: Mapping[str, Any], where: str) -> Record:
    values: dict[str, Any] = {}
    for name in COLUMNS:
        value = row.get(name)
        if name in ("width", "height"):
            values[name] = parse_whole(value, f"{where}: {name}")
        else:
            values[name] = "" if value is None else str(value)
    values["split"] = SPLIT_FOLDERS.get(values["split"].lower(), values["split"])
    values |= {name: parse(row.get(name)) for name, parse in _OPTIONAL.items()}
    try:
        values["path"] = str(PurePosixPath(values["path"])) if values["path"] else ""
        return Record(**{**values, "label": class_name(values["label"])})
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _sha256(lines: Iterable[str]) -> str:
    """Return the SHA-256 of lines, whatever their order."""
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
