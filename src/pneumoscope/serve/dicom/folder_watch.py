"""Images that other programs write into a folder."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
from pathlib import Path

from pneumoscope.errors import DataError, PneumoscopeError
from pneumoscope.serve.dicom.background import STUCK_SECONDS, Pulse
from pneumoscope.serve.dicom.config import MB, FolderConfig
from pneumoscope.serve.dicom.file_intake import TOO_LARGE, FileIntake, NotDicom
from pneumoscope.serve.dicom.intake import NotAccepted, Origin

__all__ = ["FolderWatch"]

logger = logging.getLogger(__name__)


class FolderWatch:
    """Takes the files of a folder; one is taken once it has the same size and time twice in a row.

    Parameters
    ----------
    config : FolderConfig
    files : FileIntake
    longest : float
        Seconds that one file may take, over which the watchdog does not mind.

    Raises
    ------
    DataError
        If the folder is not there.
    """

    def __init__(self, config: FolderConfig, files: FileIntake, longest: float = STUCK_SECONDS) -> None:
        if not config.path.is_dir():
            raise DataError(f"{config.path}: no such folder; make it, or change 'folders' in node.yaml")
        self._config, self._files = config, files
        self.name, self._pulse = f"folder-{config.name}", Pulse(longest + config.every_seconds)
        self._seen: dict[Path, tuple[int, int]] = {}
        # Files that are done with and could not be moved, as they were then, and where they belong.
        self._not_moved: dict[Path, tuple[tuple[int, int], Path | None]] = {}

    @property
    def stuck(self) -> bool:
        """Whether it has taken too long over a file, or to read the folder."""
        return self._pulse.lost

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self._pulse.beat()
            try:
                await self.look()
            except OSError as error:
                why = error.strerror
                logger.error("folder not read", extra={"caller": self._config.name, "why": why})
            await asyncio.sleep(self._config.every_seconds)

    async def look(self) -> int:
        """Look once; return how many files were taken."""
        taken = 0
        with self._files.open_link("folder", self._config.name) as origin:
            for path, size in await asyncio.to_thread(self._settled):
                taken += await self._take(path, size, origin)
        return taken

    async def _take(self, path: Path, size: int, origin: Origin) -> bool:
        """Take one file and put it out of the way; return whether it was taken."""
        self._pulse.beat()
        done = self._not_moved.get(path)
        if done is not None and done[0] == self._seen[path]:
            await asyncio.to_thread(self._put_away, path, done[1])
            return False
        try:
            if size > self._files.limits.max_dataset_mb * MB:
                raise NotDicom(TOO_LARGE)
            data = await asyncio.to_thread(path.read_bytes)
            if not await asyncio.to_thread(self._as_seen, path):
                return False  # it is being written again: a later look takes it
            await self._files.take(data, origin)
        except (NotAccepted, OSError) as error:
            logger.error("file not stored", extra={"caller": origin.caller, "why": type(error).__name__})
            return False  # it stays where it is
        except PneumoscopeError as error:
            await asyncio.to_thread(self._put_away, path, self._config.bad)
            await self._files.left_out(origin, str(error))
            return False
        await asyncio.to_thread(self._put_away, path, self._config.done)
        return True

    def _put_away(self, path: Path, folder: Path | None) -> None:
        """Move a file, or delete it where no folder is given; try again later where that fails.

        One that was written again meanwhile is another image, and stays.
        """
        if not self._as_seen(path):
            self._not_moved.pop(path, None)
            return
        try:
            if folder is None:
                path.unlink(missing_ok=True)
            else:
                _move(path, folder)
        except OSError as error:  # the next file may be moved all the same
            if path not in self._not_moved:
                logger.error("file not moved", extra={"caller": self._config.name, "why": error.strerror})
            self._not_moved[path] = self._seen[path], folder
        else:
            self._not_moved.pop(path, None)

    def _as_seen(self, path: Path) -> bool:
        """Return whether a file is as it was at the last look."""
        try:
            return _state(path.stat()) == self._seen.get(path)
        except OSError:
            return False

    def _settled(self) -> list[tuple[Path, int]]:
        """Return the files that have not changed since the last look."""
        before, self._seen = self._seen, {}
        found = []
        keep_out = [one for one in (self._config.done, self._config.bad) if one is not None]
        for path in sorted(self._config.path.rglob("*")):
            self._pulse.beat()
            if path.name.startswith(".") or any(path.is_relative_to(one) for one in keep_out):
                continue
            try:
                if path.is_symlink() or not path.is_file():
                    continue
                stat = path.stat()
            except OSError:
                continue
            self._seen[path] = _state(stat)
            if stat.st_size and before.get(path) == self._seen[path]:
                found.append((path, stat.st_size))
        return found


def _state(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_size, stat.st_mtime_ns


def _move(path: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    if target.exists():
        target = folder / f"{path.stem}-{secrets.token_hex(4)}{path.suffix}"
    shutil.move(path, target)  # also to another file system
