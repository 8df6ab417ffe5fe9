"""Messages between the server and its workers: a JSON head and a few pieces of bytes, through a pipe.

No pickle: a worker reads hostile files, so nothing it says may run in the server.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import IO, Any

__all__ = ["Buffer", "read_frame", "write_frame"]

Buffer = bytes | bytearray

HEAD = struct.Struct("!I")
MAX_HEAD = 1_000_000  # bytes of JSON
MAX_PIECE = 1_000_000_000


def write_frame(stream: IO[bytes], head: dict[str, Any], pieces: Sequence[Buffer] = ()) -> None:
    """Write one message and flush.

    Raises
    ------
    OSError
        If nobody reads at the other end.
    """
    text = json.dumps({"head": head, "sizes": [len(piece) for piece in pieces]}).encode()
    stream.write(HEAD.pack(len(text)) + text)
    for piece in pieces:
        stream.write(piece)
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """Read one message.

    Raises
    ------
    EOFError
        If the other end is closed.
    ValueError
        If this is no message.
    """
    (size,) = HEAD.unpack(_exactly(stream, HEAD.size))
    if size > MAX_HEAD:
        raise ValueError(f"a message head of {size} bytes")
    try:
        text = json.loads(_exactly(stream, size))
    except RecursionError as error:
        raise ValueError("a message head nested too deeply") from error
    if not isinstance(text, dict) or not isinstance(text.get("head"), dict):
        raise ValueError("a message without head")
    sizes = text.get("sizes")
    if not isinstance(sizes, list) or not all(
        isinstance(size, int) and 0 <= size <= MAX_PIECE for size in sizes
    ):
        raise ValueError("a message whose pieces have no sizes")
    return text["head"], [_exactly(stream, size) for size in sizes]


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data
