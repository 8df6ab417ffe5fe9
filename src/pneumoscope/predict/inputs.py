"""What the user names on the command line or in Python, turned into a stream of images.

A manifest is any CSV or Parquet table with a ``path`` column, and perhaps a ``root``; only these two are
read here, row by row, so that millions of rows need no memory.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pneumoscope.errors import DataError, MissingExtraError, Reason, UnreadableImageError
from pneumoscope.image.decode import IMAGE_SUFFIXES, looks_like_image

__all__ = ["Item", "expand"]

Item = str | UnreadableImageError
"""A image's path, or the reason why there is none."""

MANIFEST_SUFFIXES = frozenset({".csv", ".parquet"})


def expand(paths: Iterable[str | Path] | str | Path) -> Iterator[Item]:
    """Yield the images behind files, folders and manifests, in the order given.

    A folder is searched with all its subfolders, in the order of their names, for files that are images by
    suffix or by content; hidden files and linked folders are passed over. A path that does not exist is
    yielded as it is: reading it gives the row with the reason.

    Parameters
    ----------
    paths : path or iterable of paths
        Files, folders, and manifests (``.csv`` or ``.parquet`` with a ``path`` column, relative to the
        manifest's folder or to the column ``root``).

    Raises
    ------
    DataError
        If a manifest cannot be read or has no ``path`` column.
    MissingExtraError
        If a Parquet manifest is given and pyarrow is not installed.
    """
    for given in (paths,) if isinstance(paths, str | Path) else paths:
        path = Path(given)
        try:
            is_folder, is_file = path.is_dir(), path.is_file()
        except OSError:  # a name that is too long, or in a closed folder: reading it will say so
            is_folder = is_file = False
        if is_folder:
            yield from _folder(path)
        elif is_file and path.suffix.lower() in MANIFEST_SUFFIXES:
            yield from _manifest(path)
        else:
            yield str(given)


def _folder(folder: Path) -> Iterator[Item]:
    found = False
    for item in _walk(folder):
        found = True
        yield item
    if not found:
        detail = "there is no image in this folder; give one that holds X-rays"
        yield UnreadableImageError(str(folder), Reason.NOT_FOUND, detail)


def _walk(folder: Path) -> Iterator[Item]:
    problems: list[OSError] = []
    for parent, subfolders, names in os.walk(folder, onerror=problems.append):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        while problems:
            yield _closed(problems.pop())
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and _is_image(path):
                yield str(path)
    while problems:
        yield _closed(problems.pop())


def _closed(problem: OSError) -> UnreadableImageError:
    detail = "this folder may not be read; give yourself read permission"
    return UnreadableImageError(str(problem.filename), Reason.NO_PERMISSION, detail)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES or looks_like_image(path)


def _manifest(path: Path) -> Iterator[Item]:
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _parquet_rows(path)
    for name, root in rows:
        base = path.parent / root if root and (path.parent / root).is_dir() else path.parent
        yield str(base / name)


def _csv_rows(path: Path) -> Iterator[tuple[str, str | None]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if "path" not in (rows.fieldnames or ()):
                raise _no_path_column(path)
            for row in rows:
                if row["path"]:
                    yield row["path"], row.get("root")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV manifest ({error}); save it as UTF-8") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, str | None]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("reading a Parquet manifest", "parquet") from error
    try:
        with parquet.ParquetFile(path) as table:
            columns = [name for name in ("path", "root") if name in table.schema_arrow.names]
            if "path" not in columns:
                raise _no_path_column(path)
            for batch in table.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    if row["path"]:
                        yield str(row["path"]), row.get("root")
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet manifest ({error}); write it again") from error


def _no_path_column(path: Path) -> DataError:
    return DataError(f"{path}: no column 'path'; a manifest has one row a image, its path in that column")
