"""Tables in CSV and Parquet, and how their cells state age, sex and view position."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError, require_extra

__all__ = ["TABLE_SUFFIXES", "parse_age", "parse_sex", "parse_view", "read_rows", "write_rows"]

TABLE_SUFFIXES = frozenset({".csv", ".parquet"})
"""Suffixes, in lower case, of the tables that are read and written."""

# DICOM's age string (PS3.5 6.2): a number, and days, weeks, months or years; tables often leave out the unit.
_AGE = re.compile(r"(\d+(?:\.\d+)?)([DWMY]?)", re.IGNORECASE)
_PER_YEAR = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0, "": 1.0}
_MAX_AGE = 130
_SEX = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M", "O": "O", "OTHER": "O"}
_VIEW = {"AP": "AP", "PA": "PA", "LL": "LL", "RL": "LL", "LAT": "LL", "LATERAL": "LL"}


def parse_age(text: object) -> float | None:
    """Return an age in years from ``42``, ``042Y`` or ``6M``; None for anything else, or above 130."""
    found = _AGE.fullmatch(str("" if text is None else text).strip())
    if not found:
        return None
    years = float(found[1]) / _PER_YEAR[found[2].upper()]
    return years if math.isfinite(years) and years <= _MAX_AGE else None


def parse_sex(text: object) -> str:
    """Return ``F``, ``M`` or ``O``, or an empty string if unknown."""
    return _SEX.get(str(text).strip().upper(), "")


def parse_view(text: object) -> str:
    """Return the view position ``AP``, ``PA`` or ``LL``, or an empty string if unknown."""
    return _VIEW.get(str(text).strip().upper(), "")


def read_rows(path: Path, *, only: Sequence[str] | None = None) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Open a CSV or Parquet table and stream its rows, so that a table of any length needs little memory.

    Parameters
    ----------
    path : Path
        A ``.csv`` file (UTF-8, with a header) or a ``.parquet`` file.
    only : sequence of str, optional
        Columns to read of a Parquet file, where it has them; all by default. CSV rows come whole.

    Returns
    -------
    columns : list of str
        All columns of the table, in order.
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
    rows = _parquet_rows(path, columns, only) if suffix == ".parquet" else _csv_rows(path, columns)
    # The generators open the file, fill in the columns and yield an empty row before the first one.
    next(rows)
    return columns, rows


def _csv_rows(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            columns += [name for name in reader.fieldnames or [] if name]
            yield {}
            for row in reader:
                # Cells beyond the header come under the key None.
                yield {name: cell for name, cell in row.items() if isinstance(name, str)}
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check path and permissions") from error
    except (csv.Error, UnicodeError) as error:
        raise DataError(f"{path}: no CSV table in UTF-8 ({error}); save it again as CSV in UTF-8") from error


def _parquet_rows(path: Path, columns: list[str], only: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    with require_extra("parquet", "reading Parquet"):
        import pyarrow
        from pyarrow import parquet
    try:
        with parquet.ParquetFile(path) as table:
            columns += table.schema_arrow.names
            chosen = None if only is None else [name for name in only if name in columns]
            yield {}
            for batch in table.iter_batches(batch_size=4096, columns=chosen):
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
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
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise DataError(f"{path}: not a table; name a .csv or a .parquet file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        else:
            _write_parquet(path, rows, columns, types or {})
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def _write_parquet(
    path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], types: Mapping[str, type]
) -> None:
    with require_extra("parquet", "writing Parquet"):
        import pyarrow as pa
        from pyarrow import parquet
    arrow: dict[type, Callable[[], Any]] = {int: pa.int32, float: pa.float64, str: pa.string}
    schema = pa.schema([(name, arrow[types.get(name, str)]()) for name in columns])
    parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
