"""Downloads that continue after a broken connection, and ZIP archives unpacked with limits."""

from __future__ import annotations

import lzma
import re
import time
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pneumoscope.data.drafts import replacing
from pneumoscope.errors import DataError, DownloadError, require_extra
from pneumoscope.image.decode import IMAGE_SUFFIXES
from pneumoscope.parallel import Progress

if TYPE_CHECKING:
    import requests

__all__ = ["DAMAGED_ZIP", "ResumingDownloader", "download", "unzip_images"]

_TOO_MANY_REQUESTS = 429
# A chunk that is under way when the connection breaks is lost, so chunks are small.
_CHUNK = 1 << 15
_CONNECT_TIMEOUT, _READ_TIMEOUT = 10, 60
# Wait before the second, third, ... attempt in a row that brought nothing.
_WAITS = (1.0, 3.0, 9.0)
_FIX = "check the connection, or download the file by other means and give it with --from FILE"

DAMAGED_ZIP = (
    ValueError,  # such as a name that is not in the UTF-8 that its flag promises
    EOFError,
    NotImplementedError,
    RuntimeError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a damaged ZIP archive raises."""

_MAX_MEMBERS = 50_000
_MAX_MEMBER_BYTES = 100 * 2**20
_MAX_TOTAL_BYTES = 10 * 2**30
_UNZIP_CHUNK = 1 << 20


def download(url: str, file: Path, *, checksum: str | None, progress: Progress | None = None) -> None:
    """Download a file and check it; a file that is there and matches is kept.

    A broken download leaves ``FILE.part``, which the next call continues. Where no checksum is published,
    the SHA-256 of the first download is kept in ``FILE.sha256`` and later calls compare with it: that
    finds damage and change, but not a first download that was wrong.

    Parameters
    ----------
    url : str
        HTTP or HTTPS.
    file : Path
        Destination; its folder is created.
    checksum : str or None
        ``md5:`` or ``sha256:`` and the hexadecimal digest.
    progress : Progress, optional
        Receives the bytes on disk and the total, where the server states it.

    Raises
    ------
    DownloadError
        If the server cannot be reached or rejects the request, or the checksum does not match.
    DataError
        If the file cannot be written, or its ``.sha256`` holds none.
    MissingExtraError
        If pooch or requests is not installed.
    """
    with require_extra("data", "downloading"):
        import pooch
    from pneumoscope.model.bundle import sha256_of

    progress = progress or Progress()
    progress.step("downloading")
    note = file.with_name(f"{file.name}.sha256")
    # Its messages are for programmers; ours are the progress and the errors.
    pooch.get_logger().setLevel("WARNING")
    partial = file.with_name(f"{file.name}.part")
    known = checksum
    try:
        if known is None and note.is_file():
            known = f"sha256:{_noted(note)}"
        pooch.retrieve(
            url,
            known_hash=known,
            fname=file.name,
            path=file.parent,
            downloader=ResumingDownloader(partial, progress=progress),
        )
        if known is None:
            with replacing(note) as written:
                written.write(f"{sha256_of(file)}  {file.name}\n")
    except ValueError as error:
        if checksum is None:
            raise DownloadError(
                f"{url}: the download differs from the first one; delete {note} to accept it"
            ) from error
        raise DownloadError(
            f"{url}: the download does not match the checksum {known}; try again later, or download the "
            "file by other means and give it with --from FILE"
        ) from error
    except OSError as error:
        raise DataError(f"{file}: cannot be written ({error.strerror or error})") from error


def _noted(note: Path) -> str:
    """Return the SHA-256 of the first download."""
    digest, *_ = note.read_text(encoding="utf-8", errors="replace").split() or [""]
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise DataError(f"{note}: holds no checksum; delete it, and the next download counts as the first")
    return digest


class ResumingDownloader:
    """A downloader for pooch that keeps what was received and requests the rest (HTTP Range, RFC 9110, 14).

    Parameters
    ----------
    partial : Path
        Keeps the bytes between attempts and between runs.
    progress : Progress, optional
        Receives the bytes on disk and the total, where it is known.
    waits : tuple of float
        Seconds to wait after each attempt in a row that brought no byte; after the last one it gives up.
    """

    def __init__(
        self, partial: Path, *, progress: Progress | None = None, waits: tuple[float, ...] = _WAITS
    ) -> None:
        self.partial = partial
        self.progress = progress or Progress()
        self.waits = waits

    def __call__(self, url: str, output_file: Any, _pooch: Any = None) -> None:
        """Download `url` to `output_file`; pooch calls this.

        Raises
        ------
        DownloadError
            If the server cannot be reached, rejects the request, or breaks off again and again.
        """
        with require_extra("data", "downloading"):
            import requests
        idle = 0
        with requests.Session() as session:
            while True:
                before = self._size()
                try:
                    self._attempt(session, url)
                    break
                except (requests.ConnectionError, requests.Timeout) as error:
                    problem = "timed out" if isinstance(error, requests.Timeout) else "no connection"
                except requests.exceptions.ChunkedEncodingError:
                    problem = "the connection broke off"
                except requests.HTTPError as error:
                    status = error.response.status_code if error.response is not None else 0
                    problem = f"the server responds with status {status}"
                    if status < 500 and status != _TOO_MANY_REQUESTS:
                        raise DownloadError(f"{url}: {problem}; {_FIX}") from error
                except requests.RequestException as error:
                    raise DownloadError(f"{url}: {type(error).__name__}; {_FIX}") from error
                idle = 0 if self._size() > before else idle + 1
                if idle > len(self.waits):
                    raise DownloadError(f"{url}: {problem}; {_FIX}")
                time.sleep(self.waits[idle - 1] if idle else 0)
        self.partial.replace(output_file)

    def _size(self) -> int:
        return self.partial.stat().st_size if self.partial.is_file() else 0

    def _attempt(self, session: requests.Session, url: str) -> None:
        """Request once what is missing and append it."""
        import requests

        have = self._size()
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with session.get(
            url, headers=headers, stream=True, timeout=(_CONNECT_TIMEOUT, _READ_TIMEOUT)
        ) as response:
            if have and response.status_code == requests.codes.requested_range_not_satisfiable:
                if response.headers.get("Content-Range") == f"bytes */{have}":
                    return
                # The bytes on disk are not the beginning of this file.
                self.partial.unlink()
                raise requests.ConnectionError("the file on the server has changed")
            response.raise_for_status()
            resumed = response.status_code == requests.codes.partial_content and response.headers.get(
                "Content-Range", ""
            ).startswith(f"bytes {have}-")
            length = response.headers.get("Content-Length", "")
            done = have if resumed else 0
            total = done + int(length) if length.isdigit() else None
            with self.partial.open("ab" if resumed else "wb") as file:
                for chunk in response.iter_content(_CHUNK):
                    file.write(chunk)
                    done += len(chunk)
                    self.progress.update(done, total)
            if total is not None and done != total:
                raise requests.exceptions.ChunkedEncodingError("the body is shorter than announced")


def unzip_images(
    archive: Path,
    out: Path,
    *,
    max_total: int = _MAX_TOTAL_BYTES,
    again: str = "give a complete one",
    progress: Progress | None = None,
) -> int:
    """Unpack the images of a ZIP archive, keeping its folders.

    Everything else in it is left out. Images that are there already at their full size are kept, so
    that an interrupted run continues. Sizes are counted while unpacking, not taken from the header.

    Parameters
    ----------
    archive, out : Path
        The ZIP file and the folder to unpack into.
    max_total : int
        Bytes that all images together may have; 100 MB each and 50,000 images at most in any case.
    again : str
        What to do about a damaged archive, for the message.
    progress : Progress, optional
        Receives the number of images done and their total.

    Returns
    -------
    int
        Number of images.

    Raises
    ------
    DataError
        If the archive is damaged, too large, or names a path outside of `out`; or nothing can be
        written.
    """
    progress = progress or Progress()
    progress.step("unpacking")
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [member for member in packed.infolist() if _is_image(member)]
            if len(members) > _MAX_MEMBERS:
                raise DataError(f"{archive}: holds more than {_MAX_MEMBERS:,} images; not unpacked")
            targets = [_target(archive, out, member.filename) for member in members]
            total = 0
            for done, (member, target) in enumerate(zip(members, targets, strict=True), start=1):
                allowed = min(_MAX_MEMBER_BYTES, max_total - total)
                total += _extract(packed, member, target, archive, allowed)
                progress.update(done, len(members))
            return len(members)
    except DAMAGED_ZIP as error:
        raise DataError(f"{archive}: damaged or not a ZIP archive ({error}); {again}") from error
    except OSError as error:
        name = error.filename or archive
        raise DataError(f"{name}: cannot be read or written ({error.strerror or error})") from error


def _is_image(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename)
    # macOS packs a shadow "._name" of every file.
    hidden = any(part == "__MACOSX" or (part.startswith(".") and part != "..") for part in path.parts)
    return not member.is_dir() and not hidden and path.suffix.lower() in IMAGE_SUFFIXES


def _target(archive: Path, out: Path, name: str) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise DataError(f"{archive}: names a path outside of the folder ({name!r}); not unpacked")
    return out.joinpath(*path.parts)


def _extract(
    packed: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, archive: Path, allowed: int
) -> int:
    if target.is_file() and target.stat().st_size == member.file_size:
        return member.file_size
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.part")
    size = 0
    try:
        with packed.open(member) as source, partial.open("wb") as sink:
            while chunk := source.read(_UNZIP_CHUNK):
                size += len(chunk)
                if size > allowed:
                    raise DataError(f"{archive}: {member.filename} is too large unpacked; not unpacked")
                sink.write(chunk)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return size
