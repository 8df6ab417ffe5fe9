"""Sending by STOW-RS, confirmed by the sequences of its response and by QIDO-RS (PS3.18 10.5 and 10.6)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pneumoscope.serve.dicom.contracts import Delivery, Outcome, OutgoingObject, Sender
from pneumoscope.serve.dicom.dicomweb import (
    DicomWebClient,
    Response,
    WebError,
    first_value,
    multipart_related,
)
from pneumoscope.serve.dicom.statuses import outcome_of_status

__all__ = ["StowSender"]

STORED, FAILED = "00081199", "00081198"  # Referenced SOP Sequence, Failed SOP Sequence
SOP_INSTANCE, REASON = "00081155", "00081197"
QUERIED = "00080018"

# The whole request was rejected: one bad object can be the cause, or their number.
TO_BE_DIVIDED = {400, 409, 413, 415}


class StowSender(Sender):
    """Sends objects to a DICOMweb server; see `pneumoscope.serve.dicom.contracts.Sender`.

    Parameters
    ----------
    client : DicomWebClient
    query : bool
        Whether the server has QIDO-RS. Then an object counts as sent only once it is found there.
    batch : int
        Objects of one request.
    """

    def __init__(self, client: DicomWebClient, *, query: bool = True, batch: int = 20) -> None:
        self._client, self._query, self._batch = client, query, batch

    def present(self, objects: Sequence[OutgoingObject]) -> frozenset[str] | None:
        """Return which of the objects the server has; None where it cannot be asked."""
        if not self._query:
            return None
        series = defaultdict(set)
        for one in objects:
            series[one.study_uid, one.series_uid].add(one.sop_instance)
        found: set[str] = set()
        for (study, uid), expected in series.items():
            try:
                response = self._client.request("GET", f"/studies/{study}/series/{uid}/instances")
            except WebError:
                return None
            if response.status in {204, 404}:  # some servers say so of a series that they do not have
                continue
            listed = response.json()
            if response.status != 200 or not isinstance(listed, list):
                return None
            found |= expected & {first_value(one, QUERIED) for one in listed}
        return frozenset(found)

    def send(self, objects: Sequence[OutgoingObject]) -> list[Delivery]:
        """Send objects in batches."""
        deliveries: list[Delivery] = []
        for start in range(0, len(objects), self._batch):
            deliveries += self._send(objects[start : start + self._batch])
        return deliveries

    def echo(self) -> str:
        """Ask for one study."""
        try:
            response = self._client.request("GET", "/studies", query={"limit": "1"})
        except WebError as error:
            return str(error)
        return "" if response.status in {200, 204} else f"HTTP {response.status}"

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _send(self, batch: Sequence[OutgoingObject]) -> list[Delivery]:
        content_type, body = multipart_related([one.path.read_bytes() for one in batch])
        try:
            response = self._client.request(
                "POST", "/studies", headers={"Content-Type": content_type}, body=body
            )
        except WebError as error:
            return [Delivery(one.sop_instance, Outcome.RETRY, str(error)) for one in batch]
        stored, failed = _references(response, STORED), _references(response, FAILED)
        known = stored.keys() | failed.keys()
        if response.status in TO_BE_DIVIDED and len(batch) > 1 and not known:
            return [delivery for one in batch for delivery in self._send([one])]
        deliveries = [_delivery(one.sop_instance, response, stored, failed) for one in batch]
        return self._confirmed(batch, deliveries)

    def _confirmed(self, batch: Sequence[OutgoingObject], deliveries: list[Delivery]) -> list[Delivery]:
        """Ask for what the response says is stored; what is not found is to be sent again."""
        said = [
            one for one, delivery in zip(batch, deliveries, strict=True) if delivery.outcome == Outcome.SENT
        ]
        found = self.present(said) if said and self._query else frozenset(one.sop_instance for one in said)
        if found is None:
            return [
                Delivery(one.sop_instance, Outcome.RETRY, "acknowledged, but the query failed")
                if one.outcome == Outcome.SENT
                else one
                for one in deliveries
            ]
        return [
            Delivery(one.sop_instance, Outcome.RETRY, "acknowledged, but not found there")
            if one.outcome == Outcome.SENT and one.sop_instance not in found
            else one
            for one in deliveries
        ]


def _delivery(uid: str, response: Response, stored: dict[str, int], failed: dict[str, int]) -> Delivery:
    if uid in failed:
        return Delivery(uid, outcome_of_status(failed[uid] or 0x0110), f"reason {failed[uid]:04X}")
    if response.status in {200, 202} and uid in stored:
        return Delivery(uid, Outcome.SENT, "" if not stored[uid] else f"warning {stored[uid]:04X}")
    if response.status in TO_BE_DIVIDED:
        return Delivery(uid, Outcome.FAILED, f"HTTP {response.status}")
    # A success without the object among what was stored is none.
    return Delivery(uid, Outcome.RETRY, f"HTTP {response.status}, not among the stored objects")


def _references(response: Response, sequence: str) -> dict[str, int]:
    """Return the SOP Instance UIDs of a sequence of the response, with a reason or 0."""
    document = response.json()
    items = document.get(sequence, {}) if isinstance(document, dict) else {}
    values = items.get("Value", []) if isinstance(items, dict) else []
    found = {}
    for item in values if isinstance(values, list) else []:
        uid, reason = first_value(item, SOP_INSTANCE), first_value(item, REASON)
        if uid:
            found[uid] = int(reason) if reason.isdigit() else 0
    return found
