"""Parses the body of a request while it arrives, into memory and within the limits."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from multipart import MultipartError, ParserLimitReached, PushMultipartParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pneumoscope.report.rows import plain_text
from pneumoscope.serve.web.admission import Slot
from pneumoscope.serve.web.limits import WebLimits

__all__ = ["FIELD", "Upload", "base_name", "receive"]

FIELD = "files"
LONGEST_NAME = 255
MAX_PART_HEADERS = 8
MAX_PART_HEADER = 4096  # bytes

# Hashes of uploads can be compared within one run of the server, and reveal nothing outside of it.
_SALT = secrets.token_bytes(32)


@dataclass(eq=False, slots=True)
class Upload:
    """One file of a request, in memory."""

    name: str
    data: bytearray = field(default_factory=bytearray)
    _digest: Any = field(default_factory=lambda: hmac.new(_SALT, digestmod=hashlib.sha256))

    def add(self, piece: bytes | bytearray) -> None:
        """Append a piece."""
        self.data += piece
        self._digest.update(piece)

    @property
    def digest(self) -> str:
        """Salted sha256, 64 hexadecimal digits."""
        digits: str = self._digest.hexdigest()
        return digits


def base_name(name: str) -> str:
    """Return a file name without folders and without control and direction characters."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    visible = "".join(
        letter for letter in last if unicodedata.category(letter) not in {"Cc", "Cf", "Zl", "Zp"}
    )
    return plain_text(visible).strip()[:LONGEST_NAME] or "upload"


async def receive(request: Request, limits: WebLimits, slot: Slot) -> list[Upload]:
    """Read the files of a multipart request.

    Parameters
    ----------
    request : Request
        With its body unread.
    limits : WebLimits
        For sizes, counts and times.
    slot : Slot
        Counts the memory.

    Raises
    ------
    HTTPException
        415 if it is not a multipart form; 413 if it is too large; 408 if it is too slow; 429 if the server's
        memory is full; 422 if it is damaged or has other fields.
    """
    parser = _parser(request, limits)
    form = _Form(limits, slot)
    try:
        async for chunk in _paced(request, limits):
            for event in parser.parse(chunk):
                form.take(event)
        parser.close()
    except ParserLimitReached as error:
        raise HTTPException(413, f"the form is too large: {error}; send less at once") from error
    except MultipartError as error:
        raise HTTPException(422, f"the form is damaged: {error}; send it again") from error
    if not form.uploads:
        raise HTTPException(422, f"no file in the form; send one or more in the field '{FIELD}'")
    return form.uploads


class _Form:
    """Collects files from the parser's events."""

    def __init__(self, limits: WebLimits, slot: Slot) -> None:
        self._limits, self._slot = limits, slot
        self._current: Upload | None = None
        self.uploads: list[Upload] = []

    def take(self, event: Any) -> None:
        """Take the head of a part, a piece of it, or its end (None)."""
        if isinstance(event, bytes | bytearray):
            self._piece(event)
        elif event is None:
            self._current = None
        else:
            self._begin(event.name, event.filename)

    def _begin(self, name: str, filename: str | None) -> None:
        if name != FIELD or filename is None:
            raise HTTPException(422, f"send files only, each in a field '{FIELD}' and with a file name")
        if len(self.uploads) >= self._limits.max_files:
            most = self._limits.max_files
            raise HTTPException(413, f"a request may hold {most} files at most; send the others in another")
        self._current = Upload(base_name(filename))
        self.uploads.append(self._current)

    def _piece(self, piece: bytes | bytearray) -> None:
        assert self._current is not None
        if len(self._current.data) + len(piece) > self._limits.max_file_bytes:
            most = self._limits.max_file_bytes / 1e6
            raise HTTPException(413, f"a file may have {most:g} MB at most; send one image per file")
        self._slot.grow(len(piece))
        self._current.add(piece)


def _parser(request: Request, limits: WebLimits) -> PushMultipartParser:
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    if media_type != "multipart/form-data" or "boundary" not in options:
        raise HTTPException(415, f"send multipart/form-data with one or more files in the field '{FIELD}'")
    length = request.headers.get("content-length", "")
    # The protocol has checked that it is a number; a body without a length is counted while it arrives.
    if length.isdecimal() and int(length) > limits.max_request_bytes:
        raise _too_large(limits)
    try:
        return PushMultipartParser(
            options["boundary"],
            max_header_size=MAX_PART_HEADER,
            max_header_count=MAX_PART_HEADERS,
            max_segment_count=limits.max_files + 1,  # `_Form` has the better message
        )
    except MultipartError as error:
        raise HTTPException(415, f"the boundary of the form is not usable: {error}") from error


async def _paced(request: Request, limits: WebLimits) -> AsyncIterator[bytes]:
    """Yield the pieces of the body within the limits on time and size."""
    loop = asyncio.get_running_loop()
    end = loop.time() + limits.body_timeout
    received = 0
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout_at(min(end, loop.time() + limits.idle_timeout)):
                chunk = await anext(stream, None)
        except TimeoutError as error:
            raise HTTPException(408, "the body arrived too slowly; send it again, or fewer files") from error
        if chunk is None:
            return
        received += len(chunk)
        if received > limits.max_request_bytes:
            raise _too_large(limits)
        if chunk:
            yield chunk


def _too_large(limits: WebLimits) -> HTTPException:
    most = limits.max_request_bytes / 1e6
    return HTTPException(413, f"a request may have {most:g} MB at most; send fewer files at once")
