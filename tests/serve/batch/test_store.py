from __future__ import annotations

import io
import pickle
import socket
import time
from contextlib import contextmanager

import pytest
from pyarrow import fs

from pneumoscope.errors import DataError
from pneumoscope.serve.batch.store import GCS_RETRY_SECONDS, filesystem, first_line, open_store, split_uri


@pytest.fixture(params=["folder", "object store"])
def store(request, tmp_path, store_options):
    if request.param == "folder":
        return open_store(str(tmp_path / "out"))
    return open_store(f"s3://xrays/{tmp_path.name}?{store_options}")


def test_files_go_in_and_come_out(store, tmp_path):
    assert store.names("parts") == []
    assert store.read("parts/a") is None
    store.put("parts/b", b"two")
    store.put("parts/a", b"one")
    store.put("parts/a", b"more")
    (tmp_path / "local").write_bytes(b"x" * 100)
    store.put_file("parts/c", tmp_path / "local")
    assert store.names("parts") == ["a", "b", "c"]
    other = pickle.loads(pickle.dumps(store))
    assert other.read("parts/a") == b"more"
    with other.open("parts/c") as file:
        assert file.read() == b"x" * 100
    store.remove("parts/a")
    store.remove("parts/a")
    assert store.names("parts") == ["b", "c"]
    with pytest.raises(DataError, match="cannot be read"):
        store.open("parts/a")


def test_a_write_that_fails_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    store = open_store(str(tmp_path))
    store.put("a", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pneumoscope.serve.batch.store.os.fsync", full)
    with pytest.raises(DataError, match="No space left"):
        store.put("a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("ftp://host/x", "begins with s3://, gs://"),
        ("file://otherhost/x", "or file:///"),
        ("s3://", "names no bucket"),
        ("s3://key:secret@bucket/x", "leave credentials out"),
        ("s3a://key:secret@bucket/x", "leave credentials out"),
        ("s3://key:sec/secret@bucket/x", "leave credentials out"),
    ],
)
def test_uris_that_cannot_be_used_are_rejected(location, words):
    with pytest.raises(DataError, match=words) as raised:
        split_uri(location)
    assert "secret" not in str(raised.value)


def test_a_uri_is_shown_without_its_options():
    uri = split_uri("s3://bucket/a/b/?region=x&scheme=http")
    assert (uri.text, uri.path, uri.options) == ("s3://bucket/a/b", "bucket/a/b", "region=x&scheme=http")
    assert split_uri("s3://bucket/a?b", options=False).path == "bucket/a?b"
    assert split_uri("s3://bucket/a@b.png").key == "a@b.png"


class _Altering:
    """A store that keeps other bytes than it got, as one that keeps checksums as content."""

    def __init__(self, folder, change):
        self._files, self._change = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), change

    @contextmanager
    def open_output_stream(self, path):
        content = io.BytesIO()
        yield content
        self._files.create_dir("bucket")
        with self._files.open_output_stream(path) as file:
            file.write(self._change(content.getvalue()))

    def __getattr__(self, name):
        return getattr(self._files, name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "3 bytes arrived of 4; start again"),
        (lambda data: data + b"x-amz", "9 bytes arrived of 4; set AWS_REQUEST_CHECKSUM_CALCULATION"),
    ],
)
def test_an_object_that_arrived_changed_is_removed(tmp_path, change, message):
    store = open_store("s3://bucket")
    store.__dict__["_files"] = _Altering(tmp_path, change)
    (tmp_path / "local").write_bytes(b"rows")
    with pytest.raises(DataError, match=message):
        store.put("a", b"rows")
    with pytest.raises(DataError, match=message):
        store.put_file("a", tmp_path / "local")
    assert list((tmp_path / "bucket").iterdir()) == []


@pytest.fixture
def closed_port():
    """Return a local port where nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield one.getsockname()[1]


def test_a_google_store_that_cannot_be_reached_ends_with_one_line(closed_port, monkeypatch):
    monkeypatch.setattr("pneumoscope.serve.batch.store.GCS_RETRY_SECONDS", 1)
    options = f"endpoint_override=127.0.0.1:{closed_port}&scheme=http"
    files = filesystem("gs", "anonymous@bucket", options)
    began = time.monotonic()
    with pytest.raises(OSError, match="connect") as raised:
        files.get_file_info(fs.FileSelector("bucket"))
    assert time.monotonic() - began < 20
    line = first_line(raised.value)
    assert "Could not connect" in line
    assert "error_info" not in line
    assert "google::cloud" not in line


@pytest.mark.parametrize(
    ("scheme", "options", "limit"),
    [
        ("gs", "", f"?retry_limit_seconds={GCS_RETRY_SECONDS}"),
        ("gcs", "scheme=http", f"?scheme=http&retry_limit_seconds={GCS_RETRY_SECONDS}"),
        ("gs", "retry_limit_seconds=5", "?retry_limit_seconds=5"),
        ("s3", "region=x", "?region=x"),
    ],
)
def test_only_google_gets_a_limit_and_only_where_none_is_given(scheme, options, limit, monkeypatch):
    opened = []

    class Opening:
        @staticmethod
        def from_uri(uri):
            opened.append(uri)
            return None, ""

    monkeypatch.setattr("pneumoscope.serve.batch.store.fs.FileSystem", Opening)
    filesystem.__wrapped__(scheme, "bucket", options)
    assert opened == [f"{scheme}://bucket{limit}"]
