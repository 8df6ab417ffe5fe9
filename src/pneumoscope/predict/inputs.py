"""Files, folders and manifests, as a user names them, turned into a stream of images.

A manifest is any CSV or Parquet table with a ``path`` column, and perhaps ``root``, ``age`` and ``view``, or
one of the other names that `pneumoscope.data.tables.ALIASES` lists; it is read row by row, so that millions
of rows need no memory.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from pneumoscope.data.manifest import Manifest
from pneumoscope.data.tables import (
    TABLE_SUFFIXES,
    parse_age,
    parse_text,
    parse_view,
    read_rows,
    require_columns,
)
from pneumoscope.data.walk import special_file, walk
from pneumoscope.domain import ViewPosition
from pneumoscope.errors import DataError, MissingExtraError, Reason, UnreadableImageError, counted
from pneumoscope.parallel import Progress

__all__ = ["InputItem", "ManifestRow", "base_folder", "expand", "input_items", "local_path", "manifest_rows"]

log = logging.getLogger(__name__)

# RFC 8089: no authority, an empty one or localhost; then an absolute path.
_FILE_URI = re.compile(r"file:(?://(?:localhost)?)?(?P<path>/(?!/).*)", re.IGNORECASE | re.DOTALL)


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


class ManifestRow(NamedTuple):
    """An image as a manifest names it; `age` and `view` as of `InputItem`."""

    path: str
    root: str
    age: float | None
    view: str


def expand(
    paths: Iterable[str | Path | InputItem] | str | Path, *, progress: Progress | None = None
) -> Iterator[InputItem]:
    """Yield the images of files, folders and manifests, in the order given.

    A folder is searched by `pneumoscope.data.walk.walk`. Nothing stops the others: a path that does not
    exist is yielded unchanged, since reading it gives the row with the reason; a table that is no manifest,
    or names no image, a folder without images, a pipe or a device is yielded as the reason itself.

    Parameters
    ----------
    paths : path or iterable of paths
        Files, folders, and manifests (``.csv`` or ``.parquet`` with a ``path`` column, relative to the
        manifest's folder or to the column ``root``), also as URIs ``file:///…``; an `InputItem` is yielded
        unchanged.
    progress : Progress, optional
        Receives a line for what is left out of a folder.
    """
    for given in (paths,) if isinstance(paths, str | Path) else paths:
        if isinstance(given, InputItem):
            yield given
            continue
        if not str(given).strip():
            detail = "the path is empty; name a file or a folder"
            yield InputItem(UnreadableImageError(str(given), Reason.NOT_FOUND, detail))
            continue
        name = local_path(str(given))
        path = Path(name)
        try:
            is_folder, is_file = path.is_dir(), path.is_file()
        except (OSError, ValueError):  # too long a name, or in a closed folder: reading it gives the reason
            is_folder = is_file = False
        if is_folder:
            yield from _folder(path, progress)
        elif is_file and path.suffix.lower() in TABLE_SUFFIXES:
            yield from _manifest(path)
        else:
            yield _item(name)


def input_items(manifest: Manifest) -> list[InputItem]:
    """Return the images of a data set, with age and view where it states them."""
    return [
        InputItem(str(manifest.resolve(record)), age=record.age, view=record.view or ViewPosition.UNKNOWN)
        for record in manifest.records
    ]


def _folder(folder: Path, progress: Progress | None) -> Iterator[InputItem]:
    found = False
    for one in walk(folder, progress=progress):
        found = True
        yield InputItem(str(one) if isinstance(one, Path) else one)
    if not found:
        detail = "there is no image in this folder; give one that holds X-rays"
        yield InputItem(UnreadableImageError(str(folder), Reason.NOT_FOUND, detail))


def _manifest(path: Path) -> Iterator[InputItem]:
    found = False
    try:
        for row in manifest_rows(path):
            found = True
            yield _item(str(base_folder(path.parent, row.root) / row.path), age=row.age, view=row.view)
    except (DataError, MissingExtraError) as error:
        detail = str(error).removeprefix(f"{path}: ")
        yield InputItem(UnreadableImageError(str(path), Reason.NOT_AN_IMAGE, detail))
        return
    if not found:
        detail = "this table names no image; give one with a path in each row"
        yield InputItem(UnreadableImageError(str(path), Reason.NOT_FOUND, detail))


def manifest_rows(path: Path) -> Iterator[ManifestRow]:
    """Yield the images that a manifest names, row by row, so that millions of rows need no memory.

    Rows without a path are left out, with a line in the log that counts them.

    Raises
    ------
    DataError
        If the file is no table with a column ``path``; also while rows are drawn, where it is damaged.
    MissingExtraError
        For Parquet where pyarrow is not installed.
    """
    columns, rows = read_rows(path, only=("path", "root", "age", "view"), aliases=True)
    require_columns(path, columns, ("path",))
    without = 0
    for row in rows:
        if row["path"]:
            view = parse_view(row.get("view")) or ViewPosition.UNKNOWN
            root = parse_text(row.get("root"))  # Parquet may have numbers
            yield ManifestRow(local_path(str(row["path"])), root, parse_age(row.get("age")), view)
        else:
            without += 1
    if without:
        log.warning("%s: %s without a path left out", path, counted(without, "row"))


def local_path(location: str) -> str:
    """Return the path that a URI such as ``file:///xrays/a%20b.png`` names (RFC 8089); others unchanged."""
    found = _FILE_URI.fullmatch(location)
    return os.fsdecode(unquote_to_bytes(found["path"])) if found else location


def base_folder(folder: Path, root: str | None) -> Path:
    """Return the folder that the paths of a manifest start from."""
    try:
        return folder / root if root and (folder / root).is_dir() else folder
    except (OSError, ValueError):  # no name that a folder can have, or one that may not be looked into
        return folder


def _item(path: str, *, age: float | None = None, view: str = ViewPosition.UNKNOWN) -> InputItem:
    return InputItem(special_file(path) or path, age=age, view=view)
