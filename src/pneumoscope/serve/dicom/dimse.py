"""pynetdicom's acceptor with bounds: on connections, on waiting, on PDUs, and datasets that go to files.

pynetdicom reads a PDU of any length into memory, waits without end for the rest of one, makes the TLS
handshake in the thread that accepts connections, and loses the association where a disk is full. The
subclasses here change just that; they rely on names of version 3.0 that are not public, so the version is
pinned and `tests/serve/dicom/test_receiver*.py` cover each.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
import threading
import time
from copy import deepcopy
from typing import Any, cast

from pynetdicom import evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from pneumoscope.image.dicom_header import CUT_OFF, DAMAGED
from pneumoscope.serve.dicom.background import Pulse
from pneumoscope.serve.dicom.outgoing import ClosingSocket
from pneumoscope.serve.dicom.store import ReceivedFile, Store, file_head

__all__ = ["MESSAGE_BYTES", "NodeAssociation", "NodeServer"]

logger = logging.getLogger(__name__)

MESSAGE_BYTES = 4_000_000
"""Of a command, and of the dataset of any request but C-STORE: these are held in memory."""

ASSOCIATE_BYTES = 1_000_000  # of an A-ASSOCIATE-RQ: 128 presentation contexts take about 40 kB
WAITING_MESSAGES = 2  # an asynchronous operations window is never agreed on
CLOSING_SECONDS = 5.0
LISTEN_SECONDS = 60.0  # without a turn of the thread that accepts connections, it hangs
PIECE = 65_536


class _Excess(OSError):
    """The other side goes beyond a bound; the connection is closed."""


class _Dimse(DIMSEServiceProvider):
    """Writes the dataset of a C-STORE to a file as it arrives, without a look into it."""

    def __init__(self, assoc: Association, store: Store, max_bytes: int) -> None:
        super().__init__(assoc)
        self._store, self._max_bytes = store, max_bytes
        self._open: list[ReceivedFile] = []

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take one P-DATA; one that cannot be understood, or goes beyond a bound, ends the association."""
        try:
            self._take(primitive)
        except (*CUT_OFF, *DAMAGED) as error:
            logger.info("association ended", extra={"why": type(error).__name__})
            self.dul.event_queue.put("Evt19")

    def _take(self, primitive: P_DATA) -> None:
        """Take the fragments one by one: the first of a dataset follows the command."""
        for value in primitive.presentation_data_value_list:
            one = P_DATA()
            one.presentation_data_value_list = [list(value)]  # type: ignore[list-item]
            super().receive_primitive(one)
            message = self.message
            if message is None:
                if self.msg_queue.qsize() > WAITING_MESSAGES:
                    raise _Excess("requests without waiting for responses")
            elif isinstance(message, C_STORE_RQ):
                if message._data_set_file is None:
                    self._begin(message)
            elif message.encoded_command_set.tell() + cast(Any, message.data_set).tell() > MESSAGE_BYTES:
                raise _Excess("a message that is too large")

    def discard(self) -> None:
        """Remove the files that were not accepted."""
        while self._open:
            self._open.pop().discard()

    def _begin(self, message: C_STORE_RQ) -> None:
        command = message.command_set
        context = self.assoc._accepted_cx[cast(int, message.context_id)]
        wrong = ""
        try:
            head = file_head(
                str(command.AffectedSOPClassUID),
                str(command.AffectedSOPInstanceUID),
                str(context.transfer_syntax[0]),
                self.assoc.requestor.ae_title.strip(),
            )
        except ValueError as error:  # the handler of C-STORE responds with a failure
            head, wrong = b"", str(error)
        self._open = [one for one in self._open if one.path.exists()]
        received = self._store.receive(head, self._max_bytes)
        if wrong:
            received.reject(wrong)
        self._open.append(received)
        message._data_set_file = received  # type: ignore[assignment]
        message._data_set_path = received.path


class _Dul(DULServiceProvider):
    """Ends an association that the state machine has no transition for, such as data after an abort."""

    def run_reactor(self) -> None:
        """Read and write until the association ends."""
        try:
            super().run_reactor()
        except (InvalidEventError, *CUT_OFF, *DAMAGED) as error:
            logger.info("association ended", extra={"why": type(error).__name__})
            self.assoc.is_aborted, self.assoc.is_established = True, False
            self.assoc._kill = True
            if self.socket is not None:
                self.socket.close()


class NodeAssociation(Association):
    """An association that the node accepted."""

    def __init__(self, ae: ApplicationEntity, server: NodeServer, link: str) -> None:
        super().__init__(ae, MODE_ACCEPTOR)
        self._server = server
        self.link = link
        self.dul = _Dul(self)
        self.network_timeout = ae.network_timeout  # of the new DUL as well
        self.dimse = _Dimse(self, server.store, server.max_dataset_bytes)
        self.daemon = True
        self.dul.daemon = True
        # For the other side to close after an abort; 30 s otherwise.
        self.dul.artim_timer.timeout = min(server.idle_seconds, CLOSING_SECONDS)

    def _serve_request(self, msg: Any, context_id: int) -> None:
        """Serve a request; one that lacks what it must have ends the association.

        pynetdicom does not respond to it, so that its sender would wait for its own time limit.
        """
        if msg.is_valid_request:
            super()._serve_request(msg, context_id)
        else:
            logger.info("association ended", extra={"why": "an incomplete request"})
            self.abort()

    def run_reactor(self) -> None:
        """Serve until the end, then remove what did not arrive completely."""
        try:
            super().run_reactor()
        except RuntimeError as error:
            if self.dul.ident is not None:
                raise
            logger.error("connection closed", extra={"why": str(error)})  # no thread could be started
            cast(_Socket, self.dul.socket).close()
        finally:
            if self.dul.ident is not None:
                self.dul.join(self.network_timeout)
            cast(_Dimse, self.dimse).discard()
            cast(NodeServer, self._server).closed(self)


class _Socket(ClosingSocket):
    """A connection whose PDUs have a largest size and a longest time."""

    def __init__(self, assoc: Association, client: socket.socket, *, max_pdu: int, seconds: float) -> None:
        super().__init__(assoc, client_socket=client)
        self._longest, self._seconds = max(max_pdu, ASSOCIATE_BYTES), seconds
        self._max_pdu = max_pdu

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes, or fewer where the other side closes.

        Raises
        ------
        OSError
            If they are too many or take too long.
        """
        longest = self._max_pdu if self.assoc.is_established else self._longest
        if nr_bytes > longest:
            raise _Excess(f"a PDU of {nr_bytes} bytes")
        received = bytearray(nr_bytes)
        view, done, end = memoryview(received), 0, time.monotonic() + self._seconds
        connection = cast(socket.socket, self.socket)
        while done < nr_bytes:
            if time.monotonic() > end:
                raise _Excess("a PDU that takes too long")
            count = connection.recv_into(view[done : done + PIECE])
            if not count:
                break
            done += count
        view.release()
        del received[done:]
        return received


class _Handler(RequestHandler):
    """Makes the association of a connection."""

    def handle(self) -> None:
        """Start the association."""
        server = cast(NodeServer, self.server)
        assoc = self._create_association()
        evt.trigger(assoc, evt.EVT_CONN_OPEN, {"address": self.client_address})
        try:
            assoc.start()
        except RuntimeError:  # no more threads
            server.closed(cast(NodeAssociation, assoc))
            server.shutdown_request(self.request)

    def _create_association(self) -> Association:
        server = cast(NodeServer, self.server)
        assoc = NodeAssociation(self.ae, server, server.next_link())
        assoc.name = f"AcceptorThread@{assoc.link}"
        assoc.set_socket(
            _Socket(assoc, self.request, max_pdu=self.ae.maximum_pdu_size, seconds=server.idle_seconds)
        )
        assoc.acceptor.maximum_length = self.ae.maximum_pdu_size
        assoc.acceptor.ae_title = server.ae_title
        assoc.acceptor.address_info = self.local
        assoc.acceptor.implementation_class_uid = self.ae.implementation_class_uid
        assoc.acceptor.implementation_version_name = self.ae.implementation_version_name
        assoc.acceptor.supported_contexts = deepcopy(server.contexts)
        assoc.requestor.address_info = self.remote
        for event, handlers in server._handlers.items():
            if event.is_intervention and handlers:
                assoc.bind(event, *cast(tuple[Any, Any], handlers))
            elif event.is_notification:
                for handler, arguments in cast(list[tuple[Any, Any]], handlers):
                    assoc.bind(event, handler, arguments)
        server.opened(assoc)
        return assoc


class NodeServer(ThreadedAssociationServer):
    """Accepts connections; each gets a thread before anything is read from it.

    Parameters
    ----------
    *arguments, **options
        Of `pynetdicom.transport.AssociationServer`.
    store : Store
        Where datasets are written.
    max_dataset_bytes : int
    max_connections : int
        A further one is closed at once.
    idle_seconds : float
        For the TLS handshake, and for each PDU.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        *arguments: Any,
        store: Store,
        max_dataset_bytes: int,
        max_connections: int,
        idle_seconds: float,
        **options: Any,
    ) -> None:
        self.store = store
        self.max_dataset_bytes = max_dataset_bytes
        self.idle_seconds = idle_seconds
        self._max_connections = max_connections
        self._lock = threading.Lock()
        self._connections = 0
        self._links = 0
        self._open: dict[str, NodeAssociation] = {}
        self._started = f"{time.time_ns():x}"
        self.rejected = 0
        self.pulse = Pulse(LISTEN_SECONDS)
        super().__init__(*arguments, **(options | {"request_handler": _Handler}))

    @property
    def open_links(self) -> frozenset[str]:
        """Links of the associations and connections that are open."""
        with self._lock:
            return frozenset(self._open)

    @property
    def active_associations(self) -> list[Association]:
        """The associations of this server."""
        with self._lock:
            return list(self._open.values())

    def next_link(self) -> str:
        """Return a name that no other association has had."""
        with self._lock:
            self._links += 1
            return f"{self._started}-{self._links}"

    def opened(self, assoc: NodeAssociation) -> None:
        """Note an association."""
        with self._lock:
            self._open[assoc.link] = assoc

    def closed(self, assoc: NodeAssociation) -> None:
        """Forget an association whose thread ends."""
        with self._lock:
            self._open.pop(assoc.link, None)
            self._connections -= 1

    def service_actions(self) -> None:
        """Note that the thread which accepts connections goes on; called at each turn of `serve_forever`."""
        self.pulse.beat()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; nothing here waits for the other side."""
        client, address = cast(socket.socket, self.socket).accept()
        client.settimeout(self.idle_seconds)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return client, address

    def verify_request(self, _request: Any, _client_address: Any) -> bool:
        """Return whether one more connection is within the limit, and count it."""
        with self._lock:
            if self._connections >= self._max_connections:
                self.rejected += 1
                return False
            self._connections += 1
            return True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the thread of a connection, or close it where no thread can be started."""
        try:
            super().process_request(request, client_address)
        except RuntimeError as error:
            logger.error("connection closed", extra={"why": str(error)})
            self._turn_away(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Make the handshake where there is TLS, then the association."""
        client = request
        try:
            if self.ssl_context is not None:
                client = self.ssl_context.wrap_socket(
                    request, server_side=True, do_handshake_on_connect=False
                )
                self._shake_hands(client)
            elif not client.recv(1, socket.MSG_PEEK):
                # A probe of a load balancer. pynetdicom would keep its association until the time limit.
                raise ConnectionError("closed without a word")
            self.finish_request(client, client_address)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            logger.info("connection closed", extra={"why": type(error).__name__})
            self._turn_away(client)

    def _turn_away(self, client: socket.socket) -> None:
        """Close a connection of which no association came."""
        with self._lock:
            self._connections -= 1
            self.rejected += 1
        self.shutdown_request(client)

    def _shake_hands(self, client: ssl.SSLSocket) -> None:
        """Make the TLS handshake within the time limit, however slowly its bytes arrive."""
        end = time.monotonic() + self.idle_seconds
        client.setblocking(False)
        ready: tuple[list[Any], list[Any], list[Any]]
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                ready = select.select([client], [], [], max(0.0, end - time.monotonic()))
            except ssl.SSLWantWriteError:
                ready = select.select([], [client], [], max(0.0, end - time.monotonic()))
            if not any(ready):
                raise TimeoutError("the TLS handshake takes too long")
        client.settimeout(self.idle_seconds)

    def handle_error(self, _request: Any, _client_address: Any) -> None:
        """Log that a connection failed, without its content."""
        logger.warning("connection failed")
