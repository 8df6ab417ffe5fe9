"""Sending by C-STORE: one association, what every status means, and what is there already."""

from __future__ import annotations

import gc
import subprocess
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import SecondaryCaptureImageStorage

from dicom_archives import Archive
from dicom_peers import free_port
from pneumoscope.serve.dicom import send_store
from pneumoscope.serve.dicom.config import DestinationConfig, TlsClientConfig, TlsServerConfig
from pneumoscope.serve.dicom.contracts import Outcome, PublishedObject, ResultOptions
from pneumoscope.serve.dicom.header import encode
from pneumoscope.serve.dicom.results import build_results
from pneumoscope.serve.dicom.senders import open_sender
from pneumoscope.serve.dicom.statuses import outcome_of_status
from pneumoscope.serve.dicom.tls import server_context
from results_of_studies import header, predicted, source, study

# pynetdicom leaves sockets to the garbage collector: of connections that failed, and of its servers.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <s:ResourceWarning")


@pytest.fixture(autouse=True)
def _sockets() -> Iterator[None]:
    """Collect them before the next test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def objects(tiny, tmp_path_factory) -> list[PublishedObject]:
    """A Secondary Capture and a report, as files."""
    folder = tmp_path_factory.mktemp("out")
    name = {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada=\u5c71\u7530"}
    found = []
    for one in build_results(study(tiny, source(folder, header(**name), predicted())), ResultOptions()):
        path = folder / f"{one.Modality}.dcm"
        path.write_bytes(encode(one))
        found.append(
            PublishedObject(
                path, one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPClassUID, one.SOPInstanceUID
            )
        )
    return found


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive() as running:
        yield running


def sender(archive: Archive, **settings):
    return open_sender(DestinationConfig(**archive.destination(**settings)), "PNEUMOSCOPE")


def outcomes(deliveries) -> list[Outcome]:
    return [one.outcome for one in deliveries]


def test_objects_are_stored_as_they_are(archive, objects):
    with sender(archive) as destination:
        assert outcomes(destination.send(objects)) == [Outcome.SENT] * 2
    for one in objects:
        stored, original = archive.stored[one.sop_instance], pydicom.dcmread(one.path)
        assert stored.get_item("PatientName").value == original.get_item("PatientName").value
        assert stored.SOPClassUID == one.sop_class


def test_one_association_serves_many_calls(objects):
    opened = []
    with Archive() as archive:
        archive._server.bind(evt.EVT_ESTABLISHED, lambda event: opened.append(event.assoc))
        with sender(archive) as destination:
            assert destination.echo() == ""
            destination.send(objects)
            destination.present(objects)
            destination.send(objects)
        assert len(opened) == 1


def test_an_association_that_ended_is_opened_again(archive, objects):
    with sender(archive) as destination:
        destination.send(objects[:1])
        destination._association.abort()
        assert outcomes(destination.send(objects[1:])) == [Outcome.SENT]


def test_the_destination_is_asked_what_it_has(archive, objects):
    with sender(archive) as destination:
        assert destination.present(objects) == frozenset()
        destination.send(objects[:1])
        assert destination.present(objects) == {objects[0].sop_instance}
    with sender(archive, query=False) as destination:
        assert destination.present(objects) is None


def test_a_query_whose_responses_do_not_end_is_given_up(objects, monkeypatch):
    class Talkative(Archive):
        def _find(self, event):
            for _ in range(100):
                yield 0xFF00, event.identifier

    monkeypatch.setattr(send_store, "MOST_RESPONSES", 5)
    with Talkative() as archive, sender(archive) as destination:
        assert destination.present(objects) is None
        assert destination._association is None
        assert outcomes(destination.send(objects)) == [Outcome.SENT] * 2


def test_an_object_that_was_stored_without_a_response_is_found_by_asking(archive, objects):
    archive.lose = 1
    with sender(archive) as destination:
        deliveries = destination.send(objects)
        assert outcomes(deliveries) == [Outcome.RETRY, Outcome.NOT_TRIED]
        assert destination.present(objects) == {objects[0].sop_instance}
        assert outcomes(destination.send(objects[1:])) == [Outcome.SENT]
    assert set(archive.attempts.values()) == {1}


def test_a_destination_that_is_down_is_tried_again(objects):
    down = DestinationConfig(name="down", aet="PACS", host="127.0.0.1", port=free_port(), timeout=2)
    with open_sender(down, "PNEUMOSCOPE") as destination:
        deliveries = destination.send(objects)
        assert outcomes(deliveries) == [Outcome.NOT_TRIED] * 2 and all(one.detail for one in deliveries)
        assert destination.present(objects) is None
        assert destination.echo()


def test_a_host_name_that_cannot_be_resolved_is_out_of_reach(objects):
    for host in ("no-such-host.invalid", "two..dots"):
        unknown = DestinationConfig(name="unknown", aet="PACS", host=host, timeout=2)
        with open_sender(unknown, "PNEUMOSCOPE") as destination:
            deliveries = destination.send(objects)
            assert outcomes(deliveries) == [Outcome.NOT_TRIED] * 2
            assert {one.detail for one in deliveries} == {"host not found"}
            assert destination.present(objects) is None
            assert destination.echo() == "host not found"


def test_a_slow_destination_times_out(archive, objects):
    archive.delay = 3
    with sender(archive, timeout=1) as destination:
        assert outcomes(destination.send(objects[:1])) == [Outcome.RETRY]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (0x0000, Outcome.SENT),
        (0xB000, Outcome.SENT),
        (0xB007, Outcome.SENT),
        (0x0111, Outcome.ALREADY_THERE),
        (0xA700, Outcome.RETRY),
        (0x0110, Outcome.RETRY),
        (0x0124, Outcome.RETRY),
        (0x1234, Outcome.RETRY),
        (0xA900, Outcome.FAILED),
        (0xC000, Outcome.FAILED),
        (0xC123, Outcome.FAILED),
        (0x0122, Outcome.FAILED),
    ],
)
def test_what_a_status_means(status, outcome):
    assert outcome_of_status(status) is outcome


def test_a_status_is_told_with_the_object(archive, objects):
    archive.status = 0xA700
    with sender(archive) as destination:
        deliveries = destination.send(objects)
    assert outcomes(deliveries) == [Outcome.RETRY] * 2
    assert [one.detail for one in deliveries] == ["status A700"] * 2
    assert [one.sop_instance for one in deliveries] == [one.sop_instance for one in objects]


@pytest.fixture
def captures_only() -> Iterator[tuple[int, dict[str, bytes]]]:
    """An archive that takes Secondary Captures only, in Implicit VR."""
    port, stored = free_port(), {}

    def store(event):
        stored[str(event.request.AffectedSOPInstanceUID)] = event.request.DataSet.getvalue()
        return 0

    ae = AE(ae_title="PACS")
    ae.add_supported_context(SecondaryCaptureImageStorage, ImplicitVRLittleEndian)
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    yield port, stored
    server.shutdown()


def test_a_class_that_is_not_accepted_fails_and_another_syntax_is_used(captures_only, objects):
    port, stored = captures_only
    config = DestinationConfig(name="pacs", aet="PACS", host="127.0.0.1", port=port, timeout=5)
    with open_sender(config, "PNEUMOSCOPE") as destination:
        deliveries = destination.send(objects)
        assert outcomes(deliveries) == [Outcome.SENT, Outcome.FAILED]
        assert "Comprehensive 3D SR" in deliveries[1].detail
        assert destination.present(objects) is None, "it has no C-FIND"
        assert destination.echo() == "", "it responds, although Verification is not accepted"
    assert b"PN" not in stored[objects[0].sop_instance][:2000], "Implicit VR"


@pytest.mark.parametrize("error", [ValueError("Zauberbaum"), AttributeError("Zauberbaum")])
def test_an_object_that_cannot_be_encoded_fails_alone(archive, objects, monkeypatch, error):
    with sender(archive) as destination:
        association = destination._established()
        original = association.send_c_store

        def send_c_store(dataset):
            if dataset.SOPInstanceUID == objects[0].sop_instance:
                raise error
            return original(dataset)

        monkeypatch.setattr(association, "send_c_store", send_c_store)
        deliveries = destination.send(objects)
    assert outcomes(deliveries) == [Outcome.FAILED, Outcome.SENT]
    assert deliveries[0].detail == "cannot be encoded for it"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """An authority, and a certificate of 127.0.0.1 with its key."""
    folder = tmp_path_factory.mktemp("tls")
    ca, ca_key, request = folder / "ca.pem", folder / "ca.key", folder / "request.pem"
    certificate, key, extension = folder / "node.pem", folder / "node.key", folder / "extension"
    extension.write_text("subjectAltName=IP:127.0.0.1\n")
    new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes"]
    signed = ["-days", "9", "-extfile", extension, "-out", certificate]
    commands = [
        [*new, "-x509", "-days", "9", "-subj", "/CN=test ca", "-keyout", ca_key, "-out", ca],
        [*new, "-subj", "/CN=127.0.0.1", "-keyout", key, "-out", request],
        ["openssl", "x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", *signed],
    ]
    for command in commands:
        subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return ca, certificate, key


@pytest.fixture
def secure(certificates) -> Iterator[int]:
    """An archive with TLS that asks for a client certificate."""
    ca, certificate, key = certificates
    port, ae = free_port(), AE(ae_title="PACS")
    ae.add_supported_context(SecondaryCaptureImageStorage)
    context = server_context(TlsServerConfig(certificate=certificate, key=key, client_ca=ca))
    handlers = [(evt.EVT_C_STORE, lambda event: 0)]
    server = ae.start_server(("127.0.0.1", port), block=False, ssl_context=context, evt_handlers=handlers)
    yield port
    server.shutdown()


class _Listing(BaseHTTPRequestHandler):
    """Has no study."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: object) -> None:
        pass


def test_the_name_of_a_certificate_may_be_another_one_than_the_host(certificates):
    ca, certificate, key = certificates
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Listing)
    context = server_context(TlsServerConfig(certificate=certificate, key=key))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    base = {"name": "web", "kind": "dicomweb", "url": f"https://localhost:{server.server_port}", "timeout": 3}
    found = []
    for name in ("127.0.0.1", ""):
        known = TlsClientConfig(ca=ca, server_name=name)
        with open_sender(DestinationConfig(**base, tls=known), "PNEUMOSCOPE") as destination:
            found.append(destination.echo())
    server.shutdown()
    server.server_close()
    assert found[0] == ""
    assert found[1].startswith("no response")


def test_tls_with_a_client_certificate(secure, certificates, objects, caplog):
    caplog.set_level("CRITICAL", "pynetdicom.transport")  # its records would hold the sockets
    ca, certificate, key = certificates
    base = {"name": "pacs", "aet": "PACS", "host": "127.0.0.1", "port": secure, "timeout": 3}
    known = TlsClientConfig(ca=ca, certificate=certificate, key=key)
    with open_sender(DestinationConfig(**base, tls=known), "PNEUMOSCOPE") as destination:
        assert outcomes(destination.send(objects[:1])) == [Outcome.SENT]
    for wrong in (TlsClientConfig(ca=ca), TlsClientConfig(), None):
        with open_sender(DestinationConfig(**base, tls=wrong), "PNEUMOSCOPE") as destination:
            assert outcomes(destination.send(objects[:1])) == [Outcome.NOT_TRIED]
