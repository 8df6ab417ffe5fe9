from __future__ import annotations

import io
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.serve.workers.frames import read_frame, write_frame


@given(st.dictionaries(st.text(), st.text()), st.lists(st.binary()))
def test_a_message_survives_a_round_trip(head, pieces):
    stream = io.BytesIO()
    write_frame(stream, head, pieces)
    stream.seek(0)
    assert read_frame(stream) == (head, pieces)
    with pytest.raises(EOFError):
        read_frame(stream)


@given(st.data())
def test_a_message_cut_short_is_an_end(data):
    stream = io.BytesIO()
    write_frame(stream, {"a": 1}, [b"some bytes"])
    cut = stream.getvalue()[: data.draw(st.integers(0, len(stream.getvalue()) - 1))]
    with pytest.raises(EOFError):
        read_frame(io.BytesIO(cut))


@given(st.binary(max_size=200), st.booleans())
def test_nonsense_is_an_end_or_a_value_error(data, framed):
    given_ = struct.pack("!I", len(data)) + data if framed else data
    with pytest.raises((EOFError, ValueError)):
        read_frame(io.BytesIO(given_))


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b"[1]",
        b'{"head": 1, "sizes": []}',
        b'{"head": {}, "sizes": 3}',
        b'{"head": {}, "sizes": [-1]}',
        json.dumps({"head": {}, "sizes": [10**12]}).encode(),
    ],
)
def test_a_head_that_is_none(text):
    with pytest.raises(ValueError, match="message"):
        read_frame(io.BytesIO(struct.pack("!I", len(text)) + text))


def test_a_head_beyond_the_limit_is_not_read():
    with pytest.raises(ValueError, match="4294967295 bytes"):
        read_frame(io.BytesIO(b"\xff" * 4))
