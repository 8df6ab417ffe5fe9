"""The one reader of tables in CSV and Parquet, and how their cells state age, sex and view position.

The rules are the same for manifests, labels, patients, boxes and inputs:

- cells are separated by the comma, semicolon, tab or ``|`` that the header has most of, or that a first line
  ``sep=;`` names;
- names of columns count in lower case, with ``_`` for spaces and hyphens; a table of images, labels or
  patients may have the other names that `ALIASES` lists, as those of public data sets do;
- space around cells and rows without any content are left out;
- a column ``path`` or ``root`` may have backslashes;
- CSV is UTF-8, with or without a byte-order mark, or UTF-16; any line ends.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from pneumoscope.data.drafts import replacing
from pneumoscope.domain import ViewPosition
from pneumoscope.errors import DataError, require_extra
from pneumoscope.image.stated import age_in_years, view_in

__all__ = [
    "ALIASES",
    "TABLE_SUFFIXES",
    "check_suffix",
    "parse_age",
    "parse_sex",
    "parse_text",
    "parse_view",
    "parse_whole",
    "read_rows",
    "require_columns",
    "write_rows",
]

TABLE_SUFFIXES = frozenset({".csv", ".parquet"})
"""Suffixes, in lower case, of the tables that are read and written."""

ALIASES = {
    "path": ("file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_index"),
    "label": ("class", "finding", "finding_labels"),
    "patient_id": ("patient", "patientid"),
    "age": ("patient_age", "patientage"),
    "sex": ("gender", "patient_gender", "patient_sex", "patientsex"),
    "view": ("view_position", "viewposition"),
}
"""Other names of columns; each counts where the table has no column of the first name."""

Naming = Callable[[Sequence[object]], list[str]]

# Columns of a table that `predict` wrote: its finding is no label that someone gave.
_PREDICTED = frozenset({"decision", "bundle"})
_DELIMITERS = ",;\t|"
_PATH_COLUMNS = frozenset({"path", "root"})

_SEX = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M", "O": "O", "OTHER": "O"}


def parse_age(text: object) -> float | None:
    """Return an age in years from ``42``, ``042Y`` or ``6M``; None for anything else, or above 125."""
    return age_in_years(parse_text(text))


def parse_sex(text: object) -> str:
    """Return ``F``, ``M`` or ``O``, or an empty string if unknown."""
    return _SEX.get(str(text).strip().upper(), "")


def parse_text(text: object) -> str:
    """Return a cell as text without white space around it; empty for an empty one."""
    return str("" if text is None else text).strip()


def parse_view(text: object) -> str:
    """Return the view position ``AP``, ``PA`` or ``LL``, or an empty string if it is unknown or another.

    Words count, such as in ``PA ERECT`` or ``XTABLE LATERAL``; a decubitus view is none of these.
    """
    view = view_in(parse_text(text).upper())
    return "" if view in {ViewPosition.OTHER, ViewPosition.UNKNOWN} else str(view)


def parse_whole(value: Any, where: str) -> int:
    """Return a number without a fraction, which spreadsheets may write as ``224.0``; 0 for an empty cell.

    Parameters
    ----------
    value : object
        The cell.
    where : str
        Table, row and column, for the message.

    Raises
    ------
    DataError
        If it is no such number.
    """
    try:
        number = float(value or 0)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not number.is_integer():
        raise DataError(f"{where} '{value}' is not a whole number")
    return int(number)


def read_rows(
    path: Path, *, only: Sequence[str] | None = None, aliases: bool = False
) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Open a CSV or Parquet table and stream its rows, so that a table of any length needs little memory.

    Parameters
    ----------
    path : Path
        A ``.csv`` file (with a header) or a ``.parquet`` file, by the rules at the top of this module.
    only : sequence of str, optional
        Columns to read of a Parquet file, where it has them; all by default. CSV rows come whole.
    aliases : bool
        Columns may have one of the other names in `ALIASES`, too.

    Returns
    -------
    columns : list of str
        All columns of the table, in order, by their names in Pneumoscope.
    rows : iterator of dict
        One dict for each row: text in CSV, typed values or None in Parquet.

    Raises
    ------
    DataError
        If the file is absent or no table; also while the rows are drawn, where it is damaged further on.
    MissingExtraError
        For Parquet where pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise DataError(f"{path}: not a table; give a .csv or a .parquet file")
    columns: list[str] = []
    named = partial(_names, aliases=ALIASES if aliases else {})
    rows = (
        _parquet_rows(path, columns, named, only) if suffix == ".parquet" else _csv_rows(path, columns, named)
    )
    # The generators open the file, fill in the columns and yield an empty row before the first one.
    next(rows)
    return columns, _cleaned(rows)


def require_columns(path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    """Raise the one `DataError` for a table that lacks columns; it names them and those found."""
    if "label" in needed and "label" not in columns and _is_predicted(columns):
        raise DataError(
            f"{path}: a table of predictions, not of labels: its finding is what a network predicted; give a "
            "table with a column label"
        )
    if missing := [name for name in needed if name not in columns]:
        raise DataError(
            f"{path}: no column {', '.join(map(repr, missing))}; found {', '.join(columns) or 'none'}; "
            f"the first line must name {', '.join(needed)}"
        )


def _cleaned(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Strip text, turn backslashes of paths, and leave out rows without content."""
    for row in rows:
        cells = {name: cell.strip() if isinstance(cell, str) else cell for name, cell in row.items()}
        for name in _PATH_COLUMNS & cells.keys():
            if isinstance(cells[name], str):
                cells[name] = cells[name].replace("\\", "/")
        if any(cell is not None and cell != "" for cell in cells.values()):
            yield cells


def _is_predicted(columns: Collection[str]) -> bool:
    """Return whether `predict` wrote a table with these columns."""
    return "finding" in columns and any(name in _PREDICTED or name.startswith("p_") for name in columns)


def _names(given: Sequence[object], *, aliases: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names of columns by the rules of this module; empty for one that has none, or a second."""
    plain = [re.sub(r"[\s_-]+", "_", str("" if name is None else name).strip().lower()) for name in given]
    predicted = _is_predicted(plain)
    for first, others in aliases.items():
        if first == "label" and predicted:
            continue
        stand_in = next((name for name in others if name in plain), None)
        if first not in plain and stand_in is not None:
            plain[plain.index(stand_in)] = first
    return [name if name not in plain[:position] else "" for position, name in enumerate(plain)]


def _csv_rows(path: Path, columns: list[str], named: Naming) -> Iterator[dict[str, Any]]:
    try:
        with path.open(newline="", encoding=_encoding(path)) as file:
            delimiter = _delimiter(file)
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
            names = named(next((cells for cells in reader if any(map(str.strip, cells))), []))
            columns += [name for name in names if name]
            yield {}
            for cells in reader:
                # Cells beyond the header have no name, missing ones no content.
                row = dict.fromkeys(columns) | dict(zip(names, cells, strict=False))
                row.pop("", None)
                yield row
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check path and permissions") from error
    except (csv.Error, UnicodeError) as error:
        raise DataError(f"{path}: no CSV table in UTF-8 ({error}); save it again as CSV in UTF-8") from error


def _encoding(path: Path) -> str:
    """Return UTF-16 where the file has its byte-order mark or every second byte is zero, else UTF-8."""
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if b"\0" in head:
        return "utf-16-le" if head[1:2] == b"\0" else "utf-16-be"
    return "utf-8-sig"


def _delimiter(file: IO[str]) -> str:
    """Return what separates the cells, and leave the file at its header."""
    line = "\n"
    while line and not line.strip():
        start = file.tell()
        line = file.readline()
    if named := re.fullmatch(r'"?sep=(.)"?\s*', line, re.IGNORECASE):
        return named[1]
    file.seek(start)
    bare = re.sub(r'"[^"]*"', "", line)
    return max(_DELIMITERS, key=bare.count)


def _parquet_rows(
    path: Path, columns: list[str], named: Naming, only: Sequence[str] | None
) -> Iterator[dict[str, Any]]:
    with require_extra("parquet", "reading Parquet"):
        import pyarrow
        from pyarrow import parquet
    try:
        with parquet.ParquetFile(path) as table:
            names = dict(zip(table.schema_arrow.names, named(table.schema_arrow.names), strict=True))
            columns += filter(None, names.values())
            chosen = [name for name, known in names.items() if known and (only is None or known in only)]
            yield {}
            for batch in table.iter_batches(batch_size=4096, columns=chosen):
                for row in batch.to_pylist():
                    yield {names[name]: cell for name, cell in row.items()}
    # A cell may be no UTF-8 or a time beyond Python's: these are no ArrowException.
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or "no Parquet table, or damaged"
        raise DataError(f"{path}: cannot be read ({reason}); check the path, or write it again") from error


def write_rows(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    types: Mapping[str, type] | None = None,
) -> None:
    """Write a table as CSV or Parquet, by the suffix; its folder is created.

    A table that cannot be written to its end leaves an older one of its name as it is.

    Parameters
    ----------
    path : Path
        ``.csv`` or ``.parquet``.
    rows : iterable of mapping
        Each with a value for every column.
    columns : sequence of str
        In order.
    types : mapping of str to type, optional
        Columns of ``int`` or ``float`` in Parquet; the others are text.

    Raises
    ------
    DataError
        If the suffix is neither, or the file cannot be written.
    MissingExtraError
        For Parquet where pyarrow is not installed.
    """
    check_suffix(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".csv":
            with replacing(path) as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        else:
            with replacing(path, "wb") as file:
                _write_parquet(file, rows, columns, types or {})
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    except UnicodeEncodeError as error:  # of bytes that are no text, in a file name
        name = error.object[max(0, error.start - 40) : error.end + 40].encode("utf-8", "backslashreplace")
        raise DataError(
            f"{path}: cannot hold a file name that is not UTF-8 (…{name.decode().strip()}…); rename the file"
        ) from error


def check_suffix(path: Path) -> None:
    """Raise a `DataError` for a file to write whose suffix is not that of a table."""
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(f"{path}: not a table; name a .csv or a .parquet file")


def _write_parquet(
    file: IO[bytes], rows: Iterable[Mapping[str, Any]], columns: Sequence[str], types: Mapping[str, type]
) -> None:
    with require_extra("parquet", "writing Parquet"):
        import pyarrow as pa
        from pyarrow import parquet
    arrow: dict[type, Callable[[], Any]] = {int: pa.int32, float: pa.float64, str: pa.string}
    schema = pa.schema([(name, arrow[types.get(name, str)]()) for name in columns])
    parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema), file)
