"""TLS contexts of the node, after DICOM's BCP 195 profile (PS3.15 B.9): TLS 1.2 or later, forward secrecy.

A context is for one direction: a server's context makes no client connections.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from pneumoscope.errors import DataError
from pneumoscope.serve.dicom.config import TlsClientConfig, TlsServerConfig

__all__ = ["client_context", "server_context"]

# Of TLS 1.2; those of TLS 1.3 have forward secrecy and authenticated encryption without exception.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM"


def server_context(config: TlsServerConfig) -> ssl.SSLContext:
    """Return the context for connections that others open.

    Raises
    ------
    DataError
        If a certificate or key cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    _load_own(context, config.certificate, config.key)
    if config.client_ca is not None:
        _load_authorities(context, config.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(config: TlsClientConfig) -> ssl.SSLContext:
    """Return the context for connections that the node opens; the other side's certificate is verified.

    Raises
    ------
    DataError
        If a certificate or key cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _harden(context)
    if config.ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load_authorities(context, config.ca)
    if config.certificate is not None and config.key is not None:
        _load_own(context, config.certificate, config.key)
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def _load_own(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise DataError(f"{certificate}: no certificate for the key {key} ({_why(error)})") from error


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no certificates of authorities in PEM ({_why(error)})") from error


def _no_password() -> str:
    raise ValueError("the key has a passphrase; store it without one, readable by the node only")


def _why(error: Exception) -> str:
    return " ".join(str(error).split())
