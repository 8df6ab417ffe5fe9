"""Files of the node: each is complete and on disk, or it is not there.

A file is written under a temporary name, flushed to the disk (fsync), renamed, and its folder is flushed as
well. Its name is a hash of the SOP Instance UID: what a sender calls its image never becomes a path.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import math
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from pneumoscope.data.drafts import flush_folder
from pneumoscope.errors import DataError
from pneumoscope.image.dicom_header import is_uid
from pneumoscope.serve.dicom.config_types import is_ae_title
from pneumoscope.serve.dicom.uids import derived_uid

__all__ = [
    "IMPLEMENTATION_UID",
    "IMPLEMENTATION_VERSION",
    "ReceivedFile",
    "Store",
    "dataset_offset",
    "file_head",
    "uid_hash",
]

IMPLEMENTATION_UID = derived_uid("implementation")
IMPLEMENTATION_VERSION = "PNEUMOSCOPE"
"""In every file that the node writes; without a version, so that equal content has equal bytes."""

BUFFER = 1 << 20
DICOM_PREFIX = slice(128, 132)
GROUP_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"


def uid_hash(uid: str) -> str:
    """Return the name under which an instance is stored and logged: 64 hexadecimal digits."""
    return hashlib.sha256(uid.encode()).hexdigest()


def file_head(sop_class: str, sop_instance: str, transfer_syntax: str, caller: str = "") -> bytes:
    """Return preamble, prefix and file meta information of a stored dataset (PS3.10 7.1).

    Parameters
    ----------
    sop_class, sop_instance, transfer_syntax : str
    caller : str
        Who sent it; left out where it is no AE title.

    Raises
    ------
    ValueError
        If one of the UIDs is none.
    """
    if not all(is_uid(uid) for uid in (sop_class, sop_instance, transfer_syntax)):
        raise ValueError("not a UID")
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(sop_instance)
    meta.TransferSyntaxUID = UID(transfer_syntax)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION
    if is_ae_title(caller):
        meta.SourceApplicationEntityTitle = caller
    buffer = io.BytesIO()
    buffer.write(bytes(128) + b"DICM")
    write_file_meta_info(buffer, meta)  # type: ignore[arg-type]
    return buffer.getvalue()


def dataset_offset(data: bytes) -> int:
    """Return where the dataset of a file begins, behind preamble and file meta information (PS3.10 7.1).

    Parameters
    ----------
    data : bytes
        The file, or its first 144 bytes.

    Raises
    ------
    DataError
        If the file meta information does not state its length.
    """
    start = 132 if data[DICOM_PREFIX] == b"DICM" else 0
    if data[start : start + 8] != GROUP_LENGTH:
        if data[start : start + 2] == b"\x02\x00":
            raise DataError("its file meta information has no length; export it again")
        return start
    return start + 12 + int.from_bytes(data[start + 8 : start + 12], "little")


class ReceivedFile:
    """A dataset while it arrives. Writing never raises: what went wrong is kept in `failure`.

    pynetdicom writes to it as to a temporary file; the names of the methods are those that it calls.

    Parameters
    ----------
    path : Path
        Temporary name.
    head : bytes
        Preamble and file meta information.
    max_bytes : int
        Of the dataset; what comes beyond is not kept.
    """

    def __init__(self, path: Path, head: bytes, max_bytes: int) -> None:
        self.path = path
        self.name = str(path)
        self.bytes = 0
        self.failure = ""
        self._max_bytes = max_bytes
        self._sha256 = hashlib.sha256()
        self._file: IO[bytes] | None = None
        try:
            self._file = path.open("xb", buffering=BUFFER)
            self._file.write(head)
        except OSError as error:
            self._fail(f"the disk does not take it ({error.strerror})")

    @property
    def file(self) -> ReceivedFile:
        """Itself: pynetdicom flushes ``file`` after each fragment."""
        return self

    @property
    def sha256(self) -> str:
        """Hash of the dataset without the file meta information."""
        return self._sha256.hexdigest()

    def write(self, data: bytes) -> None:
        """Take the next bytes of the dataset."""
        if self.failure or self._file is None:
            return
        self.bytes += len(data)
        if self.bytes > self._max_bytes:
            self._fail(f"it has more than {self._max_bytes / 1e6:g} MB")
            return
        self._sha256.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            self._fail(f"the disk does not take it ({error.strerror})")

    def flush(self) -> None:
        """Do nothing: `finish` flushes, once."""

    def finish(self) -> bool:
        """Flush the file to the disk; return whether all of it is there."""
        if self._file is None or self.failure:
            return False
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._fail(f"the disk does not take it ({error.strerror})")
            return False
        self.close()
        return not self.failure

    def close(self) -> None:
        """Close the file, without flushing it to the disk."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as error:
                self.failure = self.failure or f"the disk does not take it ({error.strerror})"

    def discard(self) -> None:
        """Close and remove the file, unless it was renamed."""
        self.close()
        self.path.unlink(missing_ok=True)

    def reject(self, why: str) -> None:
        """Keep nothing of the dataset, neither what has arrived nor what will."""
        self._fail(why)

    def _fail(self, why: str) -> None:
        self.failure = why
        self.discard()


class Store:
    """The files of a node below one folder.

    Parameters
    ----------
    folder : Path
        Made if absent, readable by this user only.

    Raises
    ------
    DataError
        If it cannot be made or written, or on a system without locks and folders that can be flushed.
    """

    def __init__(self, folder: Path) -> None:
        if importlib.util.find_spec("fcntl") is None:  # Windows
            raise DataError(
                "the DICOM node runs on Linux and macOS; on Windows, run it in a container or under WSL"
            )
        self.folder = folder
        self.incoming = folder / "incoming"
        self._parents = threading.Lock()
        try:
            new = not folder.exists()
            for one in (
                folder,
                self.incoming,
                *(folder / name for name in ("images", "conflicts", "results")),
            ):
                one.mkdir(parents=True, exist_ok=True, mode=0o700)
            flush_folder(folder)  # the names of new folders are on disk as well
            if new:
                with contextlib.suppress(PermissionError):  # it may be one that this user cannot list
                    flush_folder(folder.parent)
        except OSError as error:
            raise DataError(f"{folder}: cannot make this folder ({error.strerror}); name another") from error

    def clear_incoming(self) -> int:
        """Remove what had not arrived completely when the node ended; return how many files it was."""
        found = list(self.incoming.iterdir())
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)

    def receive(self, head: bytes, max_bytes: int) -> ReceivedFile:
        """Begin a file."""
        return ReceivedFile(self.incoming / f"{secrets.token_hex(16)}.part", head, max_bytes)

    def image_name(self, sop_instance: str) -> str:
        """Return the place of an image, relative to the folder."""
        digest = uid_hash(sop_instance)
        return f"images/{digest[:2]}/{digest}.dcm"

    def conflict_name(self, sop_instance: str, sha256: str) -> str:
        """Return the place of an image whose UID another image has."""
        return f"conflicts/{uid_hash(sop_instance)[:32]}-{sha256[:32]}.dcm"

    def result_name(self, sop_instance: str) -> str:
        """Return the place of a result object."""
        digest = uid_hash(sop_instance)
        return f"results/{digest[:2]}/{digest}.dcm"

    def keep(self, received: ReceivedFile, name: str) -> None:
        """Give a finished file its name, and flush its folder.

        Raises
        ------
        OSError
            If the disk does not allow it.
        """
        target = self.folder / name
        self._make_parent(target)
        received.path.replace(target)
        flush_folder(target.parent)

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the node's own; one of that name is replaced.

        Raises
        ------
        OSError
            If the disk does not allow it.
        """
        target = self.folder / name
        self._make_parent(target)
        draft = self.incoming / f"{secrets.token_hex(16)}.part"
        try:
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        flush_folder(target.parent)

    def remove(self, name: str) -> int:
        """Remove a file; return its size in bytes, 0 where there was none."""
        path = self.folder / name
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size

    def files(self) -> Iterator[tuple[str, float]]:
        """Yield the stored files, images and results: name relative to the folder, and time of writing."""
        for pattern in ("images/*/*.dcm", "conflicts/*.dcm", "results/*/*.dcm"):
            for path in self.folder.glob(pattern):
                name = path.relative_to(self.folder).as_posix()
                if (at := self.written(name)) < math.inf:
                    yield name, at

    def written(self, name: str) -> float:
        """Return when a file was written; infinity where it was removed."""
        try:
            return (self.folder / name).stat().st_mtime
        except FileNotFoundError:
            return math.inf

    @property
    def free_bytes(self) -> int:
        """Free space on the disk."""
        return shutil.disk_usage(self.folder).free

    def _make_parent(self, target: Path) -> None:
        with self._parents:  # who finds the folder there may rely on it
            if not target.parent.is_dir():
                target.parent.mkdir(mode=0o700, exist_ok=True)
                flush_folder(target.parent.parent)
