"""Damaged and malicious datasets and PDUs: no crash, no file outside the folder, and good files go on."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest

from dicom_archives import Archive
from dicom_modality import radiograph, send
from dicom_peers import running_node, until, write_config
from dicom_raw import EXPLICIT, RawAssociation, pdu
from pneumoscope.serve.dicom.status import NodeStatus

DEFLATED = b"1.2.840.10008.1.2.1.99"
GIGABYTE = 1_000_000_000
ALL_ENDED = {"reported", "unreportable", "parked", "ignored", "conflict"}

pytestmark = pytest.mark.slow


def dataset_of(number: int, **elements: object) -> bytes:
    """Return the dataset of an image without preamble and file meta information."""
    data = radiograph(number, **elements)
    return data[144 + int.from_bytes(data[140:144], "little") :]


def nested(depth: int) -> bytes:
    """Return an element that holds sequences in sequences."""
    head = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return head * depth


def fuzzed(rng: random.Random, number: int) -> tuple[bytes, bytes, bytes]:  # noqa: PLR0912
    """Return a damaged dataset, its SOP Instance UID as the command has it, and its transfer syntax."""
    good = bytearray(dataset_of(number))
    uid, syntax = f"1.2.826.0.1.3680043.10.5.1.{number}.{number}".encode(), EXPLICIT
    kind = rng.choices(range(11), [10, 10, 10, 1, 10, 10, 10, 10, 10, 10, 10])[0]
    if kind == 0:  # truncated
        del good[rng.randrange(len(good)) :]
    elif kind == 1:  # wrong lengths
        for _ in range(rng.randint(1, 8)):
            where = rng.randrange(min(len(good), 900))
            good[where : where + 2] = rng.randbytes(2)
    elif kind == 2:  # deep sequences
        good[:0] = nested(rng.choice([5, 500, 5000]))
    elif kind == 3:  # a bomb: 200 MB of zeros in 200 kB
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
        pixels = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, 200_000_000)
        packed = deflater.compress(bytes(good[: rng.randrange(600, 900)]) + pixels + bytes(50_000_000))
        good, syntax = bytearray(packed + deflater.flush()), DEFLATED
    elif kind == 4:  # a UID that looks like a path
        uid = rng.choice([b"../../../etc/passwd", b"/tmp/evil", b"..", b"1.2/3", b"\0\0", b"a" * 64, b"con"])
    elif kind == 5:  # wrong VRs
        for _ in range(20):
            where = good.find(rng.choice([b"UI", b"LO", b"PN", b"DA", b"US", b"CS"]), rng.randrange(600))
            if where > 0:
                good[where : where + 2] = rng.choice([b"SQ", b"FD", b"AT", b"UN", b"XX", b"OB", b"UR"])
    elif kind == 6:  # odd character sets
        charset = rng.choice(["ISO 2022 IR 87\\ISO 2022 IR 159", "\u00e9\u00e8", "GB18030", "\\\\\\"])
        good = bytearray(dataset_of(number, SpecificCharacterSet=charset, PatientName=rng.randbytes(40)))
    elif kind == 7:  # numbers beyond all bounds
        huge = {"Rows": 65535, "Columns": 65535, "BitsAllocated": rng.choice([0, 1, 7, 64, 65535])}
        good = bytearray(dataset_of(number, **{name: huge[name] for name in rng.sample(sorted(huge), 2)}))
    elif kind == 8:  # random bytes anywhere
        for _ in range(rng.randint(1, 60)):
            good[rng.randrange(len(good))] = rng.randrange(256)
    elif kind == 9:  # nothing but random bytes
        good = bytearray(rng.randbytes(rng.randrange(1, 5000)))
    else:  # another class, study or instance than the command says
        good = bytearray(dataset_of(number, StudyInstanceUID=rng.choice(["", "../x", "1" * 70])))
    return bytes(good), uid, syntax


def send_bytes(port: int, raw: bytes) -> None:
    """Send bytes in place of an association, or within one."""
    try:
        with RawAssociation(port) as association:
            association.socket.settimeout(0.05)
            association.socket.sendall(raw)
            association.socket.recv(1000)
    except OSError:
        pass


def fuzzed_pdu(rng: random.Random) -> bytes:
    """Return a damaged PDU."""
    kind = rng.randrange(6)
    if kind == 0:
        return pdu(rng.randrange(256), rng.randbytes(rng.randrange(200)))
    if kind == 1:  # a length of gigabytes
        return pdu(0x04, b"\0" * 20, rng.choice([2**32 - 1, 2**31, 200_000_000, 140_000]))
    if kind == 2:  # a value longer than its PDU
        return pdu(0x04, struct.pack(">LBB", rng.choice([0, 1, 2**32 - 1, 5000]), 1, 3) + rng.randbytes(60))
    if kind == 3:  # a context that was not agreed on
        return pdu(0x04, struct.pack(">LBB", 62, rng.randrange(256), rng.randrange(256)) + rng.randbytes(60))
    if kind == 4:  # a command without end
        part = struct.pack(">LBB", 10_002, 1, 1) + b"\0" * 10_000
        return pdu(0x04, part) * 3
    return rng.randbytes(rng.randrange(1, 300))


class MemoryWatch:
    """The most memory that a process and all that come from it had together, in bytes."""

    def __init__(self, pid: int) -> None:
        self._pid, self.most = pid, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            self.most = max(self.most, memory_of(self._pid))


def memory_of(parent: int) -> int:
    """Return the memory of a process and all that come from it, in bytes; shared pages count once."""
    parents = {int(path.parent.name): _parent(path) for path in Path("/proc").glob("[0-9]*/stat")}
    tree = [parent]
    for one in tree:
        tree += [pid for pid, above in parents.items() if above == one]
    return sum(map(_resident, tree))


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def test_memory_is_that_of_all_processes():
    child = "b = bytearray(60_000_000); print(flush=True); input()"
    parent = (
        "import subprocess, sys\nb = bytearray(60_000_000)\n"
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", parent], **pipes) as process:
        process.stdout.readline()
        with MemoryWatch(process.pid) as watch:
            until(lambda: watch.most > 120_000_000, 20)
        assert watch.most < 200_000_000
        process.communicate(b"\n")


def all_ended(status: NodeStatus) -> bool:
    """Return whether nothing waits; what could not be reported, of an image that is too large, is listed."""
    left = {state: count for state, count in status.instances.items() if state not in ALL_ENDED}
    failed = status.results.get("failed", 0)
    return left == ({"composed": failed} if failed else {})


@pytest.mark.parametrize("share", [1.0, 0.1], ids=["received and predicted", "reported as well"])
def test_fuzzed_datasets_and_pdus(tmp_path, tiny, size, record, share):
    """All of them are received and predicted; a tenth is reported as well, which takes longer."""
    rng, count = random.Random(size.seed + round(10 * share)), round(size.datasets * share)
    accepted = rejected = 0
    outside = set(tmp_path.rglob("*"))
    with Archive() as archive:
        config = write_config(
            tmp_path,
            tiny.path,
            mode="live",
            destinations=[archive.destination()],
            process={"workers": 1, "seconds": 4, "memory_mb": 512},
            results={"rejections": "both" if share < 1 else "none"},
            log_level="debug",
        )
        with running_node(config) as node, MemoryWatch(node.process.pid) as watch:
            pid = node.process.pid
            for number in range(10_000, 10_000 + count):
                if number % 3 == 0:
                    send_bytes(node.port, fuzzed_pdu(rng))
                dataset, uid, syntax = fuzzed(rng, number)
                with RawAssociation(node.port, syntax) as association:
                    if association.store(dataset, uid) == 0:
                        accepted += 1
                    else:
                        rejected += 1
            assert send(node.port, [radiograph(1)]) == [0]
            until(lambda: archive.sources().get("1.2.826.0.1.3680043.10.5.1.1.1") == 1, 3600, every=0.5)
            until(lambda: all_ended(node.status()), 3600, every=1)
            assert node.process.pid == pid
            assert node.process.poll() is None
            status = node.status()
            assert not list((node.folder / "incoming").iterdir())
        found = set(tmp_path.rglob("*")) - outside
    allowed = (tmp_path / "node", tmp_path / "node.yaml")
    assert not [path for path in found if not any(path.is_relative_to(one) for one in allowed)]
    for path in (tmp_path / "node" / "images").rglob("*.dcm"):
        assert set(path.stem) <= set("0123456789abcdef")
    assert 100_000_000 < watch.most < GIGABYTE
    record(
        "fuzz",
        datasets=count,
        reported=share < 1,
        accepted=accepted,
        rejected=rejected,
        instances=status.instances,
        most_memory_mb=round(watch.most / 1e6),
    )


def test_many_associations_and_bare_connections(tmp_path, tiny, size, record):
    """Memory does not grow with their number; silent connections are closed, and others get through."""
    with running_node(
        write_config(tmp_path, tiny.path, limits={"idle_seconds": 2, "min_free_mb": 0, "max_connections": 40})
    ) as node:
        import socket

        def use(count: int) -> None:
            for number in range(count):
                if number % 4 == 0:
                    socket.create_connection(("127.0.0.1", node.port)).close()
                else:
                    with RawAssociation(node.port) as association:
                        assert association.accepted, association.response
                        if number % 4 == 1:
                            association.socket.sendall(pdu(0x05, bytes(4)))
                            assert association.read()[:1] == b"\x06"

        def resident() -> int:
            lines = Path(f"/proc/{node.process.pid}/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

        def is_quiet() -> bool:
            return node.metrics()["pneumoscope_node_associations_open"] == 0

        use(size.associations // 4)
        until(is_quiet, 20)
        before = resident()
        use(size.associations)
        silent = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(30)]
        assert send(node.port, [radiograph(1)]) == [0]
        time.sleep(3)
        for one in silent:
            one.settimeout(5)
            assert one.recv(1) == b"", "closed"
            one.close()
        until(is_quiet, 20)
        after = resident()
        threads = len(list(Path(f"/proc/{node.process.pid}/task").iterdir()))
    record("soak", associations=size.associations, before_kb=before, after_kb=after, threads=threads)
    assert threads < 40
    # Per association less than 10 kB, and an allowance for what the allocator keeps.
    assert after - before < 10 * size.associations + 20_000
