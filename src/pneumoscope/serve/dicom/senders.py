"""Destinations that results are sent to: by C-STORE or by STOW-RS."""

from __future__ import annotations

from pneumoscope.serve.dicom.config import DestinationConfig
from pneumoscope.serve.dicom.contracts import Sender
from pneumoscope.serve.dicom.dicomweb import DicomWebClient, authorization
from pneumoscope.serve.dicom.send_store import StoreSender
from pneumoscope.serve.dicom.send_stow import StowSender
from pneumoscope.serve.dicom.tls import client_context

__all__ = ["open_sender"]


def open_sender(destination: DestinationConfig, calling_aet: str) -> Sender:
    """Return the sender for a destination; it connects when it is first used.

    Parameters
    ----------
    destination : DestinationConfig
    calling_aet : str
        AE title of the node.

    Raises
    ------
    DataError
        If a certificate, key or file with a secret cannot be used.
    """
    tls = client_context(destination.tls) if destination.tls is not None else None
    if destination.kind == "dicomweb":
        client = DicomWebClient(
            destination.url,
            tls=tls,
            server_name=destination.tls.server_name if destination.tls is not None else "",
            authorization=authorization(destination.token_file, destination.password_file),
            timeout=destination.timeout,
        )
        return StowSender(client, query=destination.query, batch=destination.batch)
    return StoreSender(destination, calling_aet, tls)
