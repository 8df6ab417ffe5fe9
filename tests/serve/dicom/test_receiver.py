"""The receiver: what it accepts, what it rejects, and what it does not wait for."""

from __future__ import annotations

import io
import json
import socket
import struct
import subprocess
import threading
import time
from contextlib import suppress

import pydicom
import pytest
from pynetdicom.sop_class import (
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    Verification,
)

from dicom_modality import radiograph, send
from dicom_peers import until
from dicom_raw import RawAssociation, pdu
from dicom_tools import require_tools, tool
from pneumoscope.image.frames import TRANSFER_SYNTAXES
from pneumoscope.serve.dicom.config import CallerConfig, Limits
from pneumoscope.serve.dicom.config_types import is_in
from pneumoscope.serve.dicom.dimse import _Dul
from pneumoscope.serve.dicom.outgoing import OutgoingAE
from pneumoscope.serve.dicom.scp import STORAGE_CLASSES, transfer_syntaxes
from pneumoscope.serve.dicom.store import file_head
from receiving import dataset_of, instances, receiving, uid_of

DX = "1.2.840.10008.5.1.4.1.1.1.1"
OUT_OF_RESOURCES = 0xA700


def test_what_is_stored_is_what_was_sent(tmp_path):
    with receiving(tmp_path) as (_, port, journal):
        assert send(port, [radiograph(1)]) == [0]
        (row,) = journal.rows("SELECT * FROM instances")
    path = tmp_path / "node" / row["file"]
    stored, sent = pydicom.dcmread(path), pydicom.dcmread(io.BytesIO(radiograph(1)))
    assert stored == sent
    assert stored.file_meta.MediaStorageSOPInstanceUID == sent.SOPInstanceUID
    assert "1.2.826" not in row["file"], "a UID is no path"
    assert path.stat().st_mode & 0o077 == 0 or path.parent.parent.stat().st_mode & 0o077 == 0
    assert row["caller"] == "MODALITY"


def test_every_transfer_syntax_that_can_be_read_is_accepted_uncompressed_first():
    assert set(transfer_syntaxes()) == set(TRANSFER_SYNTAXES)
    assert transfer_syntaxes()[:2] == ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]
    assert len(STORAGE_CLASSES) == 4


def test_classes_that_are_not_processed_are_rejected_at_negotiation(tmp_path):
    with receiving(tmp_path) as (_, port, _journal):
        ae = OutgoingAE("A", 10)
        for sop_class in (CTImageStorage, DigitalXRayImageStorageForPresentation, Verification):
            ae.add_requested_context(sop_class)
        association = ae.associate("127.0.0.1", port, ae_title="PNEUMOSCOPE")
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        assert association.send_c_echo().Status == 0
        association.release()
    assert accepted == {DigitalXRayImageStorageForPresentation, Verification}


@pytest.mark.parametrize(
    ("calling", "called", "hosts", "why"),
    [
        (b"CR1", b"PNEUMOSCOPE", ("127.0.0.1",), ""),
        (b"CR1", b"PNEUMOSCOPE", ("10.1.1.1", "127.0.0.0/8"), ""),
        (b"CR1", b"PNEUMOSCOPE", ("::ffff:127.0.0.1",), ""),
        (b"CR2", b"PNEUMOSCOPE", ("127.0.0.1",), "not on the list of callers"),
        (b"CR1", b"OTHER", ("127.0.0.1",), "another called AE title"),
        (b"CR1", b"PNEUMOSCOPE", ("10.1.1.1", "::1", "127.1.0.0/16"), "not an address of this caller"),
        (b"CR1", b"PNEUMOSCOPE", (), ""),
    ],
)
def test_the_list_of_callers(tmp_path, calling, called, hosts, why):
    accepted = not why
    callers = (CallerConfig(aet="CR1", hosts=hosts),)
    with receiving(tmp_path, callers=callers) as (receiver, port, journal):
        with RawAssociation(port, calling=calling, called=called) as association:
            assert association.accepted is accepted
            assert association.response[:1] in (b"\x02", b"\x03")
            # The rejection is sent first, then noted; a second one within a minute is counted only.
            RawAssociation(port, calling=calling, called=called).close()
        until(lambda: receiver.counts["rejected"] == 2 * (not accepted))
        noted = "SELECT detail FROM audit WHERE event = 'rejected'"
        until(lambda: [json.loads(row[0])["why"] for row in journal.rows(noted)] == [why] * (not accepted))


def test_an_address_is_in_a_network_as_ipv6_writes_it_too():
    """A node that listens on :: sees the peers of IPv4 as ::ffff:10.0.0.1."""
    (known,) = CallerConfig(aet="A", hosts=("10.0.0.0/24",)).hosts
    assert is_in("::ffff:10.0.0.7", [known]) and is_in("10.0.0.7", [known])
    assert not is_in("::ffff:10.0.1.7", [known]) and not is_in("fe80::1", [known])
    assert not is_in("", [known]), "a peer whose address is not known"
    (known,) = CallerConfig(aet="A", hosts=("::ffff:10.0.0.0/120",)).hosts
    assert is_in("10.0.0.7", [known]) and not is_in("10.0.1.7", [known])
    (known,) = CallerConfig(aet="A", hosts=("fe80::/64",)).hosts
    assert is_in("fe80::1%eth0", [known])


def test_too_many_associations(tmp_path):
    with receiving(tmp_path, limits=Limits(max_associations=2)) as (_, port, _journal):
        with RawAssociation(port) as first, RawAssociation(port) as second, RawAssociation(port) as third:
            assert (first.accepted, second.accepted, third.accepted) == (True, True, False)
        until(lambda: send(port, [radiograph(1)]) == [0], 10)


def test_too_many_connections(tmp_path):
    with receiving(tmp_path, limits=Limits(max_connections=3, idle_seconds=1)) as (receiver, port, _journal):
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
        silent[-1].settimeout(5)
        assert silent[-1].recv(1) == b""
        assert receiver.rejected_connections >= 2
        until(lambda: send(port, [radiograph(1)]) == [0], 10)
        for one in silent:
            one.close()


@pytest.mark.parametrize("thread", [threading.Thread, _Dul])
def test_a_connection_for_which_no_thread_can_be_started_is_closed_and_forgotten(
    tmp_path, monkeypatch, thread
):
    with receiving(tmp_path, limits=Limits(max_connections=2)) as (receiver, port, _journal):

        def fails(_self):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as without:
            without.setattr(thread, "start", fails)
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", port), timeout=5) as one, suppress(OSError):
                    one.sendall(b"x")
                    assert one.recv(1) == b""
        until(lambda: not receiver.open_links, 10)
        until(lambda: send(port, [radiograph(1)]) == [0], 10)


def test_a_dataset_that_is_too_large_is_not_stored_and_the_association_goes_on(tmp_path):
    with receiving(tmp_path, limits=Limits(max_dataset_mb=1)) as (_, port, journal):
        with RawAssociation(port) as association:
            assert association.store(bytes(1_100_000), b"1.2.3") == OUT_OF_RESOURCES
            assert association.store(dataset_of(2), uid_of(2)) == 0
        assert instances(journal) == [uid_of(2).decode()]
        assert not list((tmp_path / "node" / "incoming").iterdir())


@pytest.mark.parametrize(
    "sent",
    [
        pdu(0x04, b"", 2**32 - 1),
        pdu(0x04, b"", 200_000),
        pdu(0x04, struct.pack(">LBB", 10_002, 1, 1) + bytes(10_000)) * 500,
        pdu(0x09, b"abc"),
        pdu(0x04, struct.pack(">LBB", 4, 77, 3) + b"ab"),
    ],
    ids=["four gigabytes", "longer than agreed", "a command without end", "no PDU", "no context"],
)
def test_a_peer_beyond_the_bounds_is_cut_off(tmp_path, sent):
    with receiving(tmp_path) as (_, port, _journal):
        with RawAssociation(port) as association:
            with suppress(OSError):
                association.socket.sendall(sent)
            assert association.read()[:1] in (b"\x07", b""), "an abort, if anything"
        assert send(port, [radiograph(1)]) == [0]


def test_requests_without_waiting_for_responses_are_cut_off(tmp_path):
    """No asynchronous operations window is agreed on."""
    with receiving(tmp_path) as (_, port, _journal), RawAssociation(port) as association:
        try:
            for number in range(300):
                association.socket.sendall(association.command(b"1.2.%d" % number, number=number))
                association.socket.sendall(association.data(b"x" * 1000, last=True))
        except OSError:
            pass
        statuses = []
        while (status := association.status()) is not None:
            statuses.append(status)
    assert len(statuses) < 300


@pytest.mark.filterwarnings(r"ignore:(Invalid value for VR UI|The value length \(65\)):UserWarning")
@pytest.mark.parametrize("uid", [b"../../etc/passwd", b"1.2/3", b"", b"a" * 64, b"1" * 65])
def test_what_is_no_uid_is_not_stored(tmp_path, uid):
    with receiving(tmp_path) as (_, port, journal):
        with RawAssociation(port) as association:
            assert association.store(dataset_of(1), uid) != 0
            # One without a UID ends the association; over a longer one pynetdicom ends it.
            stored = int(0 < len(uid) < 65)
            if stored:
                assert association.store(dataset_of(2), uid_of(2)) == 0, "the association goes on"
            else:
                assert association.read() == b"", "at once"
        assert len(instances(journal)) == stored
        assert send(port, [radiograph(1)]) == [0]
        assert len(list((tmp_path / "node").rglob("*.dcm"))) == stored + 1


def test_an_association_that_is_idle_is_ended(tmp_path):
    with (
        receiving(tmp_path, limits=Limits(idle_seconds=1)) as (_, port, _journal),
        RawAssociation(port, timeout=10) as association,
    ):
        assert association.store(dataset_of(1), uid_of(1)) == 0
        assert association.read()[:1] == b"\x07", "an abort"


def test_another_class_than_negotiated_is_not_stored(tmp_path):
    with receiving(tmp_path) as (_, port, journal):
        with RawAssociation(port) as association:
            other = b"1.2.840.10008.5.1.4.1.1.1"
            assert association.store(dataset_of(1), uid_of(1), sop_class=other) == 0xA900
            assert association.store(dataset_of(2), uid_of(2)) == 0
        assert instances(journal) == [uid_of(2).decode()]
        assert not list((tmp_path / "node" / "incoming").iterdir())


def test_an_association_that_ends_within_a_dataset_leaves_nothing(tmp_path):
    with receiving(tmp_path, limits=Limits(idle_seconds=1)) as (receiver, port, journal):
        for silence in (0.0, 3.0):
            with RawAssociation(port) as association:
                association.socket.sendall(association.command(b"1.2.3"))
                association.socket.sendall(association.data(bytes(1000), last=False))
                time.sleep(silence)
        until(lambda: not receiver.open_links, 10)
        assert not list((tmp_path / "node" / "incoming").iterdir())
        assert instances(journal) == []


def test_a_pdu_that_arrives_too_slowly(tmp_path):
    with receiving(tmp_path, limits=Limits(idle_seconds=1)) as (receiver, port, _journal):
        with RawAssociation(port) as association:
            raw = association.command(b"1.2.3")
            began = time.monotonic()
            try:
                for byte in raw:
                    association.socket.sendall(bytes([byte]))
                    time.sleep(0.1)
            except OSError:
                pass
            assert time.monotonic() - began < 5
        until(lambda: not receiver.open_links, 10)


def test_several_associations_at_once(tmp_path):
    with receiving(tmp_path) as (_, port, journal):
        results: list[list[int | None]] = [[] for _ in range(4)]

        def push(index: int) -> None:
            results[index] = send(port, [radiograph(10 * index + number) for number in range(5)])

        threads = [threading.Thread(target=push, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [[0] * 5] * 4
        assert len(instances(journal)) == 20


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI:UserWarning")
def test_dcmtk_sends_in_every_transfer_syntax(tmp_path, dicom_files):
    """The real files, as they are: nothing is converted."""
    require_tools("storescu")
    options = {
        "Little Endian Implicit": "-xi", "Explicit VR Little Endian": "-xe", "JPEG Lossless": "-xs",
        "JPEG Extended": "-xx", "JPEG-LS Lossless": "-xt", "JPEG-LS Lossy": "-xu", "RLE": "-xr",
        "(Lossless Only)": "-xv", "JPEG 2000 Image Compression": "-xw",
    }  # fmt: skip
    sent, syntaxes = [], set()
    with receiving(tmp_path) as (_, port, journal):
        for path in dicom_files:
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            if header.get("SOPClassUID") not in STORAGE_CLASSES or not header.file_meta:
                continue
            name = header.file_meta.TransferSyntaxUID.name
            option = next(word for part, word in options.items() if part in name)
            command = [
                str(tool("storescu")),
                "-aec",
                "PNEUMOSCOPE",
                "-R",
                option,
                "127.0.0.1",
                str(port),
                str(path),
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, (path.name, done.stderr)
            sent.append(str(header.SOPInstanceUID))
            syntaxes.add(str(header.file_meta.TransferSyntaxUID))
            row = journal.row("SELECT file FROM instances ORDER BY id DESC LIMIT 1")
            stored = pydicom.dcmread(tmp_path / "node" / row["file"])
            assert stored.file_meta.TransferSyntaxUID == header.file_meta.TransferSyntaxUID
            assert stored.get("PixelData") == pydicom.dcmread(path).get("PixelData")
        assert sorted(instances(journal)) == sorted(set(sent))
    assert len(syntaxes) >= 7


def test_a_head_needs_uids():
    with pytest.raises(ValueError, match="not a UID"):
        file_head(DX, "../x", "1.2.840.10008.1.2.1")
