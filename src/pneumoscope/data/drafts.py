"""Files that take their name only when they are complete, and locks of folders that one process works in."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pneumoscope.errors import DataError

__all__ = ["draft_of", "flush_folder", "locked", "partial_path", "rename", "replacing", "unwritable"]

# Of the name of the file in that of its draft; file systems allow 255 in all.
_NAME_BYTES = 200


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a draft that becomes `path` when the block ends without an error, and is deleted otherwise.

    Parameters
    ----------
    path : Path
        The file to write or replace; its folder must exist.
    mode : {"w", "wb"}
        Text in UTF-8, or bytes.

    Raises
    ------
    DataError
        If no file can be written there, or the disk is full.
    """
    with draft_of(path, mode) as (draft, file):
        try:
            yield file
            file.close()
        except OSError as error:
            raise unwritable(path, error) from error
        rename(draft, path)


def unwritable(path: Path, error: OSError) -> DataError:
    """Return the error for a file that could not be written to its end."""
    return DataError(f"{path}: cannot be written ({error.strerror}); free some space, or name another file")


def partial_path(path: Path) -> Path:
    """Return the name, beside a file, of what could not take its place."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")


def rename(draft: Path, path: Path) -> None:
    """Give a draft its name; where that cannot be, such as of a file that is open on Windows, another one."""
    try:
        draft.replace(path)
    except OSError as error:
        other = draft.replace(partial_path(path))
        raise DataError(
            f"{path}: cannot be replaced ({error.strerror}); the results are in {other}"
        ) from error


@contextmanager
def draft_of(path: Path, mode: str) -> Iterator[tuple[Path, IO[Any]]]:
    """Open a new file beside `path`; it is closed at the end, and deleted if it has no other name then."""
    if path.is_dir():
        raise DataError(f"{path}: this is a folder; name a file")
    # Not by the number of the process: in a container it is that of the one that was killed before.
    draft = path.with_name(f".{_end_of(path.name)}.{secrets.token_hex(4)}.draft")
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
    try:
        file = draft.open(mode.replace("w", "x"), encoding=encoding, newline=newline)
    except OSError as error:
        raise DataError(f"{path}: cannot write there ({error.strerror}); name another file") from error
    try:
        yield draft, file
    finally:
        with suppress(OSError):  # a full disk; who writes the file closes it, and is told
            file.close()
        draft.unlink(missing_ok=True)


def _end_of(name: str) -> str:
    """Return the end of a file name, in whole characters, as far as a draft's name has room for it."""
    while len(os.fsencode(name)) > _NAME_BYTES:
        name = name[1:]
    return name


def locked(path: Path, taken: str, use: str) -> IO[str]:
    """Open a lock file and lock it for this process, until the file is closed or the process ends.

    Parameters
    ----------
    path : Path
        Keeps the number of the process; its folder must exist. The system must have `fcntl`.
    taken : str
        What is said of the folder if another process has it; ``{holder}`` becomes its number.
    use : str
        What to use where the file system has no locks, such as ``use --out``.

    Raises
    ------
    DataError
        If another process has it, or files cannot be locked there.
    OSError
        If the file cannot be opened.
    """
    import fcntl  # which Windows does not have

    file = path.open("a+", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.readline(20).strip() or "unknown"
        file.close()
        raise DataError(f"{path.parent}: {taken.format(holder=holder)}") from error
    except OSError as error:  # Lustre and some mounts of NFS have no locks
        file.close()
        raise DataError(
            f"{path.parent}: files cannot be locked there ({error.strerror}); {use} on another file system"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def flush_folder(folder: Path) -> None:
    """Make the names of new and renamed files in a folder durable, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
