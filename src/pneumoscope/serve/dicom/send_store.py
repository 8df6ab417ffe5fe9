"""Sending by C-STORE over one association that is kept open, and asking by C-FIND what is there already."""

from __future__ import annotations

import ssl
from collections import defaultdict
from collections.abc import Iterator, Sequence

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    Comprehensive3DSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from pneumoscope.image.dicom import lenient_pydicom
from pneumoscope.serve.dicom.config import DestinationConfig
from pneumoscope.serve.dicom.contracts import Delivery, Outcome, OutgoingObject, Sender
from pneumoscope.serve.dicom.outgoing import OutgoingAE, why_not_opened
from pneumoscope.serve.dicom.statuses import outcome_of_status

__all__ = ["StoreSender"]

CLASSES = (
    Verification,
    StudyRootQueryRetrieveInformationModelFind,
    Comprehensive3DSRStorage,
    SecondaryCaptureImageStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
)
# The second is the default that every peer takes; an object is encoded again for it.
SYNTAXES: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]

UIDS_OF_A_QUERY = 50
MOST_RESPONSES = 10_000  # to one query; a server that ignores the UIDs lists whatever it has
PENDING = {0xFF00, 0xFF01}
LOST = "the association ended before the response"


class StoreSender(Sender):
    """Sends objects to a storage SCP; see `pneumoscope.serve.dicom.contracts.Sender`.

    Parameters
    ----------
    destination : DestinationConfig
    calling_aet : str
        AE title of the node.
    tls : SSLContext or None
        A context for clients; None for a plain connection.
    """

    def __init__(self, destination: DestinationConfig, calling_aet: str, tls: ssl.SSLContext | None) -> None:
        self._destination, self._tls = destination, tls
        self._ae = OutgoingAE(calling_aet, destination.timeout)
        self._ae.requested_contexts = [build_context(one, SYNTAXES) for one in CLASSES]
        self._association: Association | None = None
        self._why = ""

    def present(self, objects: Sequence[OutgoingObject]) -> frozenset[str] | None:
        """Return which of the objects the destination has; None where it cannot be asked."""
        if not self._destination.query:
            return None
        series = defaultdict(list)
        for one in objects:
            series[one.study_uid, one.series_uid].append(one.sop_instance)
        found: set[str] = set()
        for (study, uid), expected in series.items():
            for start in range(0, len(expected), UIDS_OF_A_QUERY):
                listed = self._find(study, uid, expected[start : start + UIDS_OF_A_QUERY])
                if listed is None:
                    return None
                found |= listed & set(expected)
        return frozenset(found)

    def send(self, objects: Sequence[OutgoingObject]) -> list[Delivery]:
        """Send objects one after the other; after a lost association the rest is not tried."""
        deliveries: list[Delivery] = []
        for one in objects:
            lost = bool(deliveries) and self._association is None
            deliveries.append(
                Delivery(one.sop_instance, Outcome.NOT_TRIED, self._why) if lost else self._send(one)
            )
        return deliveries

    def echo(self) -> str:
        """Send a C-ECHO; where the destination has no Verification, an association is enough."""
        association = self._established()
        if association is None:
            return self._why
        try:
            status = _status(association.send_c_echo())
        except ValueError:  # Verification was not accepted
            return ""
        except RuntimeError:
            self._drop(LOST)
            return self._why
        if status is None:
            self._drop(LOST)
            return self._why
        return "" if status == 0 else f"status {status:04X}"

    def close(self) -> None:
        """Release the association."""
        association, self._association = self._association, None
        if association is not None and association.is_established:
            association.release()

    def _established(self) -> Association | None:
        """Return the association, opened again where it ended; None, with `_why`, where it cannot be."""
        if self._association is not None and self._association.is_established:
            return self._association
        one = self._destination
        name = one.tls.server_name if one.tls is not None else ""
        tls = None if self._tls is None else (self._tls, name or one.host)
        try:
            association = self._ae.associate(
                one.host, one.port, ae_title=one.aet, max_pdu=one.max_pdu, tls_args=tls
            )
        except (OSError, UnicodeError) as error:  # pynetdicom looks up the host before it connects
            self._drop(why_not_opened(error))
            return None
        if not association.is_established:
            self._drop("the association was rejected" if association.is_rejected else "no association")
            return None
        self._association = association
        return association

    def _drop(self, why: str) -> None:
        self._why = why
        association, self._association = self._association, None
        if association is not None and association.is_established:
            association.abort()

    def _send(self, one: OutgoingObject) -> Delivery:
        association = self._established()
        if association is None:
            return Delivery(one.sop_instance, Outcome.NOT_TRIED, self._why)
        if not any(context.abstract_syntax == one.sop_class for context in association.accepted_contexts):
            detail = f"{UID(one.sop_class).name} is not accepted there"
            return Delivery(one.sop_instance, Outcome.FAILED, detail)
        with lenient_pydicom():
            dataset = pydicom.dcmread(one.path)
        try:
            status = _status(association.send_c_store(dataset))
        except RuntimeError:  # no association any more
            status = None
        except (ValueError, AttributeError):  # for example where it takes Implicit VR only
            return Delivery(one.sop_instance, Outcome.FAILED, "cannot be encoded for it")
        if status is None:
            self._drop(LOST)
            return Delivery(one.sop_instance, Outcome.RETRY, LOST)
        return Delivery(
            one.sop_instance, outcome_of_status(status), "" if status == 0 else f"status {status:04X}"
        )

    def _find(self, study: str, series: str, uids: Sequence[str]) -> set[str] | None:
        """Return which instances of a series the destination lists; None where the query fails."""
        association = self._established()
        if association is None:
            return None
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE"
        query.StudyInstanceUID, query.SeriesInstanceUID = study, series
        query.SOPInstanceUID = list(uids)
        try:
            return _listed(association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind))
        except ValueError:  # C-FIND was not accepted
            return None
        except RuntimeError:
            self._drop(LOST)
            return None


def _listed(responses: Iterator[tuple[Dataset, Dataset | None]]) -> set[str] | None:
    """Return the instances of all responses; None where the query fails.

    Raises
    ------
    RuntimeError
        If the responses have no end; as where the association is lost.
    """
    found: set[str] = set()
    for number, (response, identifier) in enumerate(responses):
        if number > MOST_RESPONSES:
            raise RuntimeError("responses without end")
        status = _status(response)
        if status in PENDING and identifier is not None:
            with lenient_pydicom():
                found.add(str(identifier.get("SOPInstanceUID") or ""))
        elif status != 0:
            return None
    return found


def _status(response: Dataset) -> int | None:
    """Return the status of a response; None where none arrived."""
    return int(response.Status) if "Status" in response else None
