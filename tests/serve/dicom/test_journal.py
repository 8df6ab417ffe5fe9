"""The journal and its audit log: what cannot be changed, and how a change is found."""

from __future__ import annotations

import sqlite3
import threading

import pytest

from pneumoscope.serve.dicom import audit
from pneumoscope.serve.dicom.journal import Journal, JournalError, now
from pneumoscope.serve.dicom.queue import Queue

DX = "1.2.840.10008.5.1.4.1.1.1.1"


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path, create=True, check=True)
    yield journal
    journal.close()


def add(
    journal: Journal, number: int, *, priority: int = 0, age: float = 0.0, state: str = "received", **more
):
    values = {
        "sop_instance": f"1.2.{number}", "sop_class": DX, "sha256": "0", "bytes": 1, "file": f"f{number}",
        "via": "store", "caller": "A", "link": f"l{number}", "received": now() - age, "state": state,
        "priority": priority,
    } | more  # fmt: skip
    with journal.change() as connection:
        connection.execute(
            f"INSERT INTO instances ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",
            tuple(values.values()),
        )


def filled(journal: Journal, count: int = 5) -> None:
    with journal.change() as connection:
        for number in range(count):
            audit.record(connection, "received", instance=f"1.2.{number}", caller="ÄE")


def test_it_is_durable(journal):
    (mode,) = journal.rows("PRAGMA journal_mode")[0]
    (synchronous,) = journal.rows("PRAGMA synchronous")[0]
    assert (mode, synchronous) == ("wal", 2), "FULL"


def test_a_transaction_that_fails_leaves_nothing(journal):
    with pytest.raises(ZeroDivisionError), journal.change() as connection:
        audit.record(connection, "received")
        _ = 1 / 0
    assert journal.value("SELECT count(*) FROM audit") == 0
    filled(journal, 1)
    assert audit.verify(journal).entries == 1


def test_no_journal_where_none_was_made(tmp_path):
    with pytest.raises(JournalError, match="there is no journal"):
        Journal(tmp_path)


def test_another_version_is_not_read(tmp_path):
    Journal(tmp_path, create=True).close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(JournalError, match="has version 99"):
        Journal(tmp_path)


def test_a_file_that_is_no_journal(tmp_path):
    (tmp_path / "journal.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(JournalError, match="rebuild"):
        Journal(tmp_path, create=True)


def test_several_threads(journal):
    threads = [threading.Thread(target=filled, args=(journal, 20)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert audit.verify(journal) == audit.AuditCheck(80, audit.verify(journal).head)


def test_the_audit_log_is_append_only(journal):
    filled(journal)
    for statement in ("UPDATE audit SET event = 'x'", "DELETE FROM audit WHERE seq = 2"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"), journal.change() as connection:
            connection.execute(statement)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("UPDATE audit SET detail = '{}' WHERE seq = 3", "entry 3 was changed"),
        ("UPDATE audit SET at = '2020' WHERE seq = 1", "entry 1 was changed"),
        ("DELETE FROM audit WHERE seq = 2", "entry 2 is missing"),
        ("DELETE FROM audit WHERE seq > 3", "2 entries at the end are missing"),
        ("DELETE FROM audit WHERE seq > 4", "1 entry at the end is missing"),
        (
            "UPDATE audit SET hash = (SELECT hash FROM audit WHERE seq = 2) WHERE seq = 5",
            "entry 5 was changed",
        ),
    ],
)
def test_what_was_done_around_the_program_is_found(tmp_path, journal, change, fault):
    filled(journal)
    assert audit.verify(journal).fault == ""
    around = sqlite3.connect(journal.path)
    around.execute("DROP TRIGGER audit_is_append_only_1")
    around.execute("DROP TRIGGER audit_is_append_only_2")
    around.execute(change)
    around.commit()
    around.close()
    assert audit.verify(journal).fault == fault


def test_a_log_that_was_replaced_lacks_the_hash_noted_before(tmp_path, journal):
    filled(journal)
    head = audit.verify(journal).head
    filled(journal)
    assert audit.verify(journal, head).fault == ""
    (tmp_path / "new").mkdir()
    other = Journal(tmp_path / "new", create=True)
    filled(other)
    assert "replaced" in audit.verify(other, head).fault
    other.close()


def test_a_priority_is_raised_and_never_lowered(journal):
    add(journal, 1, priority=1)
    with journal.change() as connection:
        connection.execute("UPDATE instances SET priority = 2")
    with pytest.raises(sqlite3.IntegrityError, match="never lowered"), journal.change() as connection:
        connection.execute("UPDATE instances SET priority = 0")


def order(queue: Queue) -> list[str]:
    taken: list[int] = []
    names = []
    while image := queue.next_image(taken):
        taken.append(image.id)
        names.append(image.sop_instance)
    return names


def test_the_order_of_the_queue(journal):
    """By priority, then by age; but what has waited longest comes first, and what crashed comes last."""
    add(journal, 1)
    add(journal, 2, priority=1)
    add(journal, 3, priority=2)
    add(journal, 4, age=4000)
    add(journal, 5, age=5000, priority=0)
    add(journal, 6, priority=2, tries=1)
    assert order(Queue(journal, 3600)) == ["1.2.4", "1.2.5", "1.2.3", "1.2.2", "1.2.1", "1.2.6"]


def test_the_cap_on_the_longest_wait_holds_for_images_that_crashed(journal):
    add(journal, 1, age=5000, tries=1)
    add(journal, 2, age=10, tries=1)
    add(journal, 3, priority=2)
    add(journal, 4, age=4000)
    assert order(Queue(journal, 3600)) == ["1.2.4", "1.2.1", "1.2.3", "1.2.2"], "after those that did not"


def test_a_result_that_failed_comes_after_the_others(journal):
    """And is deferred, so that images come before it, unless it has waited for too long."""
    queue = Queue(journal, 3600)
    for number, more in enumerate([{"priority": 2}, {}, {"age": 5000}]):
        study = {"study_uid": str(number), "destinations": "[]", "positive": 0}
        add(journal, number, state="predicted", **study, **more)
        queue.compose(str(number), "b", 1)
    with journal.change() as connection:
        connection.execute("UPDATE results SET tries = 1 WHERE study_uid != '1'")
    taken: list[int] = []
    found = []
    while result := queue.next_result(taken):
        taken.append(result.id)
        found.append((result.study_uid, bool(result.deferred)))
    assert found == [("2", False), ("1", False), ("0", True)]


def test_a_positive_image_raises_the_rest_of_its_study(journal):
    queue = Queue(journal, 3600)
    same = {"study_uid": "9", "destinations": '["pacs"]'}
    add(journal, 1, state="predicted", positive=1, **same)
    add(journal, 2, state="predicted", positive=0, **same)
    number = queue.compose("9", "b", 1)
    assert journal.value("SELECT priority FROM results WHERE id = ?", (number,)) == 1
    assert journal.rows("SELECT DISTINCT priority, state FROM instances")[0][:] == (1, "composed")
    # A later image of the study that is negative lowers nothing.
    add(journal, 3, state="predicted", positive=0, priority=1, **same)
    later = queue.compose("9", "b", 1)
    assert journal.value("SELECT priority FROM results WHERE id = ?", (later,)) == 1
    assert [
        row[0] for row in journal.rows("SELECT instance FROM result_images WHERE result = ?", (later,))
    ] == [3]


def test_a_study_of_very_many_images_has_several_results(journal):
    for number in range(120):
        add(journal, number, state="predicted", positive=0, study_uid="9", destinations="[]")
    queue = Queue(journal, 3600)
    while queue.studies_in_hand():
        queue.compose("9", "b", 1)
    counts = journal.rows("SELECT count(*) FROM result_images GROUP BY result ORDER BY result")
    assert [row[0] for row in counts] == [12] * 10


def test_a_result_that_cannot_be_built_is_split(journal):
    """One image that cannot be reported does not cost the others their result."""
    queue = Queue(journal, 3600)
    for number in range(3):
        add(
            journal, number, state="predicted", positive=0, study_uid="9", priority=1, prediction="{}",
            destinations=f'["{number}"]',
        )  # fmt: skip
        with journal.change() as connection:
            values = (number + 1, None, "null", None, None, b"", b"")
            connection.execute("INSERT INTO artefacts VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    queue.compose("9", "b", 1)
    result = queue.next_result([])
    assert not queue.not_built(result, "it hangs", most_tries=2, final=False)
    assert queue.next_result([]).id == result.id
    assert not queue.not_built(queue.next_result([]), "it hangs", most_tries=2, final=False), "split"
    alone: list[int] = []
    while one := queue.next_result(alone):
        alone.append(one.id)
        assert len(one.images) == len(one.pieces) / 2 == 1
        assert (one.study_uid, one.tries, one.priority) == ("9", 0, 1)
    assert len(alone) == 3 and result.id not in alone
    places = {row[0] for row in journal.rows("SELECT destinations FROM results")}
    assert places == {'["0", "1", "2"]'}
    assert queue.not_built(queue.next_result(alone[1:]), "no series", most_tries=3, final=True)
    states = [row[0] for row in journal.rows("SELECT state FROM results ORDER BY id")]
    assert sorted(states) == ["composed", "composed", "failed"]


def test_what_another_bundle_predicted_is_predicted_again(journal):
    queue = Queue(journal, 3600)
    same = {"destinations": "[]", "bundle": "old"}
    add(journal, 1, state="predicted", study_uid="1", **same)
    add(journal, 2, state="predicted", study_uid="2", **same)
    add(journal, 3, state="reported", study_uid="3", **same)
    add(journal, 4, state="predicted", study_uid="4", destinations="[]", bundle="new")
    queue.compose("2", "old", 1)
    assert queue.use_bundle("new") == 2
    states = dict(journal.rows("SELECT sop_instance, state FROM instances"))
    assert states == {"1.2.1": "received", "1.2.2": "received", "1.2.3": "reported", "1.2.4": "predicted"}
    assert journal.value("SELECT count(*) FROM results") == 0
    assert queue.use_bundle("new") == 0
