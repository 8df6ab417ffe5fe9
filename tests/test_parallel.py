from __future__ import annotations

import os
import random
import threading
import time
from itertools import count, islice

import pytest

from pneumoscope.parallel import available_cpus, in_order


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
