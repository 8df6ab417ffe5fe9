"""Retraction in the journal: only what was sent is told to anyone, and only once."""

from __future__ import annotations

import pytest

from pneumoscope.errors import DataError
from pneumoscope.serve.dicom import retracting
from pneumoscope.serve.dicom.config import NodeConfig
from pneumoscope.serve.dicom.contracts import OutgoingObject, ResultOptions
from pneumoscope.serve.dicom.header import encode
from pneumoscope.serve.dicom.journal import Journal
from pneumoscope.serve.dicom.node import _record_start as record_start
from pneumoscope.serve.dicom.outbox import Outbox, QueuedDelivery
from pneumoscope.serve.dicom.queue import BuiltObject, enter_objects
from pneumoscope.serve.dicom.results import build_results
from pneumoscope.serve.dicom.retracting import retract
from pneumoscope.serve.dicom.store import Store
from results_of_studies import STUDY, header, predicted, source, study


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "node")


@pytest.fixture
def journal(store):
    journal = Journal(store.folder, create=True)
    yield journal
    journal.close()


@pytest.fixture(scope="module")
def datasets(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return build_results(study(tiny, source(folder, header(), predicted())), ResultOptions())


@pytest.fixture
def reported(store, journal, datasets):
    """Return a function that enters a reported image, its deliveries in the given states by destination."""

    def enter(**states: str) -> None:
        objects = []
        for one in datasets:
            name = store.result_name(str(one.SOPInstanceUID))
            store.write(name, encode(one))
            uids = (one.SOPInstanceUID, one.SOPClassUID, one.SeriesInstanceUID, STUDY)
            objects.append(BuiltObject(*map(str, uids), file=name))
        with journal.change() as connection:
            connection.execute(
                "INSERT INTO instances (sop_instance, sop_class, sha256, bytes, file, via, caller, link,"
                " received, state) VALUES ('1.2.3', '1', '', 1, 'f', 'store', 'A', '1', 0, 'reported')"
            )
            connection.execute(
                "INSERT INTO results (study_uid, made, revision, bundle, state, destinations,"
                " first_received, last_received) VALUES (?, '', 0, 'b', 'built', '[]', 5, 5)",
                (STUDY,),
            )
            connection.execute("INSERT INTO result_images VALUES (1, 1)")
            enter_objects(connection, 1, objects, states)

    return enter


def deliveries(journal: Journal) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for row in journal.rows("SELECT destination, state, count(*) FROM deliveries GROUP BY 1, 2"):
        found.setdefault(row[0], {})[row[1]] = row[2]
    return found


def test_only_destinations_that_were_sent_something_are_told(store, journal, reported):
    reported(a="sent", b="sending", c="dead", d="pending", e="held", f="withdrawn")
    assert retract(journal, store, STUDY, "wrong side") == 1
    assert deliveries(journal) == {
        "a": {"sent": 2, "pending": 2},
        "b": {"withdrawn": 2, "pending": 2},
        "c": {"withdrawn": 2, "pending": 2},
        "d": {"withdrawn": 2},
        "e": {"withdrawn": 2},
        "f": {"withdrawn": 2},
    }


def test_a_result_is_not_sent_after_its_retraction(store, journal, reported):
    """Neither what waits to be sent again, nor what was on its way."""
    outbox = Outbox(journal, store.folder, "a", 3600)
    reported(a="sending")
    on_its_way = outbox.due([], 10)
    assert retract(journal, store, STUDY, "wrong side") == 1
    due = [one.object.sop_instance for one in outbox.due([], 10)]
    assert len(due) == 2 and not {one.object.sop_instance for one in on_its_way} & set(due)
    outbox.failed(on_its_way[0], "status A700", dead=False)
    outbox.sent(on_its_way[1:])
    assert deliveries(journal) == {"a": {"withdrawn": 2, "pending": 2}}
    told = journal.value("SELECT detail FROM audit WHERE event = 'sent'")
    assert on_its_way[1].object.sop_instance in told, "the audit log has it all the same"


def test_what_was_never_sent_is_withdrawn_and_leaves_no_file(store, journal, reported):
    reported(a="held")
    before = set(store.files())
    assert retract(journal, store, "1.2.3", "wrong side", again=True) == 1
    assert deliveries(journal) == {"a": {"withdrawn": 2}}
    assert set(store.files()) == before
    assert journal.value("SELECT state || revision FROM instances") == "received1"


def test_a_retraction_waits_through_mode_shadow(store, journal, reported, tiny):
    """The results of which the archive has none stay held; the one that it has is retracted after all."""
    reported(pacs="sent")
    retract(journal, store, STUDY, "wrong patient")
    record_start(journal, NodeConfig(folder=store.folder, mode="shadow"), tiny)
    states = journal.rows("SELECT state, count(*) FROM deliveries GROUP BY state ORDER BY state")
    assert dict(states) == {"pending": 2, "sent": 2}


def test_two_commands_retract_once(store, journal, reported, monkeypatch):
    reported(a="sent")
    build, nested = retracting.build_retraction, []

    def built(*words):
        if not nested:
            nested.append(True)
            assert retract(journal, store, STUDY, "the other command") == 1
        return build(*words)

    monkeypatch.setattr(retracting, "build_retraction", built)
    assert retract(journal, store, STUDY, "wrong side") == 0
    assert deliveries(journal) == {"a": {"sent": 2, "pending": 2}}


def test_purged_images_cannot_be_processed_again(store, journal, reported):
    reported(a="sent")
    with journal.change() as connection:
        connection.execute("UPDATE instances SET state = 'purged'")
    before = set(store.files())
    with pytest.raises(
        DataError, match="images were purged, so they cannot be processed again; omit --again"
    ):
        retract(journal, store, STUDY, "wrong side", again=True)
    assert deliveries(journal) == {"a": {"sent": 2}}
    assert set(store.files()) == before
    assert retract(journal, store, STUDY, "wrong side") == 1


def test_a_retraction_that_arrives_is_no_result(store, journal, reported, tmp_path):
    """The seconds from image to result are those of results only."""
    told: list[float] = []
    outbox = Outbox(journal, tmp_path, "a", 3600, on_sent=told.append)

    def send(state: str) -> None:
        rows = journal.rows("SELECT id FROM deliveries WHERE state = ?", (state,))
        one = OutgoingObject(tmp_path, "1", "1", "1", "1")
        outbox.sent([QueuedDelivery(row["id"], False, 0, one) for row in rows])

    reported(a="sending")
    send("sending")
    assert told == [5]
    assert retract(journal, store, STUDY, "wrong side") == 1
    send("pending")
    assert deliveries(journal) == {"a": {"sent": 4}}
    assert told == [5]
