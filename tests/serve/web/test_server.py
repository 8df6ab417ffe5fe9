from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from pneumoscope.errors import PneumoscopeError
from pneumoscope.serve.web.app import create_app
from pneumoscope.serve.web.limits import WebLimits
from pneumoscope.serve.web.server import Address, is_loopback, serve
from web_server import running_server

PREDICTIONS = "/v1/predictions"
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


class Sender(threading.Thread):
    """Sends one image in the background."""

    def __init__(self, server, png):
        super().__init__()
        self.server, self.png, self.response = server, png, None
        self.start()

    def run(self):
        with self.server.client() as client:
            self.response = client.post(PREDICTIONS, files={"files": ("a.png", self.png)})


def metric(client, name):
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@linux_only
def test_a_stop_finishes_what_was_accepted(web_bundle, png, tmp_path):
    with running_server(web_bundle.path, tmp_path / "served", workers=1) as server, server.client() as client:
        (worker,) = server.workers
        os.kill(worker, signal.SIGSTOP)
        sender = Sender(server, png)
        until(lambda: metric(client, "pneumoscope_requests_waiting") == 1)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(OSError):  # rejected or reset
            until(lambda: server.connect(timeout=1).close())
        os.kill(worker, signal.SIGCONT)
        sender.join(60)
        assert sender.response.json()["predictions"][0]["status"] == "ok"
        assert server.process.wait(60) == 0
        assert not alive(worker)


@linux_only
def test_a_full_queue_is_429_at_once(web_bundle, png, tmp_path):
    with (
        running_server(web_bundle.path, tmp_path / "served", workers=1, max_queue=1) as server,
        server.client() as client,
    ):
        (worker,) = server.workers
        os.kill(worker, signal.SIGSTOP)
        sender = Sender(server, png)
        until(lambda: metric(client, "pneumoscope_requests_waiting") == 1)
        began = time.monotonic()
        with server.connect() as connection:  # the body is not waited for
            connection.sendall(
                f"POST {PREDICTIONS} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
                "Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode()
            )
            head = connection.recv(4096).lower()
        assert time.monotonic() - began < 5
        assert head.startswith(b"http/1.1 429")
        assert b"\r\nretry-after: 1\r\n" in head
        assert client.get("/readyz").status_code == 503
        os.kill(worker, signal.SIGCONT)
        sender.join(60)
        assert sender.response.status_code == 200
        assert client.get("/readyz").status_code == 200


@linux_only
def test_a_worker_killed_is_a_row_and_not_an_error(web_bundle, png, tmp_path):
    with running_server(web_bundle.path, tmp_path / "served", workers=1) as server, server.client() as client:
        (worker,) = server.workers
        os.kill(worker, signal.SIGSTOP)
        sender = Sender(server, png)
        until(lambda: metric(client, "pneumoscope_requests_waiting") == 1)
        os.kill(worker, signal.SIGKILL)
        sender.join(60)
        row = sender.response.json()["predictions"][0]
        assert (row["status"], row["reasons"]) == ("unreadable", ["reader_stopped"])
        row = client.post(PREDICTIONS, files={"files": ("a.png", png)}).json()["predictions"][0]
        assert row["status"] == "ok"
        assert metric(client, "pneumoscope_worker_restarts_total") == 1


@linux_only
def test_workers_do_not_outlive_a_killed_server(web_bundle, tmp_path):
    with running_server(web_bundle.path, tmp_path / "served") as server:
        workers = server.workers
        assert len(workers) == 2
        server.process.kill()
        server.process.wait()
        # A zombie process counts as ended.
        until(lambda: not any(alive(pid) and not is_zombie(pid) for pid in workers))


def is_zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_port_in_use_is_one_line(web_bundle):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            PneumoscopeError, match=rf"127.0.0.1:{port}: cannot listen .* another --host or --port"
        ):
            serve(create_app(web_bundle), Address(port=port), WebLimits(), on_ready=print)


def test_a_certificate_that_is_none_is_one_line(web_bundle, tmp_path):
    (tmp_path / "c.pem").write_text("no certificate")
    address = Address(port=0, certificate=tmp_path / "c.pem", key=tmp_path / "c.pem")
    with pytest.raises(PneumoscopeError, match="not a usable certificate"):
        serve(create_app(web_bundle), address, WebLimits(), on_ready=print)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls(web_bundle, tmp_path):
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    command = [sys.executable, "-m", "pneumoscope", "serve", "--port", "0", "--workers", "1"]
    command += ["--bundle", str(web_bundle.path), "--tls-cert", str(certificate), "--tls-key", str(key)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        url = process.stderr.readline().split()[0]
        assert url.startswith("https://127.0.0.1:")
        response = httpx.get(
            f"{url}/readyz", verify=ssl.create_default_context(cafile=str(certificate)), timeout=30
        )
        assert response.json() == {"status": "ready"}
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("example.org", False),
    ],
)
def test_loopback(host, local):
    assert is_loopback(host) is local
