"""Files, folders and manifests, as a user names them, turned into a stream of images.

A manifest is any CSV or Parquet table with a ``path`` column, and perhaps ``root``, ``age`` and ``view``; it
is read row by row, so that millions of rows need no memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.data.tables import TABLE_SUFFIXES, parse_age, parse_view, read_rows
from pneumoscope.domain import ViewPosition
from pneumoscope.errors import DataError, Reason, UnreadableImageError
from pneumoscope.image.decode import IMAGE_SUFFIXES, looks_like_image

__all__ = ["InputItem", "expand"]


@dataclass(frozen=True, slots=True)
class InputItem:
    """An image to read, with what is known of it beside its file.

    Parameters
    ----------
    source : str, bytes or UnreadableImageError
        A path, the content of a file, or the reason why there is neither.
    name : str or None
        What to call it in results; the path if not given.
    age : float or None
        Of the patient in years, where a manifest states it; a DICOM header has priority.
    view : str
        View position, likewise.
    """

    source: str | bytes | UnreadableImageError
    name: str | None = None
    age: float | None = None
    view: str = ViewPosition.UNKNOWN

    @property
    def label(self) -> str:
        """What the image is called in results and messages."""
        if isinstance(self.source, UnreadableImageError):
            return self.source.path
        return self.name or (self.source if isinstance(self.source, str) else "<bytes>")


def expand(paths: Iterable[str | Path | InputItem] | str | Path) -> Iterator[InputItem]:
    """Yield the images of files, folders and manifests, in the order given.

    A folder is searched with all its subfolders, in the order of their names, for files that are images by
    suffix or by content; hidden files and linked folders are left out. A path that does not exist is
    yielded unchanged: reading it gives the row with the reason.

    Parameters
    ----------
    paths : path or iterable of paths
        Files, folders, and manifests (``.csv`` or ``.parquet`` with a ``path`` column, relative to the
        manifest's folder or to the column ``root``); an `InputItem` is yielded unchanged.

    Raises
    ------
    DataError
        If a manifest cannot be read or has no ``path`` column.
    MissingExtraError
        If a Parquet manifest is given and pyarrow is not installed.
    """
    for given in (paths,) if isinstance(paths, str | Path) else paths:
        if isinstance(given, InputItem):
            yield given
            continue
        path = Path(given)
        try:
            is_folder, is_file = path.is_dir(), path.is_file()
        except OSError:  # a name that is too long, or in a closed folder: reading it gives the reason
            is_folder = is_file = False
        if is_folder:
            yield from _folder(path)
        elif is_file and path.suffix.lower() in TABLE_SUFFIXES:
            yield from _manifest(path)
        else:
            yield InputItem(str(given))


def _folder(folder: Path) -> Iterator[InputItem]:
    found = False
    for item in _walk(folder):
        found = True
        yield item
    if not found:
        detail = "there is no image in this folder; give one that holds X-rays"
        yield InputItem(UnreadableImageError(str(folder), Reason.NOT_FOUND, detail))


def _walk(folder: Path) -> Iterator[InputItem]:
    problems: list[OSError] = []
    for parent, subfolders, names in os.walk(folder, onerror=problems.append):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        while problems:
            yield _closed(problems.pop())
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and _is_image(path):
                yield InputItem(str(path))
    while problems:
        yield _closed(problems.pop())


def _closed(problem: OSError) -> InputItem:
    detail = "no permission to read this folder; change its mode or its owner"
    return InputItem(UnreadableImageError(str(problem.filename), Reason.NO_PERMISSION, detail))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES or looks_like_image(path)


def _manifest(path: Path) -> Iterator[InputItem]:
    columns, rows = read_rows(path, only=("path", "root", "age", "view"))
    if "path" not in columns:
        raise DataError(f"{path}: no column 'path'; a manifest has one row an image, its path in that column")
    for row in rows:
        if not row["path"]:
            continue
        root = row.get("root")
        base = path.parent / root if root and (path.parent / root).is_dir() else path.parent
        view = parse_view(row.get("view")) or ViewPosition.UNKNOWN
        yield InputItem(str(base / row["path"]), age=parse_age(row.get("age")), view=view)
