from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import httpx
import pytest

from bundles import make_bundle
from pneumoscope.cli import main
from pneumoscope.cli.serve import _token


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def rejected(bundle, capsys):
    """Run the command where it must not start; returns its exit code and its error output."""

    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(["serve", "--bundle", str(bundle.path), "--port", "0", *map(str, words)])
        return left.value.code, capsys.readouterr().err

    return run


# Its workers end at once, as where there is too little memory to load the model.
WITHOUT_WORKERS = """
import sys
from pneumoscope.cli import main
from pneumoscope.serve.web import app
app.WORKER_MODULE = "abc"
main(["serve", "--port", "0", *sys.argv[1:]])
"""


def started(bundle, *words, **environment):
    command = [sys.executable, "-m", "pneumoscope", "serve", "--bundle", str(bundle.path), "--port", "0"]
    environment = {**os.environ, **environment}
    return subprocess.Popen(
        [*command, "--workers", "1", *words], stderr=subprocess.PIPE, text=True, env=environment
    )


def test_it_says_where_it_is_and_who_can_reach_it(bundle):
    with started(bundle) as process:
        line = process.stderr.readline()
        url = line.split()[0]
        assert url.startswith("http://127.0.0.1:")
        assert bundle.identity in line
        assert "this machine alone" in line
        assert httpx.get(f"{url}/readyz", timeout=30).json() == {"status": "ready"}
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_an_open_port_without_token_is_warned_about_and_limits_are_passed_on(bundle, monkeypatch, capsys):
    seen = {}

    def serve(_app, address, limits, *, on_ready):
        seen.update(address=address, limits=limits)
        on_ready("http://0.0.0.0:1")

    monkeypatch.setattr("pneumoscope.serve.web.server.serve", serve)
    words = ["--max-files", "3", "--max-file-mb", "2", "--max-request-mb", "7", "--max-queue", "5"]
    with suppress(SystemExit):
        main(["serve", "--bundle", str(bundle.path), "--host", "0.0.0.0", *words])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("warning: ")
    assert "other machines can reach it" in lines[1]
    assert seen["address"].host == "0.0.0.0"
    limits = seen["limits"]
    assert (limits.max_files, limits.max_file_bytes, limits.max_request_bytes) == (3, 2_000_000, 7_000_000)


def test_a_token(bundle, tmp_path):
    token = "0123456789abcdef"
    (tmp_path / "token").write_text(f"{token}\n")
    with started(bundle, "--host", "0.0.0.0", "--token-file", str(tmp_path / "token")) as process:
        url = process.stderr.readline().split()[0]  # no warning
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/v1/bundle", timeout=30).status_code == 401
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{url}/v1/bundle", headers=headers, timeout=30).status_code == 200
        process.terminate()
        assert process.wait(60) == 0


def test_a_token_of_the_environment(monkeypatch):
    monkeypatch.setenv("PNEUMOSCOPE_TOKEN", "0123456789abcdef")
    assert _token(None) == "0123456789abcdef"


@pytest.mark.parametrize(
    "content", [None, "", "short", "with a space in it", "tökens-are-ascii-only", b"\xff" * 20]
)
def test_a_token_that_cannot_be_used(rejected, tmp_path, content):
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, err = rejected("--token-file", file)
    assert code == 4
    assert err.startswith(f"error: {file}: ")
    assert len(err.splitlines()) == 1


def test_half_a_certificate_is_wrong_use(rejected, tmp_path):
    code, err = rejected("--tls-cert", tmp_path / "c.pem")
    assert code == 2
    assert "--tls-key" in err


def test_no_bundle_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["serve", "--bundle", str(tmp_path)])
    assert left.value.code == 4
    assert "not a bundle" in capsys.readouterr().err


def test_a_draft_is_not_served(tmp_path, capsys):
    make_bundle(tmp_path, state="draft")
    with pytest.raises(SystemExit) as left:
        main(["serve", "--bundle", str(tmp_path), "--port", "0"])
    assert left.value.code == 4
    assert "draft" in capsys.readouterr().err


def test_without_the_web_packages_it_names_the_extra(rejected, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in [name for name in sys.modules if name.startswith("pneumoscope.serve")]:
        monkeypatch.delitem(sys.modules, name)
    code, err = rejected()
    assert (code, err) == (
        4,
        "error: serving the page needs more packages: in a clone, pip install '.[web]'\n",
    )


def test_a_token_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "token").write_text("0123456789abcdef\r\n", encoding="utf-8-sig")
    assert _token(tmp_path / "token") == "0123456789abcdef"


@pytest.mark.parametrize("debug", [False, True])
def test_workers_that_do_not_start_are_one_line(bundle, debug):
    command = [sys.executable, "-c", WITHOUT_WORKERS, "--bundle", str(bundle.path)]
    command += ["--debug"] * debug
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    if debug:
        assert ended.returncode != 0
        assert "EOFError" in ended.stderr and "Traceback" in ended.stderr
    else:
        assert ended.returncode == 4
        assert ended.stderr.startswith("error: a worker ended while loading the model: ")
        assert len(ended.stderr.splitlines()) == 1
