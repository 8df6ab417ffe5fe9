"""Purge and sweep: cut off anywhere, they leave no entry without its file, and no file for good."""

from __future__ import annotations

import datetime
import os

import pytest

from dicom_modality import radiograph
from pneumoscope.errors import DataError
from pneumoscope.serve.dicom import audit, purging
from pneumoscope.serve.dicom.intake import Accepted, Intake, Origin
from pneumoscope.serve.dicom.journal import JOURNAL_FILE, Journal, JournalError, now
from pneumoscope.serve.dicom.maintenance import REBUILD_BEGUN, rebuild, retry
from pneumoscope.serve.dicom.node import _opened_journal
from pneumoscope.serve.dicom.purging import Swept, purge, sweep
from pneumoscope.serve.dicom.queue import BuiltObject, enter_objects
from pneumoscope.serve.dicom.store import Store, file_head

DX, EXPLICIT = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.1.2.1"
ANY_AGE = datetime.timedelta(seconds=-10)


class Killed(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "node")


@pytest.fixture
def journal(store):
    journal = Journal(store.folder, create=True)
    yield journal
    journal.close()


def take(store: Store, journal: Journal, uid: str, content: bytes = b"content") -> Accepted:
    received = store.receive(file_head(DX, uid, EXPLICIT), 10**7)
    received.write(content)
    return Intake(store, journal).accept(received, DX, uid, Origin("store", "A", "1"))


def report(store: Store, journal: Journal, uids: list[str], state: str = "sent") -> list[str]:
    """Enter a result of these images with two objects in this state of delivery; return their files."""
    objects = [BuiltObject(f"{uids[0]}.{kind}", "1.2", "1.3", "1.4", store.result_name(f"{uids[0]}.{kind}"))
               for kind in (1, 2)]  # fmt: skip
    for one in objects:
        store.write(one.file, b"result")
    with journal.change() as connection:
        number = connection.execute(
            "INSERT INTO results (study_uid, made, revision, bundle, state, destinations, first_received,"
            " last_received) VALUES ('1.4', '', 0, 'b', 'built', '[]', ?, ?)",
            (now(), now()),
        ).lastrowid
        for uid in uids:
            connection.execute(
                "INSERT INTO result_images SELECT ?, id FROM instances WHERE sop_instance = ?", (number, uid)
            )
            connection.execute("UPDATE instances SET state = 'reported' WHERE sop_instance = ?", (uid,))
        enter_objects(connection, number, objects, {"pacs": state})
    return [one.file for one in objects]


def files(store: Store) -> set[str]:
    return {name for name, _ in store.files()}


def live(journal: Journal) -> set[str]:
    """Return the files of images that are not purged, and of their results."""
    return {
        row["file"]
        for row in journal.rows(
            "SELECT file FROM instances WHERE state != 'purged' UNION SELECT o.file FROM objects o"
            " JOIN result_images ri ON ri.result = o.result JOIN instances i ON i.id = ri.instance"
            " WHERE i.state != 'purged'"
        )
    }


@pytest.mark.parametrize("step", range(10))
def test_a_purge_that_is_cut_off(store, journal, monkeypatch, step):
    """Two images with a result, and one alone, killed at each removal and each transaction in turn."""
    for uid in ("1.2.1", "1.2.2", "1.2.3"):
        take(store, journal, uid)
    report(store, journal, ["1.2.1", "1.2.2"])
    report(store, journal, ["1.2.3"])
    left = step

    def count() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    remove, mark = Store.remove, purging._mark
    monkeypatch.setattr(Store, "remove", lambda self, name: (count(), remove(self, name))[1])
    monkeypatch.setattr(purging, "_mark", lambda *words: (mark(*words), count())[0])
    with pytest.raises(Killed):
        purge(journal, store, ANY_AGE)
    monkeypatch.undo()
    assert live(journal) <= files(store), "no entry without its file"
    monkeypatch.setattr(purging, "now", lambda: now() + 3700)
    swept = sweep(journal, store)
    assert files(store) == live(journal)
    assert swept.kept == 0
    assert audit.verify(journal).fault == ""


def test_what_is_used_again_meanwhile_is_not_purged(store, journal, monkeypatch):
    """An image that is to be processed again, or was sent again, between the choice and the removal."""
    for uid in ("1.2.1", "1.2.2"):
        take(store, journal, uid)
        report(store, journal, [uid])
    mark, again = purging._mark, []

    def marked(journal, image, limit):
        if not again:
            again.append(image)
            with journal.change() as connection:
                connection.execute("UPDATE instances SET state = 'received' WHERE id = ?", (image,))
            return mark(journal, image, limit)
        done = mark(journal, image, limit)
        assert take(store, journal, "1.2.2") is Accepted.DUPLICATE
        return done

    monkeypatch.setattr(purging, "_mark", marked)
    purge(journal, store, ANY_AGE)
    states = [row["state"] for row in journal.rows("SELECT state FROM instances ORDER BY id")]
    assert states == ["received", "reported"]
    assert {store.image_name("1.2.1"), store.image_name("1.2.2")} <= files(store)


def test_a_file_is_named_while_no_other_process_can_write(store, journal, monkeypatch):
    """So a sweep cannot take an image that is journalled in a moment for one that is not."""
    keep, seen = Store.keep, []

    def kept(self, received, name):
        keep(self, received, name)
        seen.append(journal._connection.in_transaction)

    monkeypatch.setattr(Store, "keep", kept)
    take(store, journal, "1.2.1")
    assert seen == [True]


def test_what_shadow_held_is_not_sent_once_it_is_purged(store, journal):
    take(store, journal, "1.2.1")
    report(store, journal, ["1.2.1"], state="held")
    assert purge(journal, store, ANY_AGE).objects == 2
    assert retry(journal, held=True) == {"held": 0}


@pytest.mark.parametrize("state", ["conflict", "unreportable", "ignored"])
def test_what_was_never_reported_is_processed_when_it_comes_again(store, journal, state):
    take(store, journal, "1.2.1")
    with journal.change() as connection:
        connection.execute(
            "UPDATE instances SET state = ?, detail = 'why', tries = 2, link = '0', received = 0", (state,)
        )
    assert purge(journal, store, ANY_AGE).images == 1
    assert take(store, journal, "1.2.1") is Accepted.NEW
    (row,) = journal.rows("SELECT state, detail, tries, link FROM instances")
    assert tuple(row) == ("received", "", 0, "1")
    assert journal.value("SELECT received FROM instances") > now() - 60
    assert files(store) == {store.image_name("1.2.1")}


def test_a_conflict_that_comes_again_is_one_again(store, journal):
    take(store, journal, "1.2.1")
    assert take(store, journal, "1.2.1", b"other") is Accepted.CONFLICT
    with journal.change() as connection:
        connection.execute("UPDATE instances SET state = 'purged', detail = '' WHERE state = 'conflict'")
    assert take(store, journal, "1.2.1", b"other") is Accepted.CONFLICT
    rows = journal.rows("SELECT state, detail FROM instances ORDER BY id")
    assert [tuple(row) for row in rows] == [
        ("received", ""),
        ("conflict", "another image has the same SOP Instance UID"),
    ]


def test_what_shadow_held_until_it_was_purged_is_processed_when_it_comes_again(store, journal):
    """Under UIDs of its own; the result that is not there any more can be retracted no more either."""
    take(store, journal, "1.2.1")
    report(store, journal, ["1.2.1"], state="held")
    purge(journal, store, ANY_AGE)
    assert take(store, journal, "1.2.1") is Accepted.NEW
    assert journal.rows("SELECT state, revision FROM instances")[0][:] == ("received", 1)
    assert journal.value("SELECT state FROM results") == "retracted"


@pytest.mark.parametrize("state", ["sent", "withdrawn"])
def test_what_was_sent_or_retracted_is_not_processed_when_it_comes_again(store, journal, state):
    take(store, journal, "1.2.1")
    report(store, journal, ["1.2.1"], state=state)
    purge(journal, store, ANY_AGE)
    assert take(store, journal, "1.2.1") is Accepted.DUPLICATE
    assert journal.rows("SELECT state, revision FROM instances")[0][:] == ("reported", 0)


def test_an_image_that_was_corrected_takes_the_place_of_one_that_was_unreportable(store, journal):
    """Under the same SOP Instance UID; the same bytes again would end in the same way."""
    take(store, journal, "1.2.1", b"damaged")
    with journal.change() as connection:
        connection.execute("UPDATE instances SET state = 'unreportable'")
    assert take(store, journal, "1.2.1", b"damaged") is Accepted.DUPLICATE
    assert take(store, journal, "1.2.1", b"corrected") is Accepted.NEW
    states = [row["state"] for row in journal.rows("SELECT state FROM instances ORDER BY id")]
    assert states == ["purged", "received"]
    assert files(store) == {store.image_name("1.2.1")}
    assert (store.folder / store.image_name("1.2.1")).read_bytes().endswith(b"corrected")
    assert take(store, journal, "1.2.1", b"damaged") is Accepted.CONFLICT
    assert journal.value("SELECT count(*) FROM audit WHERE event = 'replaced'") == 1


def test_a_sweep_removes_what_nothing_refers_to(store, journal):
    """If it is old enough; and never a file that is needed."""
    take(store, journal, "1.2.1")
    needed = report(store, journal, ["1.2.1"])
    stray = {"images": store.image_name("9.1"), "results": store.result_name("9.2")}
    for name in stray.values():
        store.write(name, b"123")
    assert sweep(journal, store) == Swept(), "they are too young"
    for name in files(store):
        os.utime(store.folder / name, (now() - 3700,) * 2)
    assert sweep(journal, store) == Swept(2, 6, 0)
    assert files(store) == {store.image_name("1.2.1"), *needed}
    (event,) = journal.rows("SELECT detail FROM audit WHERE event = 'swept'")
    assert event["detail"] == '{"bytes": 6, "files": 2}'


def test_a_sweep_leaves_what_is_written_meanwhile(store, journal, monkeypatch):
    """Under the name of a file that a crash has left."""
    name = store.result_name("9.2")
    store.write(name, b"left")
    os.utime(store.folder / name, (now() - 3700,) * 2)
    look = purging._unknown_images
    monkeypatch.setattr(
        purging, "_unknown_images", lambda *words: (look(*words), store.write(name, b"new"))[0]
    )
    assert sweep(journal, store) == Swept()
    assert (store.folder / name).read_bytes() == b"new"


def test_retraction_objects_stay_until_they_are_sent(store, journal):
    """Their images may be purged before."""
    take(store, journal, "1.2.1")
    kept = report(store, journal, ["1.2.1"], state="pending")
    with journal.change() as connection:
        connection.execute("UPDATE instances SET state = 'purged'")
    assert sweep(journal, store, -10).files == 1
    assert files(store) == set(kept)
    with journal.change() as connection:
        connection.execute("UPDATE deliveries SET state = 'sent'")
    assert sweep(journal, store, -10).files == 2


def test_a_journal_that_does_not_know_the_images_removes_none(store, journal, caplog):
    """Such as an older copy of it: the images were accepted."""
    for number in range(3):
        store.write(store.image_name(f"9.{number}"), b"accepted")
    store.write(store.result_name("9.9"), b"result")
    assert sweep(journal, store, -10) == Swept(1, 6, 3)
    assert len(files(store)) == 3
    assert "not in the journal" in caplog.text
    # A crash leaves one image at most.
    for number in range(3):
        with journal.change() as connection:
            connection.execute("DROP TRIGGER IF EXISTS audit_is_append_only_1")
            audit.record(connection, "started")
            connection.execute(
                "UPDATE audit SET at = ? WHERE seq = (SELECT max(seq) FROM audit)",
                (datetime.datetime.fromtimestamp(1e9 + 10 * number, datetime.UTC).isoformat(),),
            )
        os.utime(store.folder / store.image_name(f"9.{number}"), (1e9 + 10 * number - 5,) * 2)
    assert sweep(journal, store, -10) == Swept(3, 24, 0)


def test_what_a_rebuild_cannot_read_stays(store, journal):
    (store.folder / "images" / "aa").mkdir()
    for number in range(2):
        (store.folder / "images" / "aa" / f"{number}.dcm").write_bytes(b"<html>")
    journal.close()
    assert rebuild(store.folder, store).skipped == 2
    journal = Journal(store.folder)
    assert sweep(journal, store, -10) == Swept()
    journal.close()
    assert len(files(store)) == 2


def test_conflicts_are_kept_apart_again_by_a_rebuild(store, journal):
    data = radiograph(1)
    body = data[144 + int.from_bytes(data[140:144], "little") :]
    assert take(store, journal, "1.2.1", body) is Accepted.NEW
    assert take(store, journal, "1.2.1", body + b"\0\0") is Accepted.CONFLICT
    before = [tuple(row) for row in journal.rows("SELECT sha256, state, file FROM instances ORDER BY id")]
    journal.close()
    assert rebuild(store.folder, store).images == 2
    journal = Journal(store.folder)
    after = [tuple(row) for row in journal.rows("SELECT sha256, state, file FROM instances ORDER BY id")]
    journal.close()
    assert after == before


def test_a_file_that_cannot_be_removed_is_one_line(store, journal, monkeypatch):
    take(store, journal, "1.2.1")
    report(store, journal, ["1.2.1"])

    def remove(self, name):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Store, "remove", remove)
    with pytest.raises(
        DataError, match=r"cannot be removed \(Permission denied\); run this as the node's user"
    ):
        purge(journal, store, ANY_AGE)


def test_a_node_does_not_start_without_the_journal_of_its_images(store, journal):
    """It would take all of them for files that nothing refers to. Nor after a rebuild that was cut off."""
    take(store, journal, "1.2.1")
    journal.close()
    (store.folder / JOURNAL_FILE).rename(store.folder / "elsewhere")
    with pytest.raises(JournalError, match="there are stored images; restore it, or run"):
        _opened_journal(store)
    assert not (store.folder / JOURNAL_FILE).exists()
    assert rebuild(store.folder, store).images == 1
    journal = _opened_journal(store)
    with journal.change() as connection:
        audit.record(connection, REBUILD_BEGUN, aside="")
    journal.close()
    with pytest.raises(JournalError, match="cut off; run 'pneumoscope dicom rebuild'"):
        _opened_journal(store)
