"""Downloads that survive a broken line."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumoscope.errors import DataError, DownloadError, MissingExtraError

if TYPE_CHECKING:
    import requests

__all__ = ["Progress", "ResumingDownloader", "download"]

Progress = Callable[[int, int | None], None]
"""Called with the bytes on disk and the total, where the server tells it."""

_TOO_MANY_REQUESTS = 429
# What of a chunk has come when the line breaks is lost, so chunks are small.
_CHUNK = 1 << 15
_CONNECT_TIMEOUT, _READ_TIMEOUT = 10, 60
# Wait before the second, third, ... attempt in a row that brought nothing.
_WAITS = (1.0, 3.0, 9.0)
_WAY_OUT = "check the connection, or get the file elsewhere and give it with --from FILE"


def download(url: str, file: Path, *, checksum: str | None, progress: Progress | None = None) -> None:
    """Download a file whole and checked, or not at all; a file that is there and right stays.

    A broken download leaves ``FILE.part``, which the next call goes on with. Where no checksum is
    published, the SHA-256 of the first download is kept in ``FILE.sha256`` and later calls hold the
    file to it: that finds damage and change, but not a first download that was wrong.

    Parameters
    ----------
    url : str
        HTTP or HTTPS.
    file : Path
        Where it goes; its folder is made.
    checksum : str or None
        ``md5:`` or ``sha256:`` and the hexadecimal digest.
    progress : callable, optional
        Called with the bytes on disk and the total or None.

    Raises
    ------
    DownloadError
        If the server cannot be reached or rejects, or the checksum disagrees.
    DataError
        If the file cannot be written.
    MissingExtraError
        If pooch or requests is not installed.
    """
    try:
        import pooch
    except ImportError as error:
        raise MissingExtraError("downloading", "data") from error
    note = file.with_name(f"{file.name}.sha256")
    known = checksum or (f"sha256:{note.read_text().split()[0]}" if note.is_file() else None)
    # Its messages are for programmers; ours are the progress bar and the errors.
    pooch.get_logger().setLevel("WARNING")
    partial = file.with_name(f"{file.name}.part")
    try:
        pooch.retrieve(
            url,
            known_hash=known,
            fname=file.name,
            path=file.parent,
            downloader=ResumingDownloader(partial, progress=progress),
        )
        if known is None:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            note.write_text(f"{digest}  {file.name}\n")
    except ValueError as error:
        if checksum is None:
            raise DownloadError(
                f"{url}: what came is not what came first; delete {note} to take it all the same"
            ) from error
        raise DownloadError(
            f"{url}: what came does not match the checksum {known}; try again later, or get the file "
            "elsewhere and give it with --from FILE"
        ) from error
    except OSError as error:
        raise DataError(f"{file}: cannot be written ({error.strerror or error})") from error


class ResumingDownloader:
    """A downloader for pooch that keeps what came and asks for the rest by HTTP Range (RFC 9110, 14).

    Parameters
    ----------
    partial : Path
        Keeps the bytes between attempts and between runs.
    progress : callable, optional
        Called with the bytes on disk and the total or None.
    waits : tuple of float
        Seconds to wait after each attempt in a row that brought no byte; after the last one it gives up.
    """

    def __init__(
        self, partial: Path, *, progress: Progress | None = None, waits: tuple[float, ...] = _WAITS
    ) -> None:
        self.partial = partial
        self.progress = progress
        self.waits = waits

    def __call__(self, url: str, output_file: Any, _pooch: Any = None) -> None:
        """Download `url` to `output_file`, as pooch asks.

        Raises
        ------
        DownloadError
            If the server cannot be reached, rejects, or breaks off again and again.
        """
        try:
            import requests
        except ImportError as error:
            raise MissingExtraError("downloading", "data") from error
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
                    problem = f"the server answers {status}"
                    if status < 500 and status != _TOO_MANY_REQUESTS:
                        raise DownloadError(f"{url}: {problem}; {_WAY_OUT}") from error
                except requests.RequestException as error:
                    raise DownloadError(f"{url}: {type(error).__name__}; {_WAY_OUT}") from error
                idle = 0 if self._size() > before else idle + 1
                if idle > len(self.waits):
                    raise DownloadError(f"{url}: {problem}; {_WAY_OUT}")
                time.sleep(self.waits[idle - 1] if idle else 0)
        self.partial.replace(output_file)

    def _size(self) -> int:
        return self.partial.stat().st_size if self.partial.is_file() else 0

    def _attempt(self, session: requests.Session, url: str) -> None:
        """Ask once for what is missing and append it."""
        import requests

        have = self._size()
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with session.get(
            url, headers=headers, stream=True, timeout=(_CONNECT_TIMEOUT, _READ_TIMEOUT)
        ) as response:
            if have and response.status_code == requests.codes.requested_range_not_satisfiable:
                if response.headers.get("Content-Range") == f"bytes */{have}":
                    return
                # What is kept is not a beginning of this file.
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
                    if self.progress:
                        self.progress(done, total)
            if total is not None and done != total:
                raise requests.exceptions.ChunkedEncodingError("the body is shorter than announced")
