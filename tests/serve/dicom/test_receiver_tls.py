"""Associations over TLS: who gets one, and how long a handshake may take."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from pynetdicom.sop_class import Verification

from dicom_raw import RawAssociation
from pneumoscope.serve.dicom.config import (
    DestinationConfig,
    Limits,
    ListenConfig,
    TlsClientConfig,
    TlsServerConfig,
)
from pneumoscope.serve.dicom.outgoing import OutgoingAE
from pneumoscope.serve.dicom.senders import open_sender
from pneumoscope.serve.dicom.tls import client_context
from receiving import receiving


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, and certificates of a node, a known and an unknown client."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is absent")
    folder = tmp_path_factory.mktemp("tls")

    def run(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    for authority in ("ca", "other"):
        run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", f"/CN={authority}", "-keyout", f"{authority}.key",
            "-out", f"{authority}.pem")  # fmt: skip
    for name, authority in (("node", "ca"), ("client", "ca"), ("stranger", "other")):
        run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
        run("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
            "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", f"{name}.pem")  # fmt: skip
    return folder


def tls_listen(folder: Path) -> ListenConfig:
    tls = TlsServerConfig(
        certificate=folder / "node.pem", key=folder / "node.key", client_ca=folder / "ca.pem"
    )
    return ListenConfig(port=0, tls=tls)


def echoes(port: int, context: ssl.SSLContext) -> bool:
    ae = OutgoingAE("A", 5)
    ae.add_requested_context(Verification)
    association = ae.associate("127.0.0.1", port, ae_title="PNEUMOSCOPE", tls_args=(context, "127.0.0.1"))
    if not association.is_established:
        return False
    good = association.send_c_echo().get("Status") == 0
    association.release()
    return good


def test_tls_with_certificates_of_clients(tmp_path, certificates):
    def client(name: str) -> ssl.SSLContext:
        return client_context(
            TlsClientConfig(
                ca=certificates / "ca.pem",
                certificate=certificates / f"{name}.pem",
                key=certificates / f"{name}.key",
            )
        )

    listen = tls_listen(certificates)
    with receiving(tmp_path, listen=listen, limits=Limits(idle_seconds=2)) as (_, port, _journal):
        # A client that connects and stays silent holds up nobody.
        silent = socket.create_connection(("127.0.0.1", port))
        assert echoes(port, client("client"))
        assert not echoes(port, client("stranger"))
        assert not echoes(port, client_context(TlsClientConfig(ca=certificates / "ca.pem")))
        assert not echoes(port, client_context(TlsClientConfig(ca=certificates / "other.pem")))
        weak = client("client")
        weak.maximum_version = ssl.TLSVersion.TLSv1_2
        weak.set_ciphers("ECDHE+AES256+SHA384:!AESGCM")
        assert not echoes(port, weak), "no authenticated encryption"
        with RawAssociation(port, timeout=5) as plain:
            assert plain.response == b"", "no association without TLS"
        silent.settimeout(5)
        assert silent.recv(1) == b""
        silent.close()
        # As a destination, by the same configuration as in node.yaml.
        own = {"certificate": certificates / "client.pem", "key": certificates / "client.key"}
        for tls, good in (
            ({"ca": certificates / "ca.pem", **own}, True),
            ({"ca": certificates / "other.pem", **own}, False),
        ):
            destination = DestinationConfig(
                name="x",
                aet="PNEUMOSCOPE",
                host="127.0.0.1",
                port=port,
                tls=TlsClientConfig(**tls),
                timeout=5,
            )
            with open_sender(destination, "A") as sender:
                assert (sender.echo() == "") is good
