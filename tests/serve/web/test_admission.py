from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException

from pneumoscope.serve.web.admission import Admission
from pneumoscope.serve.web.limits import WebLimits


def test_a_slot_returns_everything():
    admission = Admission(WebLimits())
    with pytest.raises(ZeroDivisionError), admission.slot("a") as slot:
        slot.grow(100)
        assert (admission.receiving, admission.waiting, admission.held_bytes) == (1, 0, 100)
        slot.received()
        slot.shrink(40)
        assert (admission.receiving, admission.waiting, admission.held_bytes) == (0, 1, 60)
        raise ZeroDivisionError
    assert (admission.receiving, admission.waiting, admission.held_bytes) == (0, 0, 0)


def test_a_full_queue_rejects_and_names_the_time_of_a_retry():
    admission = Admission(WebLimits(max_queue=1))
    with admission.slot("a") as slot:
        with admission.slot("b"):
            pass
        slot.received()
        with pytest.raises(HTTPException) as rejected, admission.slot("b"):
            pass
        assert rejected.value.status_code == 429
        assert 1 <= int(rejected.value.headers["Retry-After"]) <= 30
    with admission.slot("b"):
        pass


def test_slow_senders_take_nothing_from_the_queue():
    admission = Admission(WebLimits(max_receiving=10, max_queue=1))
    slots = [admission.slot(str(number)) for number in range(9)]
    for slot in slots:
        slot.__enter__()
    with admission.slot("b") as slot:
        slot.received()
        assert admission.waiting == 1
    for slot in slots:
        slot.__exit__(None, None, None)


def test_one_address_gets_half_of_the_places():
    admission = Admission(WebLimits(max_receiving=4))
    with admission.slot("a"), admission.slot("a"):
        with pytest.raises(HTTPException) as rejected, admission.slot("a"):
            pass
        assert rejected.value.status_code == 429
        with admission.slot("b"):
            pass
    with admission.slot("a"):
        pass


def test_memory_is_bounded_over_all_requests():
    admission = Admission(WebLimits(max_held_bytes=100))
    with admission.slot("a") as one, admission.slot("b") as other:
        one.grow(70)
        with pytest.raises(HTTPException) as rejected:
            other.grow(31)
        assert rejected.value.status_code == 429
        one.shrink(1)
        other.grow(31)


def test_a_stopping_server_rejects_requests():
    admission = Admission(WebLimits())
    admission.stopping = True
    with pytest.raises(HTTPException) as rejected, admission.slot("a"):
        pass
    assert rejected.value.status_code == 503


def test_slow_work_makes_the_wait_longer():
    admission = Admission(WebLimits())
    with admission.slot("a") as slot:
        slot.received()
        before = int(admission.busy("full").headers["Retry-After"])
        for _ in range(50):
            admission.record(10.0)
        assert int(admission.busy("full").headers["Retry-After"]) > before
