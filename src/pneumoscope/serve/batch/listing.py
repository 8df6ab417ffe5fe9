"""INPUT, a folder, a manifest or a URI, turned into a stream of entries: one for each image."""

from __future__ import annotations

import posixpath
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import fs

from pneumoscope.data.tables import TABLE_SUFFIXES
from pneumoscope.data.walk import (
    DICOMDIR,
    DICOMDIR_DETAIL,
    OWN_HEAD_BYTES,
    LoggedMessages,
    has_image_suffix,
    has_images_and_masks,
    is_ignored,
    is_own_output,
    left_out_lines,
    mask_folders,
)
from pneumoscope.domain import ViewPosition
from pneumoscope.errors import DataError, Reason, UnreadableImageError, counted
from pneumoscope.parallel import Progress, in_order
from pneumoscope.predict.inputs import base_folder, expand, manifest_rows
from pneumoscope.report.rows import plain_text
from pneumoscope.serve.batch.store import (
    CredentialsError,
    Uri,
    filesystem,
    first_line,
    is_uri,
    split_uri,
)

__all__ = ["Entry", "list_entries"]

COPY_CHUNK = 8 << 20  # bytes
HEAT_MAP = ".heatmap.png"
LOOKS = 16  # at once; each waits for the store most of the time


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
        of paths relative to it, or of URIs); a URI of either in an object store. A store is searched by the
        rules of a folder as far as names go: objects count whose name has the suffix of an image, or none,
        or a number as DICOM files have.
    progress : Progress, optional
        Receives a line for what is left out; it is logged if there is none.

    Raises
    ------
    DataError
        If there is nothing of that name, or the manifest cannot be read.
    """
    if is_uri(source):
        yield from _remote(source, progress or LoggedMessages())
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
        if not is_uri(full):
            yield Entry(full, row.age, row.view, stamp=_stamp(full))
        elif problem := _unusable(full):
            yield Entry(full, row.age, row.view, reason=str(Reason.NOT_FOUND), detail=problem)
        else:
            yield Entry(full, row.age, row.view)


def _unusable(uri: str) -> str:
    """Return why a URI names no object, for its row; empty where it does.

    One with credentials is no row, since it would be in the results: the `CredentialsError` is raised.
    """
    try:
        split_uri(uri, options=False)
    except CredentialsError:
        raise
    except DataError as error:
        return str(error).removeprefix(f"{uri}: ")
    return ""


def _join(base: str, root: str, path: str) -> str:
    """Return a local path; the column ``root`` counts where it names a folder, as in `expand`."""
    return str(base_folder(Path(base), root) / path)


def _remote(source: str, progress: Progress) -> Iterator[Entry]:
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
        yield from _Objects(files, uri, progress)
    except OSError as error:
        raise DataError(
            f"{uri.text}: cannot be listed ({first_line(error)}); check URI, credentials and connection"
        ) from error


class _Objects:
    """The images under a prefix, folder by folder, so that memory is that of the largest one."""

    def __init__(self, files: Any, uri: Uri, progress: Progress) -> None:
        self._files, self._uri, self._progress = files, uri, progress
        self._own = self._others = 0
        self._masks: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Entry]:
        waiting = [self._uri.path]
        while waiting:
            folders, objects = self._listed(waiting.pop())
            own = self._own_heat_maps(objects)
            for one in objects:
                yield from self._object(one, own)
            self._own += len(own)
            masks = mask_folders([one.base_name for one in folders], (one.base_name for one in objects))
            waiting += [
                one.path
                for one in folders[::-1]
                if one.base_name not in masks or not self._leaves_out(one.path)
            ]
        for line in left_out_lines(self._uri.text, self._own, self._masks):
            self._progress.message(line)
        if self._others:
            what = counted(self._others, "object")
            self._progress.message(f"{self._uri.text}: {what} left out, not named like an image")

    def _object(self, one: fs.FileInfo, own: set[str]) -> Iterator[Entry]:
        name = f"{self._uri.scheme}://{one.path}"
        if one.base_name.upper() == DICOMDIR:
            yield Entry(name, reason=str(Reason.NO_PIXELS), detail=DICOMDIR_DETAIL)
        elif not _may_be_image(one.base_name):
            self._others += 1
        elif one.path not in own:
            changed = "" if one.mtime is None else int(one.mtime.timestamp())
            yield Entry(name, stamp=f"{one.size} {changed}")

    def _own_heat_maps(self, objects: list[fs.FileInfo]) -> set[str]:
        """Return which objects are heat maps of Pneumoscope; only those named like one are opened."""
        named = [one.path for one in objects if one.base_name.lower().endswith(HEAT_MAP)]
        found = in_order(named, lambda paths: [self._is_own(path) for path in paths], workers=LOOKS, chunk=1)
        return {path for path, own in zip(named, found, strict=True) if own}

    def _is_own(self, path: str) -> bool:
        try:
            with self._files.open_input_file(path) as file:
                return is_own_output(bytes(file.read(OWN_HEAD_BYTES)))
        except OSError:  # reading the image gives the reason
            return False

    def _leaves_out(self, path: str) -> bool:
        """Return whether a prefix named after masks is left out, as `walk` does, and count what it holds."""
        waiting, count = [path], 0
        while waiting:
            folders, objects = self._listed(waiting.pop())
            if has_images_and_masks([one.base_name for one in folders]):
                return False
            count += sum(_may_be_image(one.base_name) for one in objects)
            waiting += [one.path for one in folders]
        self._masks[posixpath.relpath(path, self._uri.path)] = count
        return True

    def _listed(self, path: str) -> tuple[list[fs.FileInfo], list[fs.FileInfo]]:
        """Return the folders and the objects of one level of a prefix, in the order of their names."""
        here = self._files.get_file_info(fs.FileSelector(path))
        found = sorted((one for one in here if not is_ignored(one.base_name)), key=lambda one: one.path)
        kinds = fs.FileType.Directory, fs.FileType.File
        folders, objects = ([one for one in found if one.type == kind] for kind in kinds)
        return folders, objects


def _may_be_image(name: str) -> bool:
    """Return whether an object is fetched; markers of other programs, such as ``_SUCCESS``, are not."""
    suffix = posixpath.splitext(name)[1]
    return has_image_suffix(name) or (not name.startswith("_") and (not suffix or suffix[1:].isdigit()))
