"""Errors that cross the boundary of a process."""

from __future__ import annotations

import pickle

import pytest

from pneumoscope.errors import DataError, MissingExtraError, Reason, UnreadableImageError

ERRORS = [
    DataError("split.csv: has no images; add some"),
    MissingExtraError("Evaluation", "evaluate"),
    UnreadableImageError("a.png", Reason.CORRUPT, "damaged PNG data; copy the file again"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_in_another_process(error):
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert (str(there), vars(there)) == (str(error), vars(error))
