"""The priority that an image has before its header is read."""

from __future__ import annotations

import pytest

from pneumoscope.serve.dicom.config import RuleConfig
from pneumoscope.serve.dicom.intake import Intake, Origin
from pneumoscope.serve.dicom.journal import Journal
from pneumoscope.serve.dicom.queue import Queue
from pneumoscope.serve.dicom.routing import priority_on_arrival
from pneumoscope.serve.dicom.store import Store, file_head

DX = "1.2.840.10008.5.1.4.1.1.1.1"
EMERGENCY = RuleConfig(calling_aet=("ER*",), priority="urgent")


@pytest.mark.parametrize(
    ("caller", "rules", "priority"),
    [
        ("ER1", [], 0),
        ("ER1", [EMERGENCY], 2),
        ("WARD", [EMERGENCY], 0),
        ("WARD", [EMERGENCY, RuleConfig(priority="high")], 1),
        ("ER1", [RuleConfig(calling_aet=("ER1",), priority="high"), EMERGENCY], 1),
        # A rule before it may fit as well; what is not processed needs no priority.
        ("ER1", [RuleConfig(ages=(None, 18)), EMERGENCY], 0),
        ("ER1", [RuleConfig(modality=("SC",), process=False), EMERGENCY], 2),
        ("ER1", [RuleConfig(calling_aet=("CT*",), modality=("SC",)), EMERGENCY], 2),
        ("ER1", [RuleConfig(view=("PA",), priority="urgent")], 0),
        ("ER1", [RuleConfig(calling_aet=("ER1",), process=False)], 0),
    ],
)
def test_the_priority_on_arrival(caller, rules, priority):
    assert priority_on_arrival(caller, rules) == priority


def test_an_urgent_sender_is_processed_first(tmp_path):
    journal, store = Journal(Store(tmp_path).folder, create=True), Store(tmp_path)
    intake = Intake(store, journal, priority_of=lambda caller: priority_on_arrival(caller, [EMERGENCY]))
    try:
        for number, caller in enumerate(["WARD", "ER1"]):
            received = store.receive(file_head(DX, f"1.2.{number}", "1.2.840.10008.1.2.1", caller), 100)
            received.write(b"x")
            intake.accept(received, DX, f"1.2.{number}", Origin("store", caller, "1"))
        image = Queue(journal, 3600).next_image([])
        assert image is not None
        assert image.caller == "ER1"
    finally:
        journal.close()
