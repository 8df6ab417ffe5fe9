from __future__ import annotations

import os
import random
import threading
import time
from itertools import count, islice

import pytest

from pneumoscope.parallel import TimeLeft, available_cpus, in_order


def doubled(chunk):
    time.sleep(random.random() / 500)
    return [2 * item for item in chunk]


@pytest.mark.parametrize("length", [0, 1, 2, 8, 9, 100])
@pytest.mark.parametrize("workers", [1, 4])
def test_results_come_in_the_order_of_the_items(length, workers):
    assert list(in_order(range(length), doubled, workers=workers, chunk=3)) == [2 * n for n in range(length)]


def test_items_are_drawn_only_as_fast_as_results_are_taken():
    counter = count(1)
    results = in_order(counter, doubled, workers=2, chunk=4)
    assert list(islice(results, 10)) == [2 * n for n in range(1, 11)]
    results.close()
    assert next(counter) <= 10 + 4 * (2 * 2 + 2)


def test_an_error_of_the_work_is_raised_to_the_caller():
    def broken(chunk):
        if 20 in chunk:
            raise ValueError("no")
        return chunk

    results = in_order(range(100), broken, workers=2, chunk=4)
    assert list(islice(results, 20)) == list(range(20))
    with pytest.raises(ValueError, match="no"):
        next(results)


def test_no_thread_is_left_behind_and_one_item_needs_none():
    before = threading.active_count()
    seen = list(in_order([1], lambda chunk: [threading.current_thread()], workers=4))
    assert seen == [threading.current_thread()]
    results = in_order(range(1000), doubled, workers=3, chunk=2)
    next(results)
    results.close()
    assert threading.active_count() == before


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_cpus_are_those_that_the_process_may_use():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert available_cpus() == len(allowed)


def test_chunks_of_one_go_on_after_the_first():
    assert list(in_order(range(5), lambda part: [2 * one for one in part], workers=2, chunk=1)) == [
        0,
        2,
        4,
        6,
        8,
    ]


@pytest.mark.parametrize("seconds", [0.05, 1.0, 40.0])
def test_the_time_left_of_even_work_is_what_it_takes(seconds):
    left, total = TimeLeft(), 1000
    for done in range(total + 1):
        estimate = left(done * seconds, done, total)
        if done * seconds >= TimeLeft.FIRST and done < total:
            assert estimate == pytest.approx((total - done) * seconds)
    assert estimate is None


def test_the_time_left_follows_a_change_of_speed():
    left, now = TimeLeft(), 0.0
    for done in range(2000):
        now += 0.1 if done < 1000 else 1.0
        estimate = left(now, done, 2000)
        if done == 1200:
            assert estimate == pytest.approx(800, rel=0.05)


def test_the_time_left_is_soon_right_after_the_process_was_suspended():
    left, now = TimeLeft(), 0.0
    for done in range(1000):
        now += 8 * 3600 if done == 600 else 1.0
        estimate = left(now, done, 1000)
        if done >= 600:
            assert estimate < 4 * (1000 - done)
    assert estimate == pytest.approx(1, rel=0.05)


def test_hours_between_two_reports_are_no_suspension_where_all_take_that_long():
    left = TimeLeft()
    for done in range(20):
        estimate = left(3600.0 * done, done, 100)
        assert done == 0 or estimate == pytest.approx((100 - done) * 3600)


def test_the_time_left_of_resumed_work_counts_from_where_it_began():
    left = TimeLeft()
    assert left(0.0, 900, 1000) is None
    assert left(10.0, 910, 1000) == pytest.approx(90)


def test_no_time_is_left_where_it_is_not_known():
    left = TimeLeft()
    assert left(0.0, 0, None) is None
    assert left(10.0, 5, None) is None
    stuck = TimeLeft()
    assert [stuck(float(now), 0, 10) for now in range(0, 60, 10)] == [None] * 6


def test_work_that_counts_again_from_the_beginning_is_estimated_anew():
    left = TimeLeft()
    for now in range(100):
        left(float(now), now, 100)
    assert left(100.0, 0, 1000) is None
    assert left(110.0, 1, 1000) == pytest.approx(9990)
