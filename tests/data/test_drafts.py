from __future__ import annotations

import os

import pytest

from pneumoscope.data.drafts import draft_of, locked, replacing
from pneumoscope.errors import DataError


@pytest.mark.parametrize("letter", ["x", "肺", "😷"])
def test_a_name_of_any_length_that_the_disk_holds_can_be_written(tmp_path, letter):
    path = tmp_path / (letter * (240 // len(letter.encode())) + ".csv")
    with replacing(path) as file:
        file.write("whole")
    assert path.read_text() == "whole"


def test_a_draft_keeps_the_end_of_the_name_in_whole_characters(tmp_path):
    with draft_of(tmp_path / ("肺" * 80 + "a.csv"), "w") as (draft, _):
        assert draft.name.startswith(f".{'肺' * 65}a.csv.")
    assert not draft.exists()


def test_the_draft_of_a_killed_process_of_the_same_number_stops_nothing(tmp_path):
    (tmp_path / f".a.csv.{os.getpid()}.draft").write_text("half")
    with replacing(tmp_path / "a.csv") as file:
        file.write("whole")
    assert (tmp_path / "a.csv").read_text() == "whole"


def test_a_folder_is_of_one_process_until_the_file_is_closed(tmp_path):
    with (
        locked(tmp_path / "lock", "taken by {holder}", "use another folder"),
        pytest.raises(DataError, match=f"taken by {os.getpid()}$"),
    ):
        locked(tmp_path / "lock", "taken by {holder}", "use another folder")
    locked(tmp_path / "lock", "taken by {holder}", "use another folder").close()
