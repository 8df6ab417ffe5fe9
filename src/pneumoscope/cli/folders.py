"""Folders that a command writes into."""

from __future__ import annotations

from pathlib import Path

from pneumoscope.errors import DataError

__all__ = ["make_folder"]


def make_folder(path: Path) -> None:
    """Make a folder before any work is done that it shall hold.

    Raises
    ------
    DataError
        If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot make this folder ({error.strerror}); name another one") from error
