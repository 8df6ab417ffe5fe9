"""A web server for tests: the real one, in its own process, with limits that a test can wait for.

Run as a program it is that process; its arguments are JSON.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

__all__ = ["RunningServer", "multipart_body", "running_server"]

BOUNDARY = "----boundary-of-tests"


@dataclass(frozen=True)
class RunningServer:
    """A running server.

    Parameters
    ----------
    url : str
        Without a slash at the end.
    process : Popen
        Of the server.
    folder : Path
        Its working directory and its TMPDIR; files that it writes would be there.
    log : list of str
        Lines that it has logged so far.
    """

    url: str
    process: subprocess.Popen[str]
    folder: Path
    log: list[str]

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        url = httpx.URL(self.url)
        return url.host, url.port or 0

    @property
    def workers(self) -> list[int]:
        """Process numbers of its workers."""
        pid = self.process.pid
        threads = Path(f"/proc/{pid}/task").iterdir()
        return [int(one) for thread in threads for one in (thread / "children").read_text().split()]

    def client(self, **options: object) -> httpx.Client:
        """Return a client with a long timeout, for busy machines."""
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def connect(self, timeout: float = 60.0) -> socket.socket:
        """Open a raw connection."""
        return socket.create_connection(self.address, timeout=timeout)

    def send(self, raw: bytes, timeout: float = 60.0) -> bytes:
        """Send raw bytes and return everything until the server closes."""
        with self.connect(timeout) as connection:
            connection.sendall(raw)
            return read_all(connection)

    def files(self) -> list[Path]:
        """Return the files in its folder."""
        return [path for path in self.folder.rglob("*") if path.is_file()]


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side closes; a reset after a response counts as an end."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def multipart_body(files: list[tuple[str, bytes]], field: str = "files") -> tuple[dict[str, str], bytes]:
    """Return headers and body of a form with these files."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return headers, b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


@contextmanager
def running_server(
    bundle: Path, folder: Path, *, workers: int = 2, token: str | None = None, **limits: float
) -> Iterator[RunningServer]:
    """Run a server for as long as the context lasts; at its end it must stop within a minute.

    Parameters
    ----------
    bundle, folder : Path
        The bundle, and the working directory of the server.
    workers : int
        Processes that predict.
    token : str, optional
        Bearer token.
    **limits
        Fields of `WebLimits`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = {"bundle": str(bundle), "workers": workers, "token": token, "limits": limits}
    process = subprocess.Popen(
        [sys.executable, __file__, json.dumps(options)],
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        text=True,
    )
    assert process.stderr is not None
    log: list[str] = []
    try:
        url = ""
        while not url:
            line = process.stderr.readline()
            if not line:
                raise RuntimeError(f"the server did not start: {log}")
            log.append(line)
            url = line.strip().removeprefix("URL ") if line.startswith("URL ") else ""
        reader = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
        reader.start()
        yield RunningServer(url, process, folder, log)
        process.terminate()
        process.wait(60)
        reader.join(10)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def main() -> None:
    """Serve until a signal arrives."""
    from pneumoscope.model.bundle import load_bundle
    from pneumoscope.serve.web.app import create_app
    from pneumoscope.serve.web.limits import WebLimits
    from pneumoscope.serve.web.server import Address, serve

    options = json.loads(sys.argv[1])
    limits = WebLimits(**options["limits"])
    app = create_app(
        load_bundle(options["bundle"]), workers=options["workers"], limits=limits, token=options["token"]
    )
    serve(app, Address(port=0), limits, on_ready=lambda url: sys.stderr.write(f"URL {url}\n"))


if __name__ == "__main__":
    main()
