"""The DICOM side that others call: C-STORE, C-ECHO and storage commitment."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pynetdicom
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
    StorageCommitmentPushModel,
    Verification,
)

from pneumoscope import __version__
from pneumoscope.errors import PneumoscopeError
from pneumoscope.image.dicom_header import is_uid
from pneumoscope.image.frames import TRANSFER_SYNTAXES
from pneumoscope.serve.dicom import audit
from pneumoscope.serve.dicom.config import MB, CallerConfig, NodeConfig
from pneumoscope.serve.dicom.config_types import is_in
from pneumoscope.serve.dicom.dimse import NodeAssociation, NodeServer
from pneumoscope.serve.dicom.intake import Intake, NotAccepted, Origin
from pneumoscope.serve.dicom.journal import Journal, JournalError, now
from pneumoscope.serve.dicom.store import IMPLEMENTATION_UID, ReceivedFile, uid_hash
from pneumoscope.serve.dicom.tls import server_context

__all__ = ["STORAGE_CLASSES", "Receiver", "transfer_syntaxes"]

logger = logging.getLogger(__name__)

STORAGE_CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)
"""What is accepted; films (modality RG) come as the first or the last."""

IMPLICIT, EXPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
ANOTHER_CLASS = 0xA900
CANNOT_UNDERSTAND = 0xC000
PROCESSING_FAILURE = 0x0110
NO_SUCH_ACTION = 0x0123
INVALID_ARGUMENT = 0x0115

REPEATED_SECONDS = 60.0
MOST_REJECTIONS = 100  # callers, addresses and reasons that are noted in that time
MOST_ITEMS = 10_000  # of one request for storage commitment


def transfer_syntaxes() -> list[str]:
    """Return the transfer syntaxes that are accepted, uncompressed first.

    Where a sender offers several for a class, pynetdicom takes the first of this list: a sender should not
    be made to compress what it has uncompressed.
    """
    others = sorted(set(TRANSFER_SYNTAXES) - {EXPLICIT, IMPLICIT, DEFLATED})
    return [EXPLICIT, IMPLICIT, *others, DEFLATED]


class Receiver:
    """Accepts associations and hands datasets to the intake.

    Parameters
    ----------
    config : NodeConfig
    intake : Intake
    journal : Journal
    on_closed : callable
        Called when an association ends.
    on_commitment : callable
        Called when a request for storage commitment was journalled.
    """

    def __init__(
        self,
        config: NodeConfig,
        intake: Intake,
        journal: Journal,
        *,
        on_closed: Callable[[], None] = lambda: None,
        on_commitment: Callable[[], None] = lambda: None,
    ) -> None:
        self._config, self._intake, self._journal = config, intake, journal
        self._on_closed, self._on_commitment = on_closed, on_commitment
        self._callers = {caller.aet: caller for caller in config.callers}
        self.name = "dicom-listen"
        self.failure: PneumoscopeError | None = None
        self._server: NodeServer | None = None
        self._thread: threading.Thread | None = None
        self._rejections: dict[tuple[str, str, str], float] = {}
        self.stopping = False
        self.counts: Counter[str] = Counter()

    def start(self) -> int:
        """Listen; return the port.

        Raises
        ------
        OSError
            If the address cannot be used.
        """
        config, limits = self._config, self._config.limits
        ae = AE(ae_title=config.aet)
        ae.implementation_class_uid = IMPLEMENTATION_UID
        ae.implementation_version_name = f"PNEUMO_{__version__}"[:16]
        ae.maximum_pdu_size = limits.max_pdu
        # Its own count has connections without an association; `_why_not` has not.
        ae.maximum_associations = limits.max_connections
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = limits.idle_seconds
        tls = config.listen.tls
        server = ae.make_server(
            (config.listen.host, config.listen.port),
            contexts=_contexts(),
            ssl_context=None if tls is None else server_context(tls),
            evt_handlers=[
                (evt.EVT_REQUESTED, self._requested),
                (evt.EVT_C_ECHO, self._echo),
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_N_ACTION, self._action),
                (evt.EVT_CONN_CLOSE, self._closed),
            ],
            server_class=NodeServer,
            store=self._intake.store,
            max_dataset_bytes=limits.max_dataset_mb * MB,
            max_connections=limits.max_connections,
            idle_seconds=limits.idle_seconds,
        )
        ae._servers.append(server)
        self._server = server = cast(NodeServer, server)
        self._thread = threading.Thread(target=self._listen, args=[server], name=self.name, daemon=True)
        self._thread.start()
        return int(server.server_address[1])

    @property
    def open_links(self) -> frozenset[str]:
        """Links of the associations that are open."""
        return self._server.open_links if self._server is not None else frozenset()

    @property
    def rejected_connections(self) -> int:
        """Connections that ended before an association: too many, a failed handshake, or nothing was sent."""
        return self._server.rejected if self._server is not None else 0

    @property
    def stuck(self) -> bool:
        """Whether the thread that accepts connections has ended, or hangs."""
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return not self.stopping
        return not thread.is_alive() or server.pulse.lost

    def _listen(self, server: NodeServer) -> None:
        try:
            server.serve_forever(poll_interval=0.2)
        except Exception as error:
            self.failure = PneumoscopeError(f"listening for associations: {type(error).__name__}")
            raise

    def refuse_new(self) -> None:
        """Reject further associations and requests; those in hand go on."""
        self.stopping = True

    def stop(self) -> None:
        """Close the port and all associations."""
        self.stopping = True
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        for assoc in server.active_associations:
            assoc.abort(block=False)
            assoc.kill()

    def _requested(self, event: evt.Event) -> None:
        """Reject the association of a caller that is not on the list."""
        assoc = cast(NodeAssociation, event.assoc)
        requestor = assoc.requestor
        primitive = requestor.primitive
        caller, called = "", ""
        if primitive is not None:
            caller, called = primitive.calling_ae_title.strip(), primitive.called_ae_title.strip()
        host = requestor.address_info.address if requestor.address_info else ""
        why = self._why_not(caller, called, host)
        if not why:
            self.counts["accepted"] += 1
            return
        reason, codes = why
        # First of all: pynetdicom goes on with the association where a handler raises.
        assoc.acse.send_reject(*codes)
        assoc.is_rejected = True
        assoc.kill()
        self.counts["rejected"] += 1
        self._note_rejection(caller, host, reason)

    def _note_rejection(self, caller: str, host: str, reason: str) -> None:
        """Log and journal a rejection, the same one at most once a minute: a peer may repeat it for days."""
        moment = time.monotonic()
        last = self._rejections.get((caller, host, reason), -math.inf)
        if moment - last < REPEATED_SECONDS or len(self._rejections) > MOST_REJECTIONS:
            self._rejections = {
                key: at for key, at in self._rejections.items() if moment - at < REPEATED_SECONDS
            }
            return
        self._rejections[caller, host, reason] = moment
        logger.warning("association rejected", extra={"why": reason, "caller": caller, "host": host})
        with self._journal.change() as connection:
            audit.record(connection, "rejected", caller=caller, host=host, why=reason)

    def _why_not(self, caller: str, called: str, host: str) -> tuple[str, tuple[int, int, int]] | None:
        """Return why an association is rejected, and result, source and reason of PS3.8 9.3.4."""
        if self.stopping:
            return "the node is stopping", (2, 3, 1)
        if self._server is not None:
            established = sum(one.is_established for one in self._server.active_associations)
            if established >= self._config.limits.max_associations:
                return "too many associations", (2, 3, 2)
        if not self._config.any_called_aet and called != self._config.aet:
            return "another called AE title", (1, 1, 7)
        if not self._config.callers:
            return None
        known = self._callers.get(caller)
        if known is None:
            return "not on the list of callers", (1, 1, 3)
        if known.hosts and not is_in(host, known.hosts):
            return "not an address of this caller", (1, 1, 3)
        return None

    def _closed(self, _event: evt.Event) -> None:
        self._on_closed()

    def _echo(self, _event: evt.Event) -> int:
        self.counts["echo"] += 1
        return SUCCESS

    def _store(self, event: evt.Event) -> int:
        """Respond to a C-STORE: success only for what is on disk and journalled."""
        request = cast(Any, event.request)
        received = cast(ReceivedFile | None, request._dataset_file)
        if received is None:
            return CANNOT_UNDERSTAND
        assoc = cast(NodeAssociation, event.assoc)
        origin = Origin("store", assoc.requestor.ae_title.strip(), assoc.link)
        sop_class, sop_instance = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
        if (wrong := _wrong_request(sop_class, sop_instance, str(event.context.abstract_syntax))) is not None:
            received.discard()
            self.counts["not_stored"] += 1
            logger.warning("not stored", extra={"caller": origin.caller, "why": f"status 0x{wrong:04X}"})
            return wrong
        try:
            self._intake.accept(received, sop_class, sop_instance, origin)
        except NotAccepted as error:
            self.counts["not_stored"] += 1
            logger.error("not stored", extra={"instance": uid_hash(sop_instance)[:12], "why": str(error)})
            return OUT_OF_RESOURCES
        return SUCCESS

    def _action(self, event: evt.Event) -> tuple[int, None]:
        """Journal a request for storage commitment (PS3.4 J.3.2); the report goes on another association."""
        assoc = cast(NodeAssociation, event.assoc)
        name = assoc.requestor.ae_title.strip()
        caller = self._callers.get(name)
        if event.action_type != 1:
            return NO_SUCH_ACTION, None
        if caller is None or caller.port is None:
            logger.warning("storage commitment rejected: no port of this caller", extra={"caller": name})
            return PROCESSING_FAILURE, None
        asked = _asked_for(event.action_information)
        if asked is None:
            return INVALID_ARGUMENT, None
        transaction, items = asked
        try:
            with self._journal.change() as connection:
                connection.execute(
                    "INSERT INTO commitments (transaction_uid, caller, host, items, requested, state)"
                    " VALUES (?, ?, ?, ?, ?, 'pending')",
                    (transaction, name, _host_of(caller, assoc), json.dumps(items), now()),
                )
                audit.record(connection, "commitment requested", caller=name, instances=len(items))
        except JournalError:
            return PROCESSING_FAILURE, None
        self.counts["commitments"] += 1
        self._on_commitment()
        return SUCCESS, None


def _contexts() -> list[PresentationContext]:
    syntaxes = transfer_syntaxes()
    stored = [build_context(one, syntaxes) for one in STORAGE_CLASSES]
    plain = [build_context(one, [EXPLICIT, IMPLICIT]) for one in (Verification, StorageCommitmentPushModel)]
    return [*stored, *plain]


def _wrong_request(sop_class: str, sop_instance: str, negotiated: str) -> int | None:
    """Return the failure status of a C-STORE with wrong UIDs (PS3.4 B.2.3); None where they are right."""
    if not is_uid(sop_class) or not is_uid(sop_instance):
        return CANNOT_UNDERSTAND
    return None if sop_class == negotiated else ANOTHER_CLASS


def _host_of(caller: CallerConfig, assoc: NodeAssociation) -> str:
    address = assoc.requestor.address_info
    return caller.host or (address.address if address is not None else "")


def _asked_for(information: Dataset) -> tuple[str, list[tuple[str, str]]] | None:
    """Return transaction and instances of a request; None where it is not one."""
    transaction = str(information.get("TransactionUID") or "")
    sequence = information.get("ReferencedSOPSequence") or []
    if not 0 < len(transaction) <= 64 or not 0 < len(sequence) <= MOST_ITEMS:
        return None
    items = [
        (str(one.get("ReferencedSOPClassUID") or ""), str(one.get("ReferencedSOPInstanceUID") or ""))
        for one in sequence
    ]
    return transaction, items


# Its own handlers log datasets and commands in full.
pynetdicom._config.LOG_HANDLER_LEVEL = "none"
pynetdicom._config.UNRESTRICTED_STORAGE_SERVICE = False
