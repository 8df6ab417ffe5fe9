"""Sending: what is asked, sent, tried again and given up, with a sender that does what a test says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dicom_peers import until
from pneumoscope.errors import DataError
from pneumoscope.serve.dicom.config import DestinationConfig, RetryConfig
from pneumoscope.serve.dicom.contracts import Delivery, Outcome
from pneumoscope.serve.dicom.courier import Courier
from pneumoscope.serve.dicom.journal import Journal, now
from pneumoscope.serve.dicom.maintenance import retry
from pneumoscope.serve.dicom.outbox import Outbox

QUICK = RetryConfig(first_seconds=0.05, longest_seconds=0.2, tries=3, settle_seconds=0.05)


class FakeSender:
    """A destination in memory."""

    def __init__(self) -> None:
        self.has: set[str] = set()
        self.calls: list[tuple[str, list[str]]] = []
        self.outcomes: dict[str, list[Outcome]] = {}
        self.down = False
        self.no_query = False
        self.closed = 0
        self.broken: set[str] = set()

    def present(self, objects):
        self.calls.append(("ask", [one.sop_instance for one in objects]))
        return None if self.down or self.no_query else frozenset(self.has)

    def send(self, objects):
        self.calls.append(("send", [one.sop_instance for one in objects]))
        if self.broken & {one.sop_instance for one in objects}:
            raise AttributeError("Zauberbaum")
        deliveries = []
        for one in objects:
            planned = self.outcomes.get(one.sop_instance, [])
            outcome = Outcome.RETRY if self.down else planned.pop(0) if planned else Outcome.SENT
            if outcome is Outcome.SENT:
                self.has.add(one.sop_instance)
            deliveries.append(Delivery(one.sop_instance, outcome, "status A700"))
        return deliveries

    def echo(self):
        return "no association" if self.down else ""

    def close(self):
        self.closed += 1


@pytest.fixture
def sender():
    return FakeSender()


@pytest.fixture
def start(tmp_path, journal, sender):
    """Return a function that starts a courier; it is stopped at the end."""
    started: list[Courier] = []

    def begin(**settings) -> Courier:
        destination = DestinationConfig(name="pacs", host="x", **settings)
        outbox = Outbox(journal, tmp_path, "pacs", 3600)
        courier = Courier(destination, QUICK, outbox, lambda: sender)
        started.append(courier)
        courier.start()
        return courier

    yield begin
    for courier in started:
        courier.stop(10)


def add(
    journal: Journal, folder: Path, uid: str, *, state: str = "pending", priority: int = 0, file: bool = True
):
    if file:
        (folder / uid).write_bytes(b"x")
    with journal.change() as connection:
        result = connection.execute(
            "INSERT INTO results (study_uid, made, revision, bundle, state, priority, destinations,"
            " first_received, last_received) VALUES ('1', '', 0, 'b', 'built', ?, '[]', ?, ?)",
            (priority, now(), now()),
        ).lastrowid
        number = connection.execute(
            "INSERT INTO objects (result, sop_instance, sop_class, series_uid, study_uid, file)"
            " VALUES (?, ?, '1', '1', '1', ?)",
            (result, uid, uid),
        ).lastrowid
        connection.execute(
            "INSERT INTO deliveries (object, destination, state, changed) VALUES (?, 'pacs', ?, 0)",
            (number, state),
        )


def states(journal: Journal) -> dict[str, str]:
    return dict(
        journal.rows("SELECT o.sop_instance, d.state FROM deliveries d JOIN objects o ON o.id = d.object")
    )


def test_new_objects_are_sent_without_asking_the_first_ones_first(tmp_path, journal, sender, start):
    add(journal, tmp_path, "a")
    add(journal, tmp_path, "b", priority=2)
    start(batch=1)
    until(lambda: states(journal) == {"a": "sent", "b": "sent"}, 10)
    assert sender.calls == [("send", ["b"]), ("send", ["a"])]


def test_what_may_have_arrived_is_asked_for(tmp_path, journal, sender, start):
    """One has arrived before the crash, the other has not."""
    sender.has.add("a")
    add(journal, tmp_path, "a", state="sending")
    add(journal, tmp_path, "b", state="sending")
    start()
    until(lambda: states(journal) == {"a": "sent", "b": "sent"}, 10)
    assert sender.calls == [("ask", ["a", "b"]), ("send", ["b"])]


def test_a_destination_without_a_query_gets_it_again(tmp_path, journal, sender, start):
    add(journal, tmp_path, "a", state="sending")
    start(query=False)
    until(lambda: states(journal) == {"a": "sent"}, 10)
    assert sender.calls == [("send", ["a"])]


def test_a_query_that_fails_is_not_taken_for_a_no(tmp_path, journal, sender, start):
    """The object is given up after some tries; others are sent at once, and the node tells what to set."""
    sender.no_query = True
    add(journal, tmp_path, "a", state="sending")
    add(journal, tmp_path, "b")
    courier = start()
    until(lambda: states(journal) == {"a": "dead", "b": "sent"}, 10)
    assert sender.calls.count(("ask", ["a"])) == 3 and ("send", ["a"]) not in sender.calls
    assert courier.reachable
    sender.no_query = False
    retry(journal, dead=True)
    until(lambda: states(journal)["a"] == "sent", 10)


def test_an_object_that_fails_while_others_do_not_is_given_up(tmp_path, journal, sender, start):
    sender.outcomes = {"a": [Outcome.RETRY] * 3, "b": [Outcome.FAILED], "c": [Outcome.RETRY]}
    for uid in "abc":
        add(journal, tmp_path, uid)
    start()
    until(lambda: states(journal) == {"a": "dead", "b": "dead", "c": "sent"}, 20)
    tries = dict(
        journal.rows("SELECT o.sop_instance, d.tries FROM deliveries d JOIN objects o ON o.id = d.object")
    )
    assert tries == {"a": 3, "b": 1, "c": 1}


def test_what_a_command_lets_be_sent_again_need_not_wait(tmp_path, journal, sender):
    """The pause after the last failure is over with the failure."""
    settings = RetryConfig(first_seconds=3600, longest_seconds=3600, tries=1, settle_seconds=0)
    outbox = Outbox(journal, tmp_path, "pacs", 3600)
    courier = Courier(DestinationConfig(name="pacs", host="x"), settings, outbox, lambda: sender)
    sender.outcomes = {"a": [Outcome.RETRY]}
    add(journal, tmp_path, "a")
    courier.start()
    try:
        until(lambda: states(journal) == {"a": "dead"}, 10)
        retry(journal, dead=True)
        courier.wake()
        until(lambda: states(journal) == {"a": "sent"}, 5)
    finally:
        courier.stop(10)


def test_a_destination_that_is_down_is_not_the_fault_of_an_object(tmp_path, journal, sender, start):
    sender.down = True
    add(journal, tmp_path, "a")
    courier = start()
    until(lambda: len(sender.calls) > 5, 20)
    assert states(journal) == {"a": "sending"}
    assert journal.value("SELECT tries FROM deliveries") == 0
    assert not courier.reachable
    sender.down = False
    until(lambda: states(journal) == {"a": "sent"}, 20)
    assert courier.reachable


def test_an_object_whose_file_is_missing(tmp_path, journal, sender, start):
    add(journal, tmp_path, "a", file=False)
    add(journal, tmp_path, "b")
    start()
    until(lambda: states(journal) == {"a": "dead", "b": "sent"}, 10)


def test_an_object_larger_than_any_result_is_not_read(tmp_path, journal, sender, start):
    add(journal, tmp_path, "a")
    add(journal, tmp_path, "b")
    file = journal.value("SELECT file FROM objects WHERE sop_instance = 'a'")
    os.truncate(tmp_path / file, 100_000_001)
    start()
    until(lambda: states(journal) == {"a": "dead", "b": "sent"}, 10)
    assert "more than 100 MB" in journal.value("SELECT detail FROM deliveries WHERE state = 'dead'")


def test_a_stop_sends_what_is_due_and_closes(tmp_path, journal, sender, start):
    courier = start()
    for number in range(30):
        add(journal, tmp_path, f"o{number}")
    courier.stop(10)
    assert set(states(journal).values()) == {"sent"}
    assert sender.closed == 1


def test_a_sender_that_breaks_gives_up_the_object_and_goes_on(tmp_path, journal, sender, start):
    """The others of its batch count one failed try, and are then sent without it."""
    sender.broken = {"b"}
    for uid in "abc":
        add(journal, tmp_path, uid)
    courier = start()
    until(lambda: states(journal) == {"a": "sent", "b": "dead", "c": "sent"}, 20)
    found = {row[0]: row[1:] for row in journal.rows(
        "SELECT o.sop_instance, d.tries, d.detail FROM deliveries d JOIN objects o ON o.id = d.object"
    )}  # fmt: skip
    assert [found[uid][0] for uid in "abc"] == [1, 3, 1]
    assert found["b"][1] == "AttributeError"
    assert courier.failure is None and sender.closed == 3


def test_a_sender_that_cannot_be_opened_is_out_of_reach(tmp_path, journal, sender):
    opened = []

    def open_it():
        opened.append(1)
        if len(opened) < 3:
            raise DataError("token: cannot be read")
        return sender

    outbox = Outbox(journal, tmp_path, "pacs", 3600)
    courier = Courier(DestinationConfig(name="pacs", host="x"), QUICK, outbox, open_it)
    add(journal, tmp_path, "a")
    courier.start()
    try:
        until(lambda: states(journal) == {"a": "sent"}, 10)
    finally:
        courier.stop(10)
    assert len(opened) == 3 and courier.failure is None


def test_objects_whose_turn_did_not_come_count_no_failed_try(tmp_path, journal, sender, start):
    sender.outcomes = {"a": [Outcome.RETRY], "b": [Outcome.NOT_TRIED] * 5}
    add(journal, tmp_path, "a")
    add(journal, tmp_path, "b")
    start()
    until(lambda: states(journal) == {"a": "sent", "b": "sent"}, 20)
    assert journal.rows("SELECT tries FROM deliveries ORDER BY id")[1][0] == 0
    assert ("ask", ["b"]) not in sender.calls, "it cannot have arrived"


def test_what_is_withdrawn_meanwhile_is_not_sent(tmp_path, journal):
    outbox = Outbox(journal, tmp_path, "pacs", 3600)
    add(journal, tmp_path, "a")
    add(journal, tmp_path, "b")
    due = outbox.due([], 10)
    with journal.change() as connection:
        connection.execute("UPDATE deliveries SET state = 'withdrawn' WHERE id = ?", (due[0].id,))
    assert outbox.sending(due) == due[1:]
    outbox.failed(due[0], "late", dead=True)
    outbox.sent(due)
    assert states(journal) == {"a": "withdrawn", "b": "sent"}
    assert journal.value("SELECT count(*) FROM audit WHERE event = 'not delivered'") == 0
