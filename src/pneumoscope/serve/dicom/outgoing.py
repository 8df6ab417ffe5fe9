"""pynetdicom's requestor with bounds: a connection that waits for the other side does not wait without end.

pynetdicom takes the time limit off a connection once it is open, so that a peer which stops reading would
hold the sending thread for good, and it leaves sockets open whose connection was not accepted or was reset.
"""

from __future__ import annotations

import contextlib
import socket
import ssl

from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.transport import T_CONNECT, AddressInformation, AssociationSocket

__all__ = ["ClosingSocket", "OutgoingAE", "why_not_opened"]

_Tls = tuple[ssl.SSLContext, str] | None


class ClosingSocket(AssociationSocket):
    """A connection that is closed also where it was not open, or the other side has reset it."""

    def _shutdown_socket(self) -> None:
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()


class _Socket(ClosingSocket):
    def connect(self, primitive: T_CONNECT) -> None:
        """Connect, and keep the time limit for what follows."""
        super().connect(primitive)
        if self.socket is not None:
            self.socket.settimeout(self.assoc.network_timeout)


def why_not_opened(error: OSError | UnicodeError) -> str:
    """Return in a few words why `OutgoingAE.associate` raised before it tried to connect."""
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "host not found"
    return error.strerror or type(error).__name__


class OutgoingAE(ApplicationEntity):
    """An application entity that opens associations.

    Parameters
    ----------
    ae_title : str
        Calling AE title.
    seconds : float
        For the connection, and for each response and PDU.
    """

    def __init__(self, ae_title: str, seconds: float) -> None:
        super().__init__(ae_title)
        self.acse_timeout = self.dimse_timeout = seconds
        self.connection_timeout = self.network_timeout = seconds

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: _Tls
    ) -> AssociationSocket:
        made = _Socket(assoc, address=address)
        made.tls_args = tls_args
        return made
