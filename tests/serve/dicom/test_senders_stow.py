"""Sending by STOW-RS to servers that respond well, badly, or not at all."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_peers import free_port
from pneumoscope.errors import DataError
from pneumoscope.serve.dicom.config import DestinationConfig
from pneumoscope.serve.dicom.contracts import Outcome, PublishedObject
from pneumoscope.serve.dicom.dicomweb import (
    DicomWebClient,
    Response,
    WebError,
    authorization,
    multipart_related,
)
from pneumoscope.serve.dicom.send_stow import StowSender
from pneumoscope.serve.dicom.senders import open_sender

Reply = tuple[int, bytes | dict[str, Any] | list[Any]]


class Server:
    """A DICOMweb server that responds as it is told; `stow` and `qido` may be replaced."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.stored: set[str] = set()
        self.stow: Callable[[list[str]], Reply] = self.store
        self.qido: Callable[[], Reply] = lambda: (
            200,
            [{"00080018": {"Value": [uid]}} for uid in self.stored],
        )
        self.connections = 0
        self.close_after = False
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                server.connections += 1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.requests.append(("POST", self.path, dict(self.headers), body))
                parts = body.split(b"--" + self.headers["Content-Type"].split("boundary=")[1].encode())[1:-1]
                self.reply(*server.stow([part.split(b"\r\n\r\n")[1].strip().decode() for part in parts]))

            def do_GET(self) -> None:
                server.requests.append(("GET", self.path, dict(self.headers), b""))
                self.reply(*server.qido())

            def reply(self, status: int, content: Any) -> None:
                if status == 0:  # end without a response
                    self.close_connection = True
                    return
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = server.close_after

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/dicom-web"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def store(self, uids: list[str]) -> Reply:
        """Store everything."""
        self.stored |= set(uids)
        return 200, {"00081199": {"Value": [{"00081155": {"Value": [uid]}} for uid in uids]}}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def objects(tmp_path: Path) -> list[PublishedObject]:
    """Four objects of two series; their content is their UID."""
    found = []
    for number in range(4):
        path = tmp_path / f"{number}.dcm"
        path.write_text(f"1.2.3.{number}")
        found.append(PublishedObject(path, "1.2", f"1.2.{number % 2}", "1.2.840", f"1.2.3.{number}"))
    return found


@pytest.fixture
def stow(server: Server) -> Iterator[StowSender]:
    with StowSender(DicomWebClient(server.url, timeout=3), batch=3) as sender:
        yield sender


def outcomes(deliveries) -> list[Outcome]:
    return [one.outcome for one in deliveries]


def failed(*uids: str, reason: int) -> dict[str, Any]:
    items = [{"00081155": {"Value": [uid]}, "00081197": {"Value": [reason]}} for uid in uids]
    return {"00081198": {"Value": items}}


def test_objects_go_in_batches_over_one_connection_with_their_length(server, stow, objects):
    deliveries = stow.send(objects)
    assert outcomes(deliveries) == [Outcome.SENT] * 4
    assert [one.sop_instance for one in deliveries] == [one.sop_instance for one in objects]
    posts = [one for one in server.requests if one[0] == "POST"]
    assert [one[1] for one in posts] == ["/dicom-web/studies"] * 2
    for _, _, headers, body in posts:
        assert headers["Content-Length"] == str(len(body)) and "Transfer-Encoding" not in headers
        assert headers["Accept"] == "application/dicom+json"
    assert server.connections == 1


def test_the_server_is_asked_by_series(server, stow, objects):
    server.stored = {"1.2.3.1", "1.2.3.2", "9.9"}
    assert stow.present(objects) == {"1.2.3.1", "1.2.3.2"}
    assert {one[1] for one in server.requests} == {
        "/dicom-web/studies/1.2/series/1.2.0/instances",
        "/dicom-web/studies/1.2/series/1.2.1/instances",
    }


@pytest.mark.parametrize("status", [204, 404])
def test_a_series_that_the_server_does_not_have_has_no_objects(server, stow, objects, status):
    server.qido = lambda: (status, b"")
    assert stow.present(objects) == frozenset()


@pytest.mark.parametrize("reply", [(500, b""), (200, b"no json"), (200, {"a": 1}), (0, b""), (401, b"")])
def test_a_query_that_fails_says_nothing(server, stow, objects, reply):
    server.qido = lambda: reply
    assert stow.present(objects) is None


def test_a_success_that_stored_nothing_is_tried_again(server, stow, objects):
    server.stow = lambda uids: (200, b"")
    assert outcomes(stow.send(objects)) == [Outcome.RETRY] * 4


def test_what_is_said_to_be_stored_must_be_found(server, stow, objects):
    server.qido = lambda: (200, [{"00080018": {"Value": ["1.2.3.0"]}}])
    deliveries = stow.send(objects)
    assert outcomes(deliveries) == [Outcome.SENT, *[Outcome.RETRY] * 3]
    assert deliveries[1].detail == "acknowledged, but not found there"
    server.qido = lambda: (503, b"")
    assert outcomes(stow.send(objects)) == [Outcome.RETRY] * 4


def test_without_a_query_the_response_is_believed(server, objects):
    server.qido = lambda: (500, b"")
    with StowSender(DicomWebClient(server.url, timeout=3), query=False) as sender:
        assert outcomes(sender.send(objects)) == [Outcome.SENT] * 4
        assert sender.present(objects) is None


def test_objects_fail_one_by_one(server, stow, objects):
    def reply(uids: list[str]) -> Reply:
        good = [uid for uid in uids if uid != "1.2.3.1"]
        return 202, server.store(good)[1] | failed("1.2.3.1", reason=0xC000)

    server.stow = reply
    deliveries = stow.send(objects)
    assert outcomes(deliveries) == [Outcome.SENT, Outcome.FAILED, Outcome.SENT, Outcome.SENT]
    assert deliveries[1].detail == "reason C000"


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (0x0110, Outcome.RETRY),
        (0xA700, Outcome.RETRY),
        (0xA900, Outcome.FAILED),
        (0x0111, Outcome.ALREADY_THERE),
    ],
)
def test_the_reason_of_a_failure_decides(server, stow, objects, reason, outcome):
    server.stow = lambda uids: (409, failed(*uids, reason=reason))
    assert outcomes(stow.send(objects)) == [outcome] * 4


def test_a_request_that_is_refused_as_a_whole_is_divided(server, stow, objects):
    server.stow = lambda uids: (400, b"") if "1.2.3.1" in uids else server.store(uids)
    assert outcomes(stow.send(objects)) == [Outcome.SENT, Outcome.FAILED, Outcome.SENT, Outcome.SENT]


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503, 302, 0])
def test_what_may_pass_is_tried_again(server, stow, objects, status):
    server.stow = lambda uids: (status, b"")
    assert outcomes(stow.send(objects)) == [Outcome.RETRY] * 4


def test_a_server_that_is_down(objects):
    config = DestinationConfig(
        name="web", kind="dicomweb", url=f"http://127.0.0.1:{free_port()}/x", timeout=2
    )
    with open_sender(config, "PNEUMOSCOPE") as sender:
        assert outcomes(sender.send(objects)) == [Outcome.RETRY] * 4
        assert sender.present(objects) is None and "no response" in sender.echo()


def test_a_connection_that_the_server_closed_is_opened_again(server, stow, objects):
    assert stow.echo() == ""
    replies = iter([(0, b""), (200, [])])
    server.qido = lambda: next(replies)
    assert stow.present(objects[:1]) == frozenset()
    assert server.connections == 2


def test_objects_are_not_sent_twice_over_a_kept_connection(server, stow, objects):
    """The server stores them and ends the connection without a response; then it is asked."""
    assert stow.echo() == ""
    server.stow = lambda uids: (0, server.store(uids)[1])
    assert outcomes(stow.send(objects[:1])) == [Outcome.RETRY]
    assert [one[0] for one in server.requests] == ["GET", "POST"]
    assert stow.present(objects[:1]) == {objects[0].sop_instance}


def test_a_connection_that_ended_while_it_was_idle_loses_no_request(server, stow, objects):
    server.close_after = True
    assert stow.echo() == ""
    assert stow._client._connection is not None
    time.sleep(0.3)
    assert outcomes(stow.send(objects[:1])) == [Outcome.SENT]
    assert [one[0] for one in server.requests] == ["GET", "POST", "GET"]


def test_https_without_a_tls_key_is_after_the_same_profile():
    context = DicomWebClient("https://127.0.0.1:1/x")._tls
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
    names = {one["name"] for one in context.get_ciphers() if one["protocol"] == "TLSv1.2"}
    assert names and all("DHE" in name and ("GCM" in name or "CHACHA20" in name) for name in names)


def test_a_response_without_end_is_cut_off(server):
    server.qido = lambda: (200, b"x" * 5000)
    client = DicomWebClient(server.url, timeout=3)
    with pytest.raises(WebError, match="more than 4,000 bytes"):
        client.request("GET", "/studies", max_bytes=4000)
    assert len(client.request("GET", "/studies", max_bytes=5000).body) == 5000
    client.close()


@settings(max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["00081199", "00081198", "00081155", "00081197", "Value", "00080018"]), inner
            )
        ),
        max_leaves=8,
    )
)
def test_no_response_breaks_the_sender(content):
    class Fake(DicomWebClient):
        def request(self, *_: Any, **__: Any) -> Response:
            return Response(200, {}, json.dumps(content).encode())

    sender = StowSender(Fake("http://127.0.0.1/"))
    path = Path(__file__)
    object_ = PublishedObject(path, "1.2", "1.3", "1.4", "1.5")
    assert outcomes(sender.send([object_]))[0] in {
        Outcome.RETRY,
        Outcome.FAILED,
        Outcome.ALREADY_THERE,
        Outcome.SENT,
    }


def test_secrets_come_from_files(tmp_path, server, objects):
    token, password = tmp_path / "token", tmp_path / "password"
    token.write_text("abc\n")
    password.write_text("node:secret\n")
    assert authorization(token, None) == "Bearer abc"
    assert authorization(None, password) == "Basic bm9kZTpzZWNyZXQ="
    assert authorization(None, None) is None
    config = DestinationConfig(name="web", kind="dicomweb", url=server.url, token_file=token)
    with open_sender(config, "PNEUMOSCOPE") as sender:
        sender.send(objects[:1])
    assert {one[2]["Authorization"] for one in server.requests} == {"Bearer abc"}
    token.write_text("")
    for path in (token, tmp_path / "absent"):
        with pytest.raises(DataError, match=str(path)):
            authorization(path, None)


@pytest.mark.parametrize("url", ["ftp://host/x", "host:8042", "http:///x"])
def test_an_address_that_is_none(url):
    with pytest.raises(DataError, match="not the address of a DICOMweb server"):
        DicomWebClient(url)


def test_a_multipart_body_is_its_parts_between_boundaries():
    content_type, pieces = multipart_related([b"a", b"bb"])
    boundary = content_type.split("boundary=")[1].encode()
    body = b"".join(pieces)
    head = b"\r\nContent-Type: application/dicom\r\n\r\n"
    assert body == b"".join(
        [b"--", boundary, head, b"a\r\n--", boundary, head, b"bb\r\n--", boundary, b"--\r\n"]
    )
