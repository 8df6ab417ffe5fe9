"""Files in a folder or in an object store, with one interface.

A location is a path, or a URI such as ``s3://bucket/prefix?endpoint_override=http://127.0.0.1:9000``. What
follows the question mark are options of the store for pyarrow; keys of objects are taken as they are, without
percent-encoding. Credentials come from the store's own environment variables or files, never from a URI: URIs
end up in results.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
from pyarrow import fs

from pneumoscope.data.drafts import flush_folder
from pneumoscope.errors import DataError

__all__ = [
    "SCHEMES",
    "CredentialsError",
    "FolderStore",
    "ObjectStore",
    "Store",
    "Uri",
    "filesystem",
    "first_line",
    "is_uri",
    "open_store",
    "split_uri",
]

SCHEMES = ("s3", "gs", "gcs")
"""Schemes of the object stores that pyarrow reads and writes."""

# Google's client tries for a quarter of an hour, and cannot be interrupted meanwhile.
GCS_RETRIES = "retry_limit_seconds"
GCS_RETRY_SECONDS = 30

# How Google's client writes what is wrong.
_GOOGLE_STATUS = re.compile(
    r".*google::cloud::Status\(\w+: (?:Retry policy .*?last message of )?"
    r"(?P<message>.*?)(?: error_info=.*)?\)?"
)

DRAFT_SUFFIX = ".draft"
UPLOAD_CHUNK = 8 << 20  # bytes


class CredentialsError(DataError):
    """A URI that holds credentials, which must not get into results."""


def is_uri(location: str) -> bool:
    """Return whether a location is a URI, not a path."""
    return "://" in location


@dataclass(frozen=True, slots=True)
class Uri:
    """The parts of a URI of an object store.

    Parameters
    ----------
    scheme, bucket, key : str
        Without separators; the key may be empty.
    options : str
        The query, such as ``endpoint_override=http://127.0.0.1:9000``; may be empty.
    """

    scheme: str
    bucket: str
    key: str
    options: str = ""

    @property
    def text(self) -> str:
        """The URI without its options, as it stands in results."""
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")

    @property
    def path(self) -> str:
        """What pyarrow calls the object."""
        return f"{self.bucket}/{self.key}".rstrip("/")


def split_uri(location: str, *, options: bool = True) -> Uri:
    """Split a URI of an object store.

    Parameters
    ----------
    location : str
        Such as ``s3://bucket/prefix?region=eu-central-1``.
    options : bool
        A question mark begins the options of the store; if False, it belongs to the key.

    Raises
    ------
    CredentialsError
        If the URI holds credentials, of whatever scheme; the message leaves them out.
    DataError
        If the scheme is none of `SCHEMES`, or there is no bucket.
    """
    scheme, _, rest = location.partition("://")
    rest, _, query = rest.partition("?") if options else (rest, "", "")
    bucket, _, key = rest.partition("/")
    # A secret may have a slash; a name of a bucket has no colon.
    if "@" in bucket or (":" in bucket and "@" in key):
        raise CredentialsError(
            f"{scheme}://…@{rest.rpartition('@')[2]}: leave credentials out of the URI; "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS"
        )
    if scheme not in SCHEMES:
        known = ", ".join(f"{one}://" for one in SCHEMES)
        raise DataError(
            f"{location}: unknown kind of store; give a path or a URI that begins with {known} or file:///"
        )
    if not bucket:
        raise DataError(f"{location}: names no bucket; write {scheme}://BUCKET/PREFIX")
    return Uri(scheme, bucket, key.strip("/") if options else key, query)


@lru_cache(maxsize=64)
def filesystem(scheme: str, bucket: str, options: str) -> Any:
    """Return pyarrow's file system for a bucket; one connection pool for each in a process.

    Where Google's store cannot be reached and the options state no other time, it fails after half a minute.
    """
    if scheme in {"gs", "gcs"} and GCS_RETRIES not in options:
        options = "&".join(filter(None, (options, f"{GCS_RETRIES}={GCS_RETRY_SECONDS}")))
    query = f"?{options}" if options else ""
    uri = f"{scheme}://{bucket}{query}"
    try:
        return fs.FileSystem.from_uri(uri)[0]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{uri}: cannot be opened ({first_line(error)}); check bucket and options") from error


class Store(Protocol):
    """A folder of the run: what its files are called, `name`, is relative to it."""

    location: str

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None where there is none."""

    def put(self, name: str, data: bytes) -> None:
        """Write a file that appears as a whole, replacing an older one."""

    def put_file(self, name: str, path: Path) -> None:
        """Write a file likewise, with the content of a local one of any size."""

    def open(self, name: str) -> Any:
        """Open a file for reading at any position."""

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, in order; none where there is no such folder."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


class FolderStore:
    """A folder on a disk; files get their names by a rename, after they were flushed to the disk."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._root = Path(location)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None where there is none."""
        with _described(f"{self._root / name}", "read"):
            try:
                return (self._root / name).read_bytes()
            except FileNotFoundError:
                return None

    def put(self, name: str, data: bytes) -> None:
        """Write a file that appears as a whole, replacing an older one."""
        with self._draft(name) as file:
            file.write(data)

    def put_file(self, name: str, path: Path) -> None:
        """Write a file likewise, with the content of a local one of any size."""
        with path.open("rb") as source, self._draft(name) as file:
            while chunk := source.read(UPLOAD_CHUNK):
                file.write(chunk)

    def open(self, name: str) -> Any:
        """Open a file for reading at any position."""
        with _described(f"{self._root / name}", "read"):
            return pa.OSFile(str(self._root / name))

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, in order; none where there is no such folder."""
        with _described(f"{self._root / folder}", "read"):
            try:
                found = os.listdir(self._root / folder)  # noqa: PTH208  (as fast as it gets for many names)
            except FileNotFoundError:
                return []
        return sorted(name for name in found if not name.endswith(DRAFT_SUFFIX))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with _described(f"{self._root / name}", "removed"):
            (self._root / name).unlink(missing_ok=True)

    def remove_drafts(self, folder: str) -> None:
        """Remove what workers that were killed left in a folder."""
        for draft in (self._root / folder).glob(f".*{DRAFT_SUFFIX}"):
            self.remove(f"{folder}/{draft.name}")

    @contextmanager
    def _draft(self, name: str) -> Iterator[IO[bytes]]:
        path = self._root / name
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{DRAFT_SUFFIX}")
        with _described(f"{path}", "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with draft.open("xb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)
            flush_folder(path.parent)


class ObjectStore:
    """A prefix in an object store, where writing an object is one step."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._uri = split_uri(location)

    @cached_property
    def _files(self) -> Any:
        return filesystem(self._uri.scheme, self._uri.bucket, self._uri.options)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the connection behind when the store goes to another process."""
        return {"location": self.location, "_uri": self._uri}

    def read(self, name: str) -> bytes | None:
        """Return the content of an object; None where there is none."""
        with _described(f"{self._uri.text}/{name}", "read"):
            try:
                with self._files.open_input_stream(self._path(name)) as file:
                    return bytes(file.read())
            except FileNotFoundError:
                return None

    def put(self, name: str, data: bytes) -> None:
        """Write an object that appears as a whole, replacing an older one."""
        with _described(f"{self._uri.text}/{name}", "written"):
            # In one piece from memory: the writer cannot fail half-way and leave half an object.
            with self._files.open_output_stream(self._path(name)) as file:
                file.write(data)
            self._check_size(name, len(data))

    def put_file(self, name: str, path: Path) -> None:
        """Write an object likewise, with the content of a local file of any size."""
        with _described(f"{self._uri.text}/{name}", "written"):
            with path.open("rb") as source, self._files.open_output_stream(self._path(name)) as file:
                while chunk := source.read(UPLOAD_CHUNK):
                    file.write(chunk)
            self._check_size(name, path.stat().st_size)

    def open(self, name: str) -> Any:
        """Open an object for reading at any position."""
        with _described(f"{self._uri.text}/{name}", "read"):
            return self._files.open_input_file(self._path(name))

    def names(self, folder: str) -> list[str]:
        """Return the names of the objects under a prefix, in order."""
        selector = fs.FileSelector(self._path(folder), allow_not_found=True)
        with _described(f"{self._uri.text}/{folder}", "read"):
            found = self._files.get_file_info(selector)
        return sorted(one.base_name for one in found if one.type == fs.FileType.File)

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with _described(f"{self._uri.text}/{name}", "removed"):
            try:
                self._files.delete_file(self._path(name))
            except FileNotFoundError:
                return

    def _check_size(self, name: str, expected: int) -> None:
        """Remove an object of another size than was sent: an upload may fail and leave a shorter one.

        Stores that do not know the checksums which the AWS SDK sends behind the content keep them as content.
        """
        size = self._files.get_file_info(self._path(name)).size
        if size != expected:
            self.remove(name)
            fix = "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required" if size > expected else "start again"
            raise DataError(f"{self._uri.text}/{name}: {size} bytes arrived of {expected}; {fix}")

    def _path(self, name: str) -> str:
        return f"{self._uri.path}/{name}"


def open_store(location: str) -> FolderStore | ObjectStore:
    """Return the store at a location.

    Raises
    ------
    DataError
        If it is a URI of an unknown kind, or one with credentials.
    """
    return ObjectStore(location) if is_uri(location) else FolderStore(location)


@contextmanager
def _described(where: str, what: str) -> Iterator[None]:
    """Turn what a disk or a store raises into one line."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{where}: cannot be {what} ({first_line(error)}); check path, permissions and connection"
        ) from error


def first_line(error: BaseException) -> str:
    """Return what a disk or a store says is wrong, in one line."""
    text = getattr(error, "strerror", None) or str(error)
    line = str(text).partition("\n")[0]
    google = _GOOGLE_STATUS.fullmatch(line)
    return google["message"] if google else line
