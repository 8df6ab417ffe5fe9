"""Reports of storage commitment that do not arrive: each counts for itself."""

from __future__ import annotations

import json

import pytest

from dicom_peers import free_port, until
from pneumoscope.serve.dicom import commitment
from pneumoscope.serve.dicom.commitment import Committer
from pneumoscope.serve.dicom.config import CallerConfig, NodeConfig, TlsClientConfig
from pneumoscope.serve.dicom.journal import Journal, now


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
    committer = Committer(NodeConfig(folder=tmp_path, callers=callers), journal)
    committer.start()
    try:
        until(lambda: journal.value("SELECT count(*) FROM commitments WHERE state = 'dead'") == 4, 30)
    finally:
        committer.stop(10)
    tries = {row[0]: row[1] for row in journal.rows("SELECT caller, tries FROM commitments")}
    assert tries == {"BADTLS": 2, "NOHOST": 2, "NOPORT": 1, "DOWN": 2}
