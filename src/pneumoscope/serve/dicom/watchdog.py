"""What systemd is told: that the node is ready, that all of its parts are alive, and that it stops."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Sequence

from pneumoscope.serve.dicom.background import Part

__all__ = ["Watchdog", "notify"]

logger = logging.getLogger(__name__)


class Watchdog:
    """Tells systemd that the node is alive, for as long as every part of it is.

    Parameters
    ----------
    parts : sequence of Part
        All that must go on: one that hangs stops the signs of life, and systemd starts the node again.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._stuck: list[str] = []

    def look(self) -> list[str]:
        """Look at all parts; return the names of those that hang, about which nothing is told."""
        stuck = [part.name for part in self._parts if part.stuck]
        if stuck and stuck != self._stuck:
            logger.critical("parts of the node hang", extra={"parts": stuck})
        self._stuck = stuck
        if not stuck:
            notify("WATCHDOG=1")
        return stuck


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); without systemd nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or sys.platform == "win32":
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect(address)
        connection.sendall(state.encode())
