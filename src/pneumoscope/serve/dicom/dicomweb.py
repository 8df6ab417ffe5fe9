"""A small DICOMweb client: one kept connection, and limits on time and size of each response."""

from __future__ import annotations

import base64
import http.client
import json
import re
import selectors
import ssl
import time
import urllib.parse
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pneumoscope.errors import DataError, PneumoscopeError
from pneumoscope.serve.dicom.config import TlsClientConfig
from pneumoscope.serve.dicom.tls import client_context

__all__ = [
    "DICOM_JSON",
    "TOTAL",
    "DicomWebClient",
    "Response",
    "TooLong",
    "WebError",
    "authorization",
    "dicom_parts",
    "first_value",
    "multipart_related",
]

DICOM_JSON = "application/dicom+json"

CHUNK = 1 << 16
MAX_RESPONSE = 8_000_000
TOTAL = 10  # times the time limit of one step that a whole response may take


class WebError(PneumoscopeError):
    """No response, or one that is too long; in a line without any attribute of a patient."""


class TooLong(WebError):
    """A response of more bytes than were allowed; the same request gets the same again."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response.

    Parameters
    ----------
    status : int
    headers : mapping of str to str
        Names in lower case.
    body : bytes
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON; None where it is empty or no JSON."""
        try:
            return json.loads(self.body) if self.body else None
        except (ValueError, RecursionError):
            return None


class DicomWebClient:
    """Sends requests to one DICOMweb server, one at a time, over a connection that is kept open.

    Parameters
    ----------
    url : str
        Root of the service, such as ``https://pacs.example/dicom-web``.
    tls : SSLContext, optional
        For ``https``; if not given, one after BCP 195 with the authorities of the system.
    server_name : str
        That the certificate must have; the host if empty.
    authorization : str, optional
        Value of the header of that name.
    timeout : float
        Seconds for the connection and each read or write; ten times as long for a whole response.
    """

    def __init__(
        self,
        url: str,
        *,
        tls: ssl.SSLContext | None = None,
        server_name: str = "",
        authorization: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise DataError(f"{url}: not the address of a DICOMweb server; give http:// or https://")
        self._root = parts.path.rstrip("/")
        self._host, self._port = parts.hostname, parts.port
        self._secure = parts.scheme == "https"
        self._tls = tls or client_context(TlsClientConfig()) if self._secure else None
        self._server_name = server_name or parts.hostname
        self._headers = {"Authorization": authorization} if authorization else {}
        self._timeout = timeout
        self._connection: http.client.HTTPConnection | None = None

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Sequence[bytes] = (),
        max_bytes: int = MAX_RESPONSE,
    ) -> Response:
        """Send a request and read its response; redirections are not followed.

        A GET over a kept connection that the server has closed is repeated once on a new one. A POST is not:
        the server may have stored its content before.

        Parameters
        ----------
        method, path : str
            The path below the root, with a leading slash.
        query : mapping or sequence of pairs, optional
        headers : mapping, optional
        body : sequence of bytes
            Parts of the body, sent one after the other with Content-Length: some servers accept a chunked
            STOW-RS request and store nothing of it.
        max_bytes : int
            The longest body that is read.

        Raises
        ------
        WebError
            If there is no complete response in time; `TooLong` if it is longer than that.
        """
        target = self._root + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        sent = {"Accept": DICOM_JSON, **self._headers, **(headers or {})}
        if body or method == "POST":
            sent["Content-Length"] = str(sum(map(len, body)))
        if self._connection is not None and _ended(self._connection):
            self.close()  # while it was idle, so that nothing of this request is lost with it
        repeated = self._connection is not None and method == "GET"
        try:
            return self._exchange(method, target, sent, body, max_bytes)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
            self.close()
            if not repeated:
                raise WebError(f"the server closed the connection ({type(error).__name__})") from error
            return self.request(method, path, query=query, headers=headers, body=body, max_bytes=max_bytes)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise WebError(f"no response ({_why(error)})") from error
        except WebError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: Sequence[bytes], max_bytes: int
    ) -> Response:
        if self._connection is None:
            self._connection = self._open()
        connection = self._connection
        connection.request(method, target, body=iter(body) if body else None, headers=dict(headers))
        response = connection.getresponse()
        body_read = self._read(response, max_bytes)
        named = {name.lower(): value for name, value in response.getheaders()}
        if response.will_close:
            self.close()
        return Response(response.status, named, body_read)

    def _read(self, response: http.client.HTTPResponse, max_bytes: int) -> bytes:
        """Read a body piece by piece, so that neither its size nor its time is without a limit."""
        ends, length, read = time.monotonic() + TOTAL * self._timeout, response.length, bytearray()
        while length is None or len(read) < length:
            # `read1` of Python 3.11 does not know what is left and would wait for more.
            chunk = response.read1(CHUNK if length is None else min(CHUNK, length - len(read)))
            if not chunk:
                break
            read += chunk
            if len(read) > max_bytes:
                raise TooLong(f"a response of more than {max_bytes:,} bytes")
            if time.monotonic() > ends:
                raise WebError(f"a response that took more than {TOTAL * self._timeout:g} s")
        if length is not None and len(read) < length:
            raise http.client.IncompleteRead(bytes(read), length - len(read))
        response.close()
        return bytes(read)

    def _open(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return _SecureConnection(self._host, self._port, self._timeout, self._tls, self._server_name)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)


class _SecureConnection(http.client.HTTPSConnection):
    """A connection to a server whose certificate has a name of its own; the base class takes the host."""

    def __init__(
        self, host: str, port: int | None, timeout: float, tls: ssl.SSLContext, server_name: str
    ) -> None:
        super().__init__(host, port, timeout=timeout, context=tls)
        self._tls, self._server_name = tls, server_name

    def connect(self) -> None:
        """Connect, then make the handshake."""
        http.client.HTTPConnection.connect(self)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._server_name)


def _ended(connection: http.client.HTTPConnection) -> bool:
    """Return whether the server has closed an idle connection, or has sent what nobody asked for."""
    if connection.sock is None:
        return True
    with selectors.DefaultSelector() as selector:
        selector.register(connection.sock, selectors.EVENT_READ)
        return bool(selector.select(0))


def multipart_related(
    parts: Sequence[bytes], media_type: str = "application/dicom"
) -> tuple[str, list[bytes]]:
    """Return the Content-Type and the pieces of a multipart/related body (PS3.18 8.6.1.2)."""
    boundary = uuid.uuid4().hex
    head = f"--{boundary}\r\nContent-Type: {media_type}\r\n\r\n".encode()
    pieces = [piece for part in parts for piece in (head, part, b"\r\n")]
    pieces.append(f"--{boundary}--\r\n".encode())
    return f'multipart/related; type="{media_type}"; boundary={boundary}', pieces


def dicom_parts(content_type: str, body: bytes) -> list[bytes]:
    """Return the parts of a multipart/related body (PS3.18 8.6.1.2); none where it is not one."""
    match = re.search(r'boundary="?([^";,\s]+)"?', content_type)
    if not content_type.lower().startswith("multipart/related") or not match:
        return []
    delimiter = b"\r\n--" + match[1].encode()
    pieces = (b"\r\n" + body).split(delimiter)
    parts = []
    for piece in pieces[1:]:
        if piece.startswith(b"--"):
            break
        _, found, content = piece.partition(b"\r\n\r\n")
        if found:
            parts.append(content)
    return parts


def authorization(token_file: Path | None, password_file: Path | None) -> str | None:
    """Return the Authorization header of a bearer token or of ``user:password``, each the text of a file.

    Raises
    ------
    DataError
        If the file cannot be read or is empty.
    """
    path = token_file or password_file
    if path is None:
        return None
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read; give a text file that the node may read") from error
    if not secret or len(secret.splitlines()) != 1:
        raise DataError(f"{path}: must hold one line with the {'token' if token_file else 'user:password'}")
    return f"Bearer {secret}" if token_file else f"Basic {base64.b64encode(secret.encode()).decode()}"


def _why(error: Exception) -> str:
    """Return the kind of an error; its text may quote what a server sent."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "timed out" if isinstance(error, TimeoutError) else type(error).__name__


def first_value(item: Any, tag: str) -> str:
    """Return the first value of an element of the DICOM JSON model as text; empty where there is none."""
    element = item.get(tag) if isinstance(item, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0]) if isinstance(values, list) and values else ""
