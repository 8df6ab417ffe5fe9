"""Derived UIDs: the same for the same, other ones for anything else, and valid."""

from __future__ import annotations

import re
import uuid

from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.serve.dicom.uids import derived_uid

parts = st.lists(st.text(), max_size=4).map(tuple)


@given(parts)
def test_a_uid_is_valid_and_made_of_a_uuid(one):
    uid = derived_uid(*one)
    assert re.fullmatch(r"2\.25\.[1-9][0-9]{0,38}", uid) and len(uid) <= 64
    made_of = uuid.UUID(int=int(uid.removeprefix("2.25.")))
    assert made_of.variant == uuid.RFC_4122 and made_of.version == 8


@given(parts, parts)
def test_uids_are_equal_where_the_parts_are(one, other):
    assert (derived_uid(*one) == derived_uid(*other)) == (one == other)


def test_parts_do_not_run_into_each_other():
    assert derived_uid("ab", "c") != derived_uid("a", "bc")
    assert derived_uid("a", "b") != derived_uid("b", "a")


def test_a_uid_never_changes_between_versions():
    assert derived_uid("a", "b") == "2.25.3693497986677811860943268724226089696"
