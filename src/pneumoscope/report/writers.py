"""Predictions into files: CSV, JSON, JSON Lines, Parquet.

Each is written row by row, so that memory does not grow with the number of rows, and into a draft beside the
file that takes its name at the end. A run that was interrupted leaves a readable table of the rows that it
finished; where an older table has the name, it stays and the finished rows lie beside it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pneumoscope.data.drafts import draft_of, partial_path, rename, replacing, unwritable
from pneumoscope.domain import Prediction
from pneumoscope.errors import DataError, require_extra
from pneumoscope.report.rows import columns, csv_safe, flat_row, probability_columns, to_row

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "RESULT_SUFFIXES",
    "Write",
    "arrow_schema",
    "is_utf8",
    "json_array",
    "open_results",
    "replacing",
    "unfinished_path",
]

Write = Callable[[Prediction], None]
"""Adds one row."""

Writer = Callable[..., AbstractContextManager[Write]]

ROWS_A_GROUP = 8192  # of Parquet, held in memory until written


def unfinished_path(path: Path) -> Path:
    """Return where the finished rows of an interrupted run go: `path`, or beside it where that exists."""
    return partial_path(path) if path.exists() else path


def open_results(path: Path, *, classes: Sequence[str], target: str) -> AbstractContextManager[Write]:
    """Return a context that yields a function to add rows; the suffix of the file chooses the format.

    A cell of a CSV that a spreadsheet would run as a formula gets an apostrophe before it. Where the block
    ends with an error or an interrupt, the rows added so far become a complete table at `unfinished_path`.

    Parameters
    ----------
    path : Path
        The file to write or replace, with one of `RESULT_SUFFIXES`.
    classes : sequence of str
        Classes of the bundle, in order.
    target : str
        Name of its target finding.

    Raises
    ------
    DataError
        If the suffix is none of `RESULT_SUFFIXES`; on entry, if the file cannot be written.
    MissingExtraError
        On entry, for Parquet where pyarrow is not installed.
    """
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        known = ", ".join(RESULT_SUFFIXES)
        raise DataError(f"{path}: unknown format; end the name with one of {known}")
    return _results(path, writer, classes, target)


@contextmanager
def _results(path: Path, writer: Writer, classes: Sequence[str], target: str) -> Iterator[Write]:
    rows, complete = 0, False
    of_block: OSError | None = None  # of another file, such as a closed pipe
    with draft_of(path, "wb" if writer is _parquet else "w") as (draft, file):
        try:
            with writer(file, classes=classes, target=target) as write:

                def add(prediction: Prediction) -> None:
                    nonlocal rows
                    try:
                        write(prediction)
                    except OSError as error:
                        raise unwritable(path, error) from error
                    rows += 1

                try:
                    yield add
                except OSError as error:
                    of_block = error
                    raise
            file.close()
            complete = True
        except OSError as error:
            if error is of_block:
                raise
            raise unwritable(path, error) from error
        finally:
            with suppress(OSError):
                file.close()
            if complete or rows:
                rename(draft, path if complete else unfinished_path(path))


@contextmanager
def _csv(file: IO[str], *, classes: Sequence[str], target: str) -> Iterator[Write]:
    rows = csv.DictWriter(file, columns(classes, target), lineterminator="\n")
    rows.writeheader()

    def write(prediction: Prediction) -> None:
        cells = flat_row(prediction, classes, target)
        rows.writerow({name: csv_safe(cell) for name, cell in cells.items()})

    yield write


@contextmanager
def _json_lines(file: IO[str], *, classes: Sequence[str], target: str) -> Iterator[Write]:
    def write(prediction: Prediction) -> None:
        file.write(_json_of(prediction, classes, target) + "\n")

    yield write


@contextmanager
def json_array(file: IO[str], *, classes: Sequence[str], target: str) -> Iterator[Write]:
    """Write one JSON array of objects into an open text file; the array is closed after an error, too."""
    file.write("[")
    separator = "\n"

    def write(prediction: Prediction) -> None:
        nonlocal separator
        file.write(separator + _json_of(prediction, classes, target, ascii_only=not is_utf8(file)))
        separator = ",\n"

    try:
        yield write
    finally:
        file.write("\n]\n")


def arrow_schema(classes: Sequence[str], target: str) -> pa.Schema:
    """Return the Arrow schema of a table of results: the columns of `pneumoscope.report.rows.columns`, typed.

    Raises
    ------
    MissingExtraError
        If pyarrow is not installed.
    """
    with require_extra("parquet", "writing Parquet"):
        import pyarrow as pa
    types = {
        "reasons": pa.list_(pa.string()),
        "prediction_set": pa.list_(pa.string()),
        "uncertain": pa.bool_(),
    }
    types |= dict.fromkeys(probability_columns(classes, target), pa.float64())
    return pa.schema([(name, types.get(name, pa.string())) for name in columns(classes, target)])


@contextmanager
def _parquet(file: IO[bytes], *, classes: Sequence[str], target: str) -> Iterator[Write]:
    with require_extra("parquet", "writing Parquet"):
        import pyarrow as pa
        from pyarrow import parquet
    schema = arrow_schema(classes, target)
    waiting: list[dict[str, Any]] = []
    with parquet.ParquetWriter(file, schema) as table:

        def flush() -> None:
            table.write_table(pa.Table.from_pylist(waiting, schema=schema))
            waiting.clear()

        def write(prediction: Prediction) -> None:
            waiting.append(to_row(prediction, classes, target))
            if len(waiting) >= ROWS_A_GROUP:
                flush()

        try:
            yield write
        finally:
            flush()


def _json_of(prediction: Prediction, classes: Sequence[str], target: str, *, ascii_only: bool = False) -> str:
    return json.dumps(to_row(prediction, classes, target), ensure_ascii=ascii_only)


def is_utf8(file: IO[str]) -> bool:
    """Return whether a text file can hold any character, as files of this program do; terminals may not."""
    encoding = getattr(file, "encoding", None) or "utf-8"
    return encoding.lower().replace("-", "") == "utf8"


WRITERS: dict[str, Writer] = {
    ".csv": _csv,
    ".json": json_array,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}

RESULT_SUFFIXES: tuple[str, ...] = tuple(WRITERS)
"""Suffixes that choose the format."""
