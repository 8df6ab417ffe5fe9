"""Storage commitment: what is reported, and reports that do not arrive."""

from __future__ import annotations

import json
import time

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    CTImageStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from dicom_modality import DX, radiograph, send
from dicom_peers import free_port, until
from pneumoscope.serve.dicom import commitment
from pneumoscope.serve.dicom.commitment import Committer, committed
from pneumoscope.serve.dicom.config import CallerConfig, NodeConfig, TlsClientConfig
from pneumoscope.serve.dicom.journal import Journal, now
from pneumoscope.serve.dicom.outgoing import OutgoingAE
from receiving import receiving, uid_of


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path, create=True)
    yield journal
    journal.close()


def request(journal: Journal, caller: str, host: str = "127.0.0.1") -> None:
    with journal.change() as connection:
        connection.execute(
            "INSERT INTO commitments (transaction_uid, caller, host, items, requested, state)"
            " VALUES (?, ?, ?, ?, ?, 'pending')",
            (f"1.2.{len(caller)}", caller, host, json.dumps([["1.2", "1.3"]]), now()),
        )


def test_an_error_of_one_caller_does_not_hold_up_the_next(tmp_path, journal, monkeypatch):
    monkeypatch.setattr(commitment, "MOST_TRIES", 2)
    monkeypatch.setattr(commitment, "LOOK_AGAIN", 0.05)
    monkeypatch.setattr(commitment, "LONGEST_PAUSE", 0.05)
    missing = TlsClientConfig(ca=tmp_path / "absent.pem")
    callers = (
        CallerConfig(aet="BADTLS", port=free_port(), tls=missing),
        CallerConfig(aet="NOHOST", port=free_port()),
        CallerConfig(aet="NOPORT"),
        CallerConfig(aet="DOWN", port=free_port()),
    )
    for caller in callers:
        request(journal, caller.aet, "no-such-host.invalid" if caller.aet == "NOHOST" else "127.0.0.1")
    committer = Committer(NodeConfig(folder=tmp_path / "node", callers=callers), journal)
    committer.start()
    try:
        until(lambda: journal.value("SELECT count(*) FROM commitments WHERE state = 'dead'") == 4, 30)
    finally:
        committer.stop(10)
    tries = {row[0]: row[1] for row in journal.rows("SELECT caller, tries FROM commitments")}
    assert tries == {"BADTLS": 2, "NOHOST": 2, "NOPORT": 1, "DOWN": 2}


def test_a_node_reports_what_it_has_committed_to(tmp_path):
    """The report comes on an association of its own, with what is missing and why."""
    reports: list[Dataset] = []
    port = free_port()

    def report(event: evt.Event) -> tuple[int, None]:
        reports.append(event.event_information)
        reports[-1].kind = event.event_type
        return 0x0000, None

    modality = AE(ae_title="CR1")
    modality.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    callers = (CallerConfig(aet="CR1", port=port), CallerConfig(aet="CR2"))
    with receiving(tmp_path, callers=callers) as (_, node_port, journal):
        assert send(node_port, [radiograph(1)], aet="CR1") == [0]
        request = Dataset()
        request.TransactionUID = "1.2.3.4"
        request.ReferencedSOPSequence = []
        for sop_class, uid in ((DX, uid_of(1).decode()), (DX, "1.2.9"), (CTImageStorage, uid_of(1).decode())):
            one = Dataset()
            one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = sop_class, uid
            request.ReferencedSOPSequence.append(one)

        def ask(aet: str) -> int:
            ae = OutgoingAE(aet, 10)
            ae.add_requested_context(StorageCommitmentPushModel)
            association = ae.associate("127.0.0.1", node_port, ae_title="PNEUMOSCOPE")
            status, _ = association.send_n_action(
                request, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            )
            association.release()
            return int(status.Status)

        assert ask("CR1") == 0
        assert ask("CR2") == 0x0110, "nobody would hear the report"
        assert committed(journal, tmp_path / "node", [(DX, uid_of(1).decode())]) == [0]
        committer = Committer(NodeConfig(folder=tmp_path / "node", callers=callers), journal)
        committer.start()
        server = None
        try:
            time.sleep(0.5)  # the modality does not listen yet
            server = modality.start_server(
                ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, report)]
            )
            until(lambda: committer.wake() or reports, 20)
            until(lambda: journal.value("SELECT state FROM commitments") == "sent", 10)
        finally:
            committer.stop(10)
            if server is not None:
                server.shutdown()
    (found,) = reports
    assert found.kind == 2
    assert found.TransactionUID == "1.2.3.4"
    assert [one.ReferencedSOPInstanceUID for one in found.ReferencedSOPSequence] == [uid_of(1).decode()]
    failed = {one.ReferencedSOPInstanceUID: one.FailureReason for one in found.FailedSOPSequence}
    assert failed == {"1.2.9": 0x0112, uid_of(1).decode(): 0x0119}
