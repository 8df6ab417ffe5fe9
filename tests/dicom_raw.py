"""A DICOM client byte by byte, for what no library sends (PS3.7 and PS3.8)."""

from __future__ import annotations

import socket
import struct

__all__ = ["EXPLICIT", "RawAssociation", "pdu"]

APPLICATION = b"1.2.840.10008.3.1.1.1"
EXPLICIT = b"1.2.840.10008.1.2.1"
DX = b"1.2.840.10008.5.1.4.1.1.1.1"


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    """Return a PDU; a wrong length may be stated."""
    return struct.pack(">BBL", kind, 0, len(body) if length is None else length) + body


def item(kind: int, body: bytes) -> bytes:
    """Return an item of an A-ASSOCIATE-RQ."""
    return struct.pack(">BBH", kind, 0, len(body)) + body


def element(group: int, number: int, value: bytes) -> bytes:
    """Return a data element in Implicit VR Little Endian."""
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHL", group, number, len(value)) + value


class RawAssociation:
    """An association for DX images.

    Parameters
    ----------
    port : int
        Of the node, on this machine.
    syntax : bytes
        Transfer syntax.
    called, calling : bytes
        AE titles.
    """

    def __init__(
        self,
        port: int,
        syntax: bytes = EXPLICIT,
        *,
        called: bytes = b"PNEUMOSCOPE",
        calling: bytes = b"RAW",
        timeout: float = 20.0,
    ) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        context = item(0x20, b"\x01\0\0\0" + item(0x30, DX) + item(0x40, syntax))
        user = item(0x50, item(0x51, struct.pack(">L", 16384)) + item(0x52, b"1.2.3.4"))
        head = b"\0\x01\0\0" + called.ljust(16) + calling.ljust(16) + bytes(32)
        self.socket.sendall(pdu(0x01, head + item(0x10, APPLICATION) + context + user))
        self.response = self.read()
        self.accepted = self.response[:1] == b"\x02"

    def read(self) -> bytes:
        """Return the next PDU; empty where the other side has closed."""
        try:
            head = self._exactly(6)
            return head + self._exactly(struct.unpack(">L", head[2:])[0])
        except (OSError, EOFError):
            return b""

    def store(
        self, dataset: bytes, instance: bytes, *, piece: int = 16_000, sop_class: bytes = DX
    ) -> int | None:
        """Send a C-STORE; return its status, None where the other side closed."""
        try:
            self.socket.sendall(self.command(instance, sop_class=sop_class))
            for start in range(0, max(1, len(dataset)), piece):
                part = dataset[start : start + piece]
                last = start + piece >= len(dataset)
                self.socket.sendall(self.data(part, last=last))
        except OSError:
            return None
        return self.status()

    def command(self, instance: bytes, *, number: int = 1, sop_class: bytes = DX) -> bytes:
        """Return the P-DATA with the command of a C-STORE."""
        rest = (
            element(0, 0x0002, sop_class)
            + element(0, 0x0100, struct.pack("<H", 1))
            + element(0, 0x0110, struct.pack("<H", number))
            + element(0, 0x0700, struct.pack("<H", 0))
            + element(0, 0x0800, struct.pack("<H", 0))
            + element(0, 0x1000, instance)
        )
        return self._value(3, element(0, 0, struct.pack("<L", len(rest))) + rest)

    def data(self, part: bytes, *, last: bool) -> bytes:
        """Return the P-DATA with a part of the dataset."""
        return self._value(2 if last else 0, part)

    def status(self) -> int | None:
        """Return the status of the next response."""
        response = self.read()
        where = response.find(struct.pack("<HHL", 0, 0x0900, 2))
        return None if where < 0 else int(struct.unpack_from("<H", response, where + 8)[0])

    def close(self) -> None:
        """Close the connection without a word."""
        self.socket.close()

    def __enter__(self) -> RawAssociation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _value(self, control: int, content: bytes) -> bytes:
        return pdu(0x04, struct.pack(">LBB", len(content) + 2, 1, control) + content)

    def _exactly(self, size: int) -> bytes:
        parts = b""
        while len(parts) < size:
            part = self.socket.recv(min(65536, size - len(parts)))
            if not part:
                raise EOFError
            parts += part
        return parts
