"""Downloads, against a local server that breaks off, lies and rejects."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from pneumoscope.data import download as download_module
from pneumoscope.data import load, sources
from pneumoscope.data.description import read_description
from pneumoscope.data.download import download, unzip_images
from pneumoscope.data.phantom import write_phantoms
from pneumoscope.data.sources import fetch
from pneumoscope.errors import DataError, DownloadError
from pneumoscope.image.decode import IMAGE_SUFFIXES
from pneumoscope.parallel import Progress

CONTENT = np.random.default_rng(0).bytes(700_000)


class Recorder(Progress):
    """Keeps what it receives: for each step the last number done and the total."""

    def __init__(self):
        self.steps = {}

    def step(self, name):
        self.name = name
        self.steps[name] = None

    def update(self, done, total=None):
        self.steps[self.name] = (done, total)


class Handler(BaseHTTPRequestHandler):
    """Serves `server.content`, with Range by default, and the requested faults."""

    def do_GET(self):
        server = self.server
        server.requests.append(self.headers.get("Range"))
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        content, start = server.content, 0
        if server.ranges and (requested := self.headers.get("Range")):
            start = int(requested.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = server.breaks.pop(0) if server.breaks else len(content)
        self.wfile.write(content[start:end])
        if end < len(content):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        served.content, served.ranges = CONTENT, True
        served.requests, served.breaks, served.statuses = [], [], []
        served.url = f"http://127.0.0.1:{served.server_port}"
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(download_module.time, "sleep", lambda seconds: None)


def md5(content):
    return f"md5:{hashlib.md5(content).hexdigest()}"


PUBLISHED = md5(CONTENT)


def get(server, folder, checksum=PUBLISHED, **options):
    download(f"{server.url}/set.npz", folder / "set.npz", checksum=checksum, **options)
    return (folder / "set.npz").read_bytes()


def test_whole_download_with_progress(server, tmp_path):
    progress = Recorder()
    assert get(server, tmp_path, progress=progress) == CONTENT
    assert progress.steps == {"downloading": (len(CONTENT), len(CONTENT))}
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


def test_broken_connections_continue_where_they_broke(server, tmp_path):
    server.breaks = [100_000, 400_000]
    assert get(server, tmp_path) == CONTENT
    assert server.requests[0] is None
    starts = [int(requested[6:-1]) for requested in server.requests[1:]]
    assert len(starts) == 2
    assert 0 < starts[0] <= 100_000 < starts[1] <= 400_000


def test_a_later_run_continues_where_an_earlier_one_stopped(server, tmp_path):
    (tmp_path / "set.npz.part").write_bytes(CONTENT[:123_456])
    assert get(server, tmp_path) == CONTENT
    assert server.requests == ["bytes=123456-"]


def test_a_complete_part_and_a_complete_file_are_not_fetched_again(server, tmp_path):
    (tmp_path / "set.npz.part").write_bytes(CONTENT)
    assert get(server, tmp_path) == CONTENT
    before = len(server.requests)
    assert get(server, tmp_path) == CONTENT
    assert len(server.requests) == before


def test_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    (tmp_path / "set.npz.part").write_bytes(b"x" * 1000)
    assert get(server, tmp_path) == CONTENT


def test_part_longer_than_the_file_is_thrown_away(server, tmp_path):
    (tmp_path / "set.npz.part").write_bytes(CONTENT + b"more")
    assert get(server, tmp_path) == CONTENT


def test_overloaded_server_is_tried_again(server, tmp_path):
    server.statuses = [503, 429]
    assert get(server, tmp_path) == CONTENT


def test_server_that_stays_down(server, tmp_path):
    server.statuses = [500] * 50
    with pytest.raises(DownloadError, match=r"status 500.*--from FILE"):
        get(server, tmp_path)
    assert len(server.requests) < 10


def test_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(DownloadError, match="does not match the checksum"):
        get(server, tmp_path, checksum=md5(b"other"))
    assert not list(tmp_path.iterdir())


def test_not_found_fails_at_once(server, tmp_path):
    server.statuses = [404]
    with pytest.raises(DownloadError, match=r"set\.npz: the server responds with status 404"):
        get(server, tmp_path)
    assert len(server.requests) == 1


def test_rejected_connection_names_address_and_fix(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(
        DownloadError, match=f"{url}/pneumoniamnist.npz: no connection.*--from FILE"
    ) as caught:
        fetch("pneumoniamnist", tmp_path, base_url=url)
    assert "\n" not in str(caught.value)


def test_without_a_published_checksum_later_downloads_must_match_the_first(server, tmp_path):
    get(server, tmp_path, checksum=None)
    note = (tmp_path / "set.npz.sha256").read_text()
    assert note == f"{hashlib.sha256(CONTENT).hexdigest()}  set.npz\n"
    (tmp_path / "set.npz").write_bytes(b"damaged")
    server.content = CONTENT[::-1]
    with pytest.raises(DownloadError, match="differs from the first one"):
        get(server, tmp_path, checksum=None)
    server.content = CONTENT
    assert get(server, tmp_path, checksum=None) == CONTENT


@pytest.mark.parametrize("note", ["", "# a comment\n"])
def test_a_note_without_a_checksum_is_one_line(server, tmp_path, note):
    (tmp_path / "set.npz.sha256").write_text(note)
    with pytest.raises(DataError, match=r"set\.npz\.sha256: holds no checksum; delete it"):
        get(server, tmp_path, checksum=None)


def zipped(members):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


@pytest.fixture
def kermany_zip(tmp_path):
    write_phantoms(tmp_path / "phantoms", n=9, size=32)
    images = {
        p.relative_to(tmp_path / "phantoms").as_posix(): p.read_bytes()
        for p in (tmp_path / "phantoms").rglob("*.jpeg")
    }
    members = {
        f"chest_xray/{side}/{name}": data for side in ("train", "test") for name, data in images.items()
    }
    shadows = {
        "__MACOSX/chest_xray/._a.jpeg": b"x",
        "chest_xray/.DS_Store": b"x",
        "chest_xray/read.txt": b"x",
    }
    return zipped(members | shadows)


def test_fetch_kermany_downloads_unpacks_and_lists(server, tmp_path, kermany_zip):
    server.content = kermany_zip
    progress = Recorder()
    manifest = fetch("kermany", tmp_path / "out", base_url=server.url, progress=progress)
    assert len(manifest) == 18
    steps = ["downloading", "unpacking", "listing files", "hashing files", "reading headers"]
    assert list(progress.steps) == steps
    assert progress.steps["unpacking"] == progress.steps["hashing files"] == (18, 18)
    assert manifest.description.population.ages == (1, 5)
    assert manifest.description.licence == "CC BY 4.0"
    assert read_description(tmp_path / "out") == manifest.description
    assert {record.split for record in manifest} == {"train", "test"}
    assert {
        r.patient_id.startswith("test-") for r in manifest if r.split == "test" and r.label != "normal"
    } == {True}
    assert (tmp_path / "out" / "manifest.csv").is_file()
    assert fetch("kermany", tmp_path / "out", base_url=server.url) == manifest
    assert len(server.requests) == 1


def test_fetch_from_a_file_needs_no_server(tmp_path, kermany_zip):
    (tmp_path / "mine.zip").write_bytes(kermany_zip)
    assert len(fetch("kermany", tmp_path / "out", file=tmp_path / "mine.zip")) == 18
    with pytest.raises(DataError, match="no such file"):
        fetch("kermany", tmp_path / "out", file=tmp_path / "none.zip")


def test_fetch_pneumoniamnist_checks_the_published_md5(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    parts = {
        f"{s}_images": rng.integers(0, 256, (4, 28, 28), dtype=np.uint8) for s in ("train", "val", "test")
    }
    np.savez(
        tmp_path / "x.npz",
        **parts,
        **{f"{s}_labels": np.array([[0], [1], [1], [0]]) for s in ("train", "val", "test")},
    )
    with pytest.raises(DownloadError, match=r"not pneumoniamnist\.npz as published"):
        fetch("pneumoniamnist", tmp_path / "out", file=tmp_path / "x.npz")
    digest = hashlib.md5((tmp_path / "x.npz").read_bytes()).hexdigest()
    monkeypatch.setitem(sources._PNEUMONIAMNIST_MD5, 28, digest)
    manifest = fetch("pneumoniamnist", tmp_path / "out", file=tmp_path / "x.npz")
    assert len(manifest) == 12
    assert manifest.description.name == "PneumoniaMNIST"
    assert load(tmp_path / "out" / "manifest.csv") == manifest


def test_a_description_that_is_there_is_kept(tmp_path, kermany_zip):
    (tmp_path / "mine.zip").write_bytes(kermany_zip)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset.yaml").write_text("name: mine\n")
    assert fetch("kermany", tmp_path / "out", file=tmp_path / "mine.zip").description.name == "mine"


@pytest.mark.parametrize(("name", "size"), [("chexpert", None), ("kermany", 64), ("pneumoniamnist", 100)])
def test_unknown_sets_and_sizes(tmp_path, name, size):
    with pytest.raises(DataError):
        fetch(name, tmp_path, size=size)


@pytest.mark.parametrize(
    "name", ["../evil.jpeg", "/evil.jpeg", "a/../../evil.jpeg", "a\\..\\evil.jpeg", "C:/evil.jpeg"]
)
def test_paths_out_of_the_folder_are_rejected_before_anything_is_written(tmp_path, name):
    (tmp_path / "x.zip").write_bytes(zipped({"good.jpeg": b"1", name: b"2"}))
    with pytest.raises(DataError, match="outside"):
        unzip_images(tmp_path / "x.zip", tmp_path / "out" / "deep")
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_a_bomb_is_stopped(tmp_path):
    (tmp_path / "x.zip").write_bytes(zipped({"a.jpeg": bytes(10_000_000)}))
    with pytest.raises(DataError, match="too large"):
        unzip_images(tmp_path / "x.zip", tmp_path / "out", max_total=1_000_000)
    assert not list((tmp_path / "out").rglob("*.jpeg*"))


def test_damaged_archives(tmp_path):
    whole = zipped({"a.jpeg": CONTENT[:5000], "b.jpeg": CONTENT[5000:9000]})
    for damaged in (b"", b"no zip", whole[:-30], whole[:2000], whole[:3000] + b"\0" * 500 + whole[3500:]):
        (tmp_path / "x.zip").write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.zip"):
            unzip_images(tmp_path / "x.zip", tmp_path / "out")


def test_a_name_that_is_not_in_the_promised_encoding_is_one_line(tmp_path):
    whole = zipped({"\u00e4.jpeg": b"1"}).replace("\u00e4".encode(), b"\xe4\xe4")
    (tmp_path / "x.zip").write_bytes(whole)
    with pytest.raises(DataError, match=r"x\.zip: damaged or not a ZIP archive"):
        unzip_images(tmp_path / "x.zip", tmp_path / "out")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_damaged_member_of_any_compression_is_one_line(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("a.jpeg", bytes(range(256)) * 40)
    whole = bytearray((tmp_path / "x.zip").read_bytes())
    whole[40] = 0xFF  # in the properties of LZMA, the header of bzip2
    (tmp_path / "x.zip").write_bytes(whole)
    with pytest.raises(DataError, match=r"x\.zip"):
        unzip_images(tmp_path / "x.zip", tmp_path / "out")


def test_images_of_every_readable_format_are_unpacked(tmp_path):
    names = {f"a{suffix}" for suffix in IMAGE_SUFFIXES} | {"B.JPG"}
    (tmp_path / "x.zip").write_bytes(zipped(dict.fromkeys([*names, "notes.txt", "c.csv"], b"1")))
    assert unzip_images(tmp_path / "x.zip", tmp_path / "out") == len(names)
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_unpacking_continues_after_an_interruption(tmp_path):
    (tmp_path / "x.zip").write_bytes(zipped({"a.jpeg": b"12345", "b.jpeg": b"678"}))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.jpeg").write_bytes(b"12345")
    (tmp_path / "out" / "b.jpeg.part").write_bytes(b"6")
    assert unzip_images(tmp_path / "x.zip", tmp_path / "out") == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpeg", "b.jpeg"]
    assert (tmp_path / "out" / "b.jpeg").read_bytes() == b"678"
