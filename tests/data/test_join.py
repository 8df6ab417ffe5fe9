"""Several data sets as one: sides, patients, ages and the description."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_files import dicom, ramp
from pneumoscope.data import Manifest, Record
from pneumoscope.data.join import join
from pneumoscope.domain import DatasetDescription, Population
from pneumoscope.errors import DataError, Reason, UnreadableImageError
from pneumoscope.parallel import Progress


def manifest(root, *records, description=None):
    return Manifest(tuple(records), Path(root), description)


def test_paths_start_from_the_closest_folder_above_all_sets(tmp_path):
    first = manifest(tmp_path / "a", Record("x.png", "normal", "p1", "train"))
    second = manifest(tmp_path / "b" / "c", Record("y.png", "pneumonia", "p2", "test"))
    joined = join([first, second])
    assert joined.root == tmp_path.resolve()
    assert [record.path for record in joined] == ["a/x.png", "b/c/y.png"]


def test_an_image_that_is_a_link_keeps_its_name(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "store" / "0f3a").write_bytes(b"image")
    (tmp_path / "a" / "x.png").symlink_to(tmp_path / "store" / "0f3a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    joined = join([manifest(tmp_path / "b", Record("x.png", "normal", "p1", "train"))])
    assert (joined.root, joined.records[0].path) == ((tmp_path / "a").resolve(), "x.png")


def test_a_patient_that_one_set_holds_out_is_held_out_of_the_other(tmp_path):
    first = manifest(tmp_path / "a", Record("x.png", "normal", "7", "test"))
    second = manifest(
        tmp_path / "b",
        Record("y.png", "normal", "nih-7", "train"),
        Record("z.png", "normal", "nih-8", "train"),
    )
    joined = join([first, second], {0: "nih-"})
    assert [record.split for record in joined] == ["test", "test", "train"]


def test_copies_link_patients_over_several_steps(tmp_path):
    first = manifest(
        tmp_path / "a",
        Record("1.png", "normal", "p1", "train", sha256="s1"),
        Record("2.png", "normal", "p1", "train", sha256="s2"),
    )
    second = manifest(
        tmp_path / "b",
        Record("3.png", "normal", "q1", "train", sha256="s2"),
        Record("4.png", "normal", "q1", "val", sha256="s4"),
    )
    assert {record.split for record in join([first, second])} == {"val"}


def test_copies_that_the_caller_found_are_held_out_with_the_patients_of_headers(tmp_path):
    first = dicoms(tmp_path / "a", ("MRN1", "train", ""), ("MRN2", "train", ""))
    second = dicoms(tmp_path / "b", ("MRN1", "train", ""), ("MRN3", "test", ""))
    joined = join([first, second], duplicates=lambda whole: [[2, len(whole) - 1]])
    assert [record.split for record in joined] == ["test", "train", "test", "test"]


@given(
    sides=st.lists(st.sampled_from(["train", "val", "test"]), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
def test_no_patient_is_on_two_sides(sides, seed):
    records = [
        Record(f"{n}.png", "normal", f"p{(n * 7 + seed) % 4}", side, sha256=f"s{(n + seed) % 5}")
        for n, side in enumerate(sides)
    ]
    joined = join([manifest("/a", *records[::2]), manifest("/b", *records[1::2])])
    for key in (lambda record: record.patient_id, lambda record: record.sha256):
        found = {}
        for record in joined:
            found.setdefault(key(record), set()).add(record.split)
        assert all(len(one) == 1 for one in found.values())


def test_age_and_view_come_from_the_description_only_where_it_states_one(tmp_path):
    children = DatasetDescription("Children", Population("children", (1, 5), ("AP",)), licence="CC BY 4.0")
    adults = DatasetDescription("Adults", Population("adults", (18, None), ("AP", "PA")))
    first = manifest(
        tmp_path / "a",
        Record("x.png", "normal", "p1", "train"),
        Record("y.png", "normal", "p2", "train", age=2.0, view="PA"),
        description=children,
    )
    second = manifest(tmp_path / "b", Record("z.png", "normal", "p3", "train"), description=adults)
    joined = join([first, second])
    assert [(record.age, record.view) for record in joined] == [(3.0, "AP"), (2.0, "PA"), (None, "")]
    assert joined.description is not None
    assert joined.description.name == "Children + Adults"
    assert joined.description.licence == "CC BY 4.0; not stated"


def test_what_one_set_states_is_not_taken_for_one_without_a_description(tmp_path):
    described = DatasetDescription("Children", hospital="Guangzhou", licence="CC BY 4.0")
    first = manifest(tmp_path / "a", Record("x.png", "normal", "p1", "train"), description=described)
    second = manifest(tmp_path / "adults", Record("z.png", "normal", "p3", "train"))
    joined = join([first, second]).description
    assert joined is not None
    assert (joined.name, joined.hospital) == ("Children + adults", "Guangzhou; not stated")
    assert joined.licence == "CC BY 4.0; not stated"
    assert joined.citation == ""


def test_a_set_without_a_split_is_an_error(tmp_path):
    with pytest.raises(DataError, match="has no split"):
        join([manifest(tmp_path, Record("x.png", "normal", "p1"))])
    with pytest.raises(DataError, match="no data sets"):
        join([])


def dicoms(folder, *patients):
    """Write a DICOM file for each patient, and return the manifest that names them after their files."""
    folder.mkdir()
    records = []
    for number, (patient, split, patient_id) in enumerate(patients):
        name = f"{folder.name}{number}.dcm"
        (folder / name).write_bytes(dicom(ramp(), PatientID=patient, PatientComments=name))
        records.append(Record(name, "normal", patient_id or name, split))
    return manifest(folder, *records)


def test_a_patient_of_dicom_headers_is_on_one_side(tmp_path):
    first = dicoms(tmp_path / "a", ("MRN1", "test", ""), ("MRN2", "train", ""), (None, "train", ""))
    second = dicoms(tmp_path / "b", ("MRN1", "train", ""), ("MRN3", "train", ""), (None, "test", ""))
    splits = [record.split for record in join([first, second])]
    assert splits == ["test", "train", "train", "test", "train", "test"]
    # With a prefix, the same identifier means another person.
    assert [record.split for record in join([first, second], {1: "b-"})][3] == "train"


def test_an_identifier_that_stands_for_many_patients_links_nobody(tmp_path):
    first = dicoms(tmp_path / "a", ("ANON", "test", "p1"), ("ANON", "train", "p2"))
    second = dicoms(tmp_path / "b", ("ANON", "train", "p3"))
    assert [record.split for record in join([first, second])] == ["test", "train", "train"]


def test_what_the_sets_left_out_is_left_out_of_the_whole(tmp_path):
    lost = UnreadableImageError("a/closed.png", Reason.NO_PERMISSION, "no permission")
    first = replace(manifest(tmp_path, Record("x.png", "normal", "p1", "train")), left_out=(lost,))
    assert join([first]).left_out == (lost,)


def test_sets_on_several_drives_are_one_line(tmp_path, monkeypatch):
    def commonpath(paths):  # as on Windows
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr("os.path.commonpath", commonpath)
    sets = [manifest(tmp_path / name, Record("x.png", "normal", name, "train")) for name in ("a", "b")]
    with pytest.raises(DataError, match="are on different drives; copy"):
        join(sets)


class Lines(Progress):
    """Collects messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, line: str) -> None:
        self.lines.append(line)


def test_identifiers_that_occur_in_several_sets_are_counted_in_one_line(tmp_path):
    first = manifest(tmp_path / "a", *(Record(f"{n}.png", "normal", str(n), "train") for n in range(3)))
    second = manifest(tmp_path / "b", *(Record(f"{n}.png", "normal", str(n), "test") for n in range(2)))
    join([first, second], progress=(progress := Lines()))
    (line,) = progress.lines
    assert line.startswith("2 patient identifiers in several sets") and "2 images moved" in line
    assert "NAME=FILE" in line
    join([first, second], {1: "b-"}, progress=(silent := Lines()))
    assert silent.lines == []


def test_images_of_one_name_in_two_sets_are_not_one_patients(tmp_path):
    """Where nothing names a patient, an image is its own: its path says nothing in another set."""
    sets = []
    for name, split in (("a", "train"), ("b", "test")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()  # a manifest may list others of its patient only
        records = [Record(f"{n}.png", "normal", "1.png", split) for n in (2, 3)]
        sets.append(manifest(tmp_path / name, *records, Record("4.png", "normal", "4.png", split)))
    joined = join(sets)
    assert [record.split for record in joined] == ["train"] * 3 + ["test"] * 3
    assert [record.patient_id for record in joined][2:4] == ["a/4.png", "b/1.png"]
