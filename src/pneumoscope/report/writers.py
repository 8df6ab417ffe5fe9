"""Predictions into files: CSV, JSON, JSON Lines, Parquet.

All of them are written row by row, so that memory does not grow with their number, and into a draft beside
the target that takes its name only when it is complete: a killed run leaves no half table behind.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from pneumoscope.domain import Prediction
from pneumoscope.errors import DataError, MissingExtraError
from pneumoscope.report.rows import COLUMNS, Row, csv_safe, flat_row, to_row

__all__ = ["RESULT_SUFFIXES", "Write", "json_array", "open_results", "replacing"]

Write = Callable[[Prediction], None]
"""Adds one row."""

ROWS_A_GROUP = 8192  # of Parquet, held in memory until written


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a draft that becomes `path` when the block ends well, and vanishes when it does not.

    Parameters
    ----------
    path : Path
        The file to make or replace; its folder must exist.
    mode : {"w", "wb"}
        Text in UTF-8, or bytes.

    Raises
    ------
    DataError
        If no file can be made there.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
    try:
        file = draft.open(mode.replace("w", "x"), encoding=encoding, newline=newline)
    except OSError as error:
        raise DataError(f"{path}: cannot write there ({error.strerror}); name another file") from error
    try:
        with file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def open_results(path: Path) -> AbstractContextManager[Write]:
    """Return a context that yields a function to add rows; the ending of the name chooses the format.

    File names in a CSV cannot act as formulas: a dangerous start gets an apostrophe before it.

    Raises
    ------
    DataError
        If the ending is none of `RESULT_SUFFIXES`; on entry, if the file cannot be made.
    MissingExtraError
        On entry, if Parquet is asked for and pyarrow is not installed.
    """
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        known = ", ".join(RESULT_SUFFIXES)
        raise DataError(f"{path}: unknown kind of table; end the name with one of {known}")
    return writer(path)


@contextmanager
def _csv(path: Path) -> Iterator[Write]:
    with replacing(path) as file:
        rows = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        rows.writeheader()

        def write(prediction: Prediction) -> None:
            rows.writerow({name: csv_safe(cell) for name, cell in flat_row(prediction).items()})

        yield write


@contextmanager
def _json_lines(path: Path) -> Iterator[Write]:
    with replacing(path) as file:

        def write(prediction: Prediction) -> None:
            file.write(_json_of(prediction) + "\n")

        yield write


@contextmanager
def json_array(file: IO[str]) -> Iterator[Write]:
    """Write one JSON array of objects into an open text file, element by element."""
    file.write("[")
    separator = "\n"

    def write(prediction: Prediction) -> None:
        nonlocal separator
        file.write(separator + _json_of(prediction))
        separator = ",\n"

    yield write
    file.write("\n]\n")


@contextmanager
def _json(path: Path) -> Iterator[Write]:
    with replacing(path) as file, json_array(file) as write:
        yield write


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("writing Parquet", "parquet") from error
    types = {"reasons": pa.list_(pa.string()), "prediction_set": pa.list_(pa.string())}
    types |= {name: pa.float64() for name in COLUMNS if name.startswith("p_")} | {"uncertain": pa.bool_()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    waiting: list[Row] = []
    with replacing(path, "wb") as file, parquet.ParquetWriter(file, schema) as table:

        def flush() -> None:
            table.write_table(pa.Table.from_pylist(waiting, schema=schema))
            waiting.clear()

        def write(prediction: Prediction) -> None:
            waiting.append(to_row(prediction))
            if len(waiting) >= ROWS_A_GROUP:
                flush()

        yield write
        flush()


def _json_of(prediction: Prediction) -> str:
    return json.dumps(to_row(prediction), ensure_ascii=False)


WRITERS: dict[str, Callable[[Path], AbstractContextManager[Write]]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}

RESULT_SUFFIXES: tuple[str, ...] = tuple(WRITERS)
"""File name endings that choose the format."""
