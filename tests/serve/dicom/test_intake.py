"""What becomes of an image that comes again: after a conflict, and where its file was lost."""

from __future__ import annotations

import pytest

from pneumoscope.serve.dicom.commitment import NO_SUCH_INSTANCE, committed
from pneumoscope.serve.dicom.intake import Accepted, Intake, Origin
from pneumoscope.serve.dicom.journal import Journal
from pneumoscope.serve.dicom.maintenance import retry
from pneumoscope.serve.dicom.queue import BuiltObject, Queue, enter_objects
from pneumoscope.serve.dicom.store import Store, file_head

CR = "1.2.840.10008.5.1.4.1.1.1"
UID = "1.2.3"


@pytest.fixture
def accept(tmp_path, journal):
    """Send an image with this content."""
    store = Store(tmp_path)
    intake = Intake(store, journal)

    def accept(content: bytes, via: str = "store") -> Accepted:
        received = store.receive(file_head(CR, UID, "1.2.840.10008.1.2.1"), 10**6)
        received.write(content)
        return intake.accept(received, CR, UID, Origin(via, "CR1", "link"))

    return accept


def states(journal: Journal) -> list[str]:
    return [row["state"] for row in journal.rows("SELECT state FROM instances ORDER BY id")]


def test_a_corrected_image_that_came_too_early_is_processed_when_it_comes_again(tmp_path, journal, accept):
    queue = Queue(journal, 1800)
    assert accept(b"damaged") is Accepted.NEW
    damaged = queue.next_image(())
    assert accept(b"corrected") is Accepted.CONFLICT
    assert accept(b"corrected") is Accepted.DUPLICATE, "the other one may still be reported"
    queue.ended(damaged, "unreportable", "damaged header")
    assert accept(b"corrected") is Accepted.NEW
    assert states(journal) == ["purged", "received"]
    again = queue.next_image(())
    assert (tmp_path / again.file).read_bytes().endswith(b"corrected")
    assert accept(b"corrected") is Accepted.DUPLICATE


def test_a_file_that_was_lost_is_stored_again(tmp_path, journal, accept):
    queue = Queue(journal, 1800)
    accept(b"image")
    stored = tmp_path / queue.next_image(()).file
    stored.unlink()
    assert committed(journal, tmp_path, [(CR, UID)]) == [NO_SUCH_INSTANCE]
    assert accept(b"image") is Accepted.DUPLICATE
    assert committed(journal, tmp_path, [(CR, UID)]) == [0]
    stored.unlink()
    for _ in range(3):
        queue.stopped(queue.next_image(()), "the stored file cannot be read", 3)
    assert states(journal) == ["parked"]
    assert accept(b"image") is Accepted.NEW
    assert stored.exists()
    assert states(journal) == ["received"]


@pytest.mark.parametrize(("via", "state"), [("store", "pending"), ("rebuild", "sending")])
def test_what_shadow_held_is_sent_after_the_destination_was_asked_where_it_may_have_it(
    journal, accept, via, state
):
    accept(b"image", via)
    with journal.change() as connection:
        connection.execute(
            "INSERT INTO results (study_uid, made, revision, bundle, state, destinations, first_received,"
            " last_received) VALUES ('1', '', 0, 'b', 'built', '[]', 0, 0)"
        )
        connection.execute("INSERT INTO result_images (result, instance) VALUES (1, 1)")
        enter_objects(connection, 1, [BuiltObject("1.1", "1", "1", "1", "f")], {"pacs": "held"})
    assert retry(journal, held=True) == {"held": 1}
    assert journal.value("SELECT state FROM deliveries") == state
