"""INPUT, a folder, a manifest or a URI, turned into a stream of entries: one for each image."""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import fs

from pneumoscope.data.tables import TABLE_SUFFIXES
from pneumoscope.domain import ViewPosition
from pneumoscope.errors import DataError, UnreadableImageError
from pneumoscope.image.decode import IMAGE_SUFFIXES
from pneumoscope.parallel import Progress
from pneumoscope.predict.inputs import base_folder, expand, manifest_rows
from pneumoscope.report.rows import plain_text
from pneumoscope.serve.batch.store import filesystem, first_line, is_uri, split_uri

__all__ = ["Entry", "list_entries"]

COPY_CHUNK = 8 << 20  # bytes


class Entry(NamedTuple):
    """An image of the run.

    Parameters
    ----------
    path : str
        A path or a URI, as it stands in the results.
    age : float or None
        Of the patient in years, where the manifest states it.
    view : str
        View position, likewise.
    reason, detail : str
        Why it cannot be read, where the listing shows that; empty otherwise.
    stamp : str
        Size in bytes and time of change in seconds, where the listing shows them: a file that was replaced
        is noticed by them. Not kept in the manifest of the run.
    """

    path: str
    age: float | None = None
    view: str = ViewPosition.UNKNOWN
    reason: str = ""
    detail: str = ""
    stamp: str = ""


def list_entries(source: str, progress: Progress | None = None) -> Iterator[Entry]:
    """Yield the images of a folder, a manifest or a URI, in an order that depends on their names only.

    Parameters
    ----------
    source : str
        A folder, searched with all subfolders; a manifest (``.csv`` or ``.parquet`` with a column ``path``,
        of paths relative to it, or of URIs); a URI of either in an object store. In a store, objects count
        whose name has the suffix of an image, or none, or a number as DICOM files have.
    progress : Progress, optional
        Receives a line for what is left out of a folder.

    Raises
    ------
    DataError
        If there is nothing of that name, or the manifest cannot be read.
    """
    if is_uri(source):
        yield from _remote(source)
        return
    path = Path(source)
    if not path.exists():
        raise DataError(f"{path}: there is no such folder or manifest; check the path")
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        yield from _manifest(path, str(path.parent))
        return
    for item in expand(source, progress=progress):
        if isinstance(item.source, UnreadableImageError):
            problem = item.source
            if problem.path == source:
                raise DataError(str(problem))
            yield Entry(plain_text(problem.path), reason=str(problem.reason), detail=problem.detail)
        else:
            file = str(item.source)
            yield Entry(file, item.age, item.view, stamp=_stamp(file))


def _stamp(path: str) -> str:
    """Return size and time of change of a local file; empty where there is none."""
    try:
        facts = Path(path).stat()
    except (OSError, ValueError):  # reading it gives the reason
        return ""
    return f"{facts.st_size} {int(facts.st_mtime)}"


def _manifest(path: Path, base: str) -> Iterator[Entry]:
    """Yield the entries of a table; relative paths begin at `base`, a folder or a URI."""
    join: Any = posixpath.join if is_uri(base) else _join
    for row in manifest_rows(path):
        full = row.path if is_uri(row.path) else join(base, row.root, row.path)
        yield Entry(full, row.age, row.view, stamp="" if is_uri(full) else _stamp(full))


def _join(base: str, root: str, path: str) -> str:
    """Return a local path; the column ``root`` counts where it names a folder, as in `expand`."""
    return str(base_folder(Path(base), root) / path)


def _remote(source: str) -> Iterator[Entry]:
    uri = split_uri(source)
    files = filesystem(uri.scheme, uri.bucket, uri.options)
    try:
        if posixpath.splitext(uri.key)[1].lower() in TABLE_SUFFIXES:
            with tempfile.TemporaryDirectory(prefix="pneumoscope-") as folder:
                local = Path(folder) / posixpath.basename(uri.key)
                with files.open_input_stream(uri.path) as table, local.open("wb") as file:
                    while chunk := table.read(COPY_CHUNK):
                        file.write(chunk)
                yield from _manifest(local, posixpath.dirname(uri.text))
            return
        for one in _objects(files, uri.path):
            changed = "" if one.mtime is None else int(one.mtime.timestamp())
            yield Entry(f"{uri.scheme}://{one.path}", stamp=f"{one.size} {changed}")
    except OSError as error:
        raise DataError(
            f"{uri.text}: cannot be listed ({first_line(error)}); check URI, credentials and connection"
        ) from error


def _objects(files: Any, path: str) -> Iterator[fs.FileInfo]:
    """Yield the images under a prefix, folder by folder, so that memory is that of the largest one."""
    waiting = [path]
    while waiting:
        found = sorted(files.get_file_info(fs.FileSelector(waiting.pop())), key=lambda one: one.path)
        yield from (one for one in found if one.type == fs.FileType.File and _may_be_image(one.base_name))
        waiting += [one.path for one in found if one.type == fs.FileType.Directory][::-1]


def _may_be_image(name: str) -> bool:
    suffix = posixpath.splitext(name)[1].lower()
    hidden = name.startswith((".", "_"))
    return not hidden and (suffix in IMAGE_SUFFIXES or not suffix or suffix[1:].isdigit())
