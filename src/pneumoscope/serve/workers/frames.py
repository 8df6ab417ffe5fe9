"""Messages between a server and its workers: a JSON head and byte strings, through a pipe.

No pickle: a worker reads untrusted files, so nothing that it sends may be executed by the server.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import IO, Any, TypedDict

__all__ = ["Buffer", "Job", "Response", "read_frame", "write_frame"]

Buffer = bytes | bytearray

HEAD = struct.Struct("!I")
MAX_HEAD = 1_000_000  # bytes of JSON
MAX_PIECE = 1_000_000_000


class Job(TypedDict):
    """What to do with one image file.

    Parameters
    ----------
    name : str
        The file's name, for the row.
    operating_point : str or None
        By name; the bundle's default if None.
    heatmap, preview : bool
        Whether to return the heat map and the image.
    """

    name: str
    operating_point: str | None
    heatmap: bool
    preview: bool


Response = tuple[dict[str, Any], list[bytes]]
"""The head of a worker's message and its byte strings; see `pneumoscope.serve.workers.worker.respond`."""


def write_frame(stream: IO[bytes], head: Mapping[str, Any], pieces: Sequence[Buffer] = ()) -> None:
    """Write one message and flush.

    Raises
    ------
    OSError
        If the other end is closed.
    """
    text = json.dumps({"head": head, "sizes": [len(piece) for piece in pieces]}).encode()
    stream.write(HEAD.pack(len(text)) + text)
    for piece in pieces:
        stream.write(piece)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Response:
    """Read one message.

    Raises
    ------
    EOFError
        If the other end is closed.
    ValueError
        If the bytes are not a message.
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
