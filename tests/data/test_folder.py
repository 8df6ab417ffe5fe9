"""Folders as people have them: whose image it is, which class it has, and what is no image of the set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dicom_files import dicom, ramp
from images import write_image
from pneumoscope.data.folder import load, scan
from pneumoscope.data.headers import patient_in_header
from pneumoscope.errors import DataError, Reason
from pneumoscope.parallel import Progress


class Lines(Progress):
    """Collects messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, line: str) -> None:
        self.lines.append(line)


def labels(folder: Path) -> dict[str, str]:
    return {record.path: record.label for record in scan(folder, progress=Lines())}


def test_images_whose_headers_name_one_patient_are_one_patients(tmp_path):
    for name, patient in (("a.dcm", "X1"), ("b.dcm", "X2"), ("c.dcm", "X1"), ("d.dcm", None)):
        path = tmp_path / ("normal" if name < "c" else "pneumonia") / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(dicom(ramp(), PatientID=patient))
    found = {record.path: record.patient_id for record in load(tmp_path).records}
    assert found == {
        "normal/a.dcm": "normal/a.dcm",
        "normal/b.dcm": "normal/b.dcm",
        "pneumonia/c.dcm": "normal/a.dcm",
        "pneumonia/d.dcm": "pneumonia/d.dcm",
    }


def test_a_folder_for_each_patient_comes_before_the_header(tmp_path):
    for place in ("normal/p1/a.dcm", "normal/p2/b.dcm"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_bytes(dicom(ramp(), PatientID="anonymous"))
    assert [record.patient_id for record in load(tmp_path).records] == ["p1", "p2"]


def test_headers_state_age_sex_and_view_before_the_table_of_labels(tmp_path):
    write_image(tmp_path / "a.png")
    (tmp_path / "b.dcm").write_bytes(dicom(ramp(), PatientAge="004Y", PatientSex="F", ViewPosition="AP"))
    (tmp_path / "c.dcm").write_bytes(dicom(ramp(), ViewPosition="LLD"))
    table = "path,label,age,sex,view\n" + "".join(
        f"{name},normal,60,M,PA\n" for name in ("a.png", "b.dcm", "c.dcm")
    )
    (tmp_path / "labels.csv").write_text(table, encoding="utf-8")
    stated = {record.path: (record.age, record.sex, record.view) for record in load(tmp_path).records}
    assert stated == {"a.png": (60, "M", "PA"), "b.dcm": (4, "F", "AP"), "c.dcm": (60, "M", "PA")}


def test_class_folders_may_be_links(tmp_path):
    write_image(tmp_path / "set" / "normal" / "a.png")
    write_image(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "set" / "pneumonia").symlink_to(tmp_path / "elsewhere")
    assert labels(tmp_path / "set") == {"normal/a.png": "normal", "pneumonia/b.png": "pneumonia"}


def test_masks_are_no_images_of_a_patient_called_masks(tmp_path):
    for name in ("Normal", "COVID", "Lung_Opacity", "Viral Pneumonia"):
        for part in ("images", "masks"):
            write_image(tmp_path / "COVID-19_Radiography_Dataset" / name / part / f"{name}-1.png")
    progress = Lines()
    manifest = scan(tmp_path, progress=progress)
    found = {record.label: record.patient_id for record in manifest}
    assert sorted(found) == ["covid", "lung_opacity", "normal", "viral"]
    assert all("masks" not in record.path and record.patient_id == record.path for record in manifest)
    (line,) = progress.lines
    assert "4 masks left out" in line


def test_a_folder_beside_a_known_class_is_a_class(tmp_path):
    for name in ("download/Fibrosis/a.png", "download/NORMAL/b.png", "download/test/Fibrosis/c.png"):
        write_image(tmp_path / name)
    assert set(labels(tmp_path).values()) == {"fibrosis", "normal"}


def test_an_archive_that_holds_everything_twice_is_read_once(tmp_path):
    names = ("train/NORMAL/IM-0115-0001.png", "test/PNEUMONIA/person1_virus_6.png")
    for seed, name in enumerate(names):
        write_image(tmp_path / "chest_xray" / name, seed)
        write_image(tmp_path / "chest_xray" / "chest_xray" / name, seed)
    write_image(tmp_path / "chest_xray" / "chest_xray" / "val" / "NORMAL" / "IM-0116-0001.png", 9)
    progress = Lines()
    manifest = scan(tmp_path / "chest_xray", progress=progress)
    assert [record.path for record in manifest] == [
        "chest_xray/val/NORMAL/IM-0116-0001.png",
        "test/PNEUMONIA/person1_virus_6.png",
        "train/NORMAL/IM-0115-0001.png",
    ]
    assert {record.split for record in manifest} == {"train", "val", "test"}
    assert any("2 images left out, copies" in line for line in progress.lines)
    assert len(scan(tmp_path, progress=progress)) == 3


@pytest.mark.parametrize(("count", "said"), [(16, True), (60, False)])
def test_a_validation_split_of_16_images_gets_the_line_to_write(tmp_path, count, said):
    for number in range(600):
        path = tmp_path / ("val" if number < count else "train") / "NORMAL" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number)
    progress = Lines()
    scan(tmp_path, progress=progress)
    line = f"pneumoscope data split {tmp_path} --out split.csv"
    assert any(line in one and "only 16 images in val" in one for one in progress.lines) is said


def test_what_cannot_be_read_is_listed_and_the_rest_is_scanned(tmp_path, monkeypatch):
    write_image(tmp_path / "normal" / "a.png")
    write_image(tmp_path / "normal" / "closed.png")
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "normal" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90))
    os.mkfifo(tmp_path / "normal" / "pipe.png")
    from pneumoscope.model import bundle

    hash_of = bundle.sha256_of

    def guarded(path):
        if path.name == "closed.png":
            raise PermissionError(13, "Permission denied")
        return hash_of(path)

    monkeypatch.setattr(bundle, "sha256_of", guarded)
    progress = Lines()
    manifest = scan(tmp_path, progress=progress)
    assert [record.path for record in manifest] == ["normal/a.png"]
    assert {Path(one.path).name: one.reason for one in manifest.left_out} == {
        "DICOMDIR": Reason.NO_PIXELS,
        "phone.heic": Reason.UNSUPPORTED_ENCODING,
        "pipe.png": Reason.NOT_AN_IMAGE,
        "closed.png": Reason.NO_PERMISSION,
    }
    assert len(progress.lines) == 4
    assert all(line.startswith("left out: ") for line in progress.lines)
    (tmp_path / "normal" / "a.png").unlink()
    with pytest.raises(DataError, match="no image can be read"):
        scan(tmp_path)


def test_images_that_the_table_of_labels_does_not_list_are_counted(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        write_image(tmp_path / name)
    (tmp_path / "labels.csv").write_text("path;label\n\n;\na.png;Normal\n")
    progress = Lines()
    assert len(scan(tmp_path, progress=progress)) == 1
    assert "does not list 2 images" in progress.lines[0]


def test_a_table_names_images_by_as_much_of_the_path_as_it_has(tmp_path):
    folder = tmp_path / "x"
    for name in ("normal/1.png", "viral/1.png", "viral/2.png", "3.png"):
        write_image(folder / name)
    named = ("./normal/1.png", str(folder / "viral" / "1.png"), "x/viral/2.png", "/moved/x/3.png")
    rows = [
        f"{name},{label}" for name, label in zip(named, ("normal", "viral", "viral", "normal"), strict=True)
    ]
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows]))
    found = labels(folder)
    assert found == {
        "3.png": "normal",
        "normal/1.png": "normal",
        "viral/1.png": "viral",
        "viral/2.png": "viral",
    }


@pytest.mark.parametrize("name", ["siteA/1.png", "/archive/siteA/1.png"])
def test_a_table_does_not_label_an_image_of_another_folder(tmp_path, name):
    write_image(tmp_path / "siteB" / "1.png")
    (tmp_path / "labels.csv").write_text(f"path,label\n{name},viral\n")
    with pytest.raises(DataError, match=r"is not in the folder, where 'siteB/1\.png' has its name"):
        scan(tmp_path)


def test_images_that_the_table_of_patients_does_not_list_are_counted(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        write_image(tmp_path / "normal" / name)
    (tmp_path / "p.csv").write_text("path,patient_id\na.png,7\n")
    progress = Lines()
    scan(tmp_path, patients_csv=tmp_path / "p.csv", progress=progress)
    assert "p.csv: does not list 2 images; each counts as a patient of its own" in progress.lines[0]


def places(folder: Path) -> dict[str, tuple[str, str]]:
    return {record.path: (record.label, record.patient_id) for record in scan(folder, progress=Lines())}


def test_a_name_that_viewers_export_hides_neither_class_nor_patient(tmp_path):
    """IM-0001-0001 is a name of the Kermany set, and what Horos and OsiriX call a first image."""
    write_image(tmp_path / "normal" / "n.png")
    for seed, place in enumerate(("effusion/pat1", "effusion/pat2", "normal/pat3"), start=1):
        write_image(tmp_path / place / "IM-0001-0001.png", seed)
    write_image(tmp_path / "effusion" / "IM-0001-0001.png", 4)
    assert places(tmp_path) == {
        "normal/n.png": ("normal", "normal/n.png"),
        "effusion/IM-0001-0001.png": ("effusion", "effusion/IM-0001-0001.png"),
        "effusion/pat1/IM-0001-0001.png": ("effusion", "pat1"),
        "effusion/pat2/IM-0001-0001.png": ("effusion", "pat2"),
        "normal/pat3/IM-0001-0001.png": ("normal", "pat3"),
    }


def test_a_dicom_file_is_none_of_the_kermany_set_whatever_its_name(tmp_path):
    for place, patient in (("normal/s1", "A"), ("normal/s2", "B"), ("pneumonia", "B")):
        path = tmp_path / place / "IM-0001-0001.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom(ramp(), PatientID=patient))
    assert places(tmp_path) == {
        "normal/s1/IM-0001-0001.dcm": ("normal", "s1"),
        "normal/s2/IM-0001-0001.dcm": ("normal", "s2"),
        "pneumonia/IM-0001-0001.dcm": ("pneumonia", "pneumonia/IM-0001-0001.dcm"),
    }


def test_a_kermany_name_counts_where_no_class_contradicts_it(tmp_path):
    write_image(tmp_path / "all" / "IM-0115-0001.png", 1)
    write_image(tmp_path / "all" / "person3_virus_6.png", 2)
    assert places(tmp_path) == {
        "all/IM-0115-0001.png": ("normal", "IM-0115"),
        "all/person3_virus_6.png": ("viral", "person3"),
    }
    # Sorted by hand into another class, a child stays one patient.
    write_image(tmp_path / "all" / "NORMAL" / "person3_virus_7.png", 3)
    assert places(tmp_path)["all/NORMAL/person3_virus_7.png"] == ("normal", "person3")


def test_a_split_below_the_class_is_no_patient(tmp_path):
    for seed, place in enumerate(("NORMAL/train/x.png", "NORMAL/train/p7/y.png", "PNEUMONIA/test/z.png")):
        write_image(tmp_path / place, seed)
    assert {record.path: (record.patient_id, record.split) for record in scan(tmp_path)} == {
        "NORMAL/train/x.png": ("NORMAL/train/x.png", "train"),
        "NORMAL/train/p7/y.png": ("p7", "train"),
        "PNEUMONIA/test/z.png": ("PNEUMONIA/test/z.png", "test"),
    }


def test_the_official_test_folder_is_known_from_inside(tmp_path, monkeypatch):
    write_image(tmp_path / "test" / "PNEUMONIA" / "person1_virus_6.png")
    monkeypatch.chdir(tmp_path / "test")
    assert [record.patient_id for record in scan(".")] == ["test-person1"]


def test_a_split_of_a_table_that_there_is_not_is_one_line(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / "train" / f"{name}.png")
    table = tmp_path / "labels.csv"
    table.write_text("path,label,split\na.png,normal,Validation\nb.png,viral,\n")
    assert [record.split for record in scan(tmp_path)] == ["val", "train"]
    table.write_text("path,label,split\na.png,normal,holdout\nb.png,viral,\n")
    with pytest.raises(DataError, match=r"a\.png: split 'holdout' in the table of labels"):
        scan(tmp_path)


def in_places(folder: Path, *places: str, label: str = "viral") -> list[str]:
    """Write an image to each place, with a table of labels; return their patients, and the lines."""
    for seed, place in enumerate(places):
        write_image(folder / place, seed)
    (folder / "labels.csv").write_text("path,label\n" + "".join(f"{place},{label}\n" for place in places))
    return [record.patient_id for record in scan(folder, progress=Lines())]


@pytest.mark.parametrize(
    ("places", "patients"),
    [
        (("sub-S0/ses-E1/mod-rx/1.png", "sub-S0/ses-E2/mod-rx/2.png"), ["sub-S0"] * 2),
        (("train/patient00007/study1/1.png", "train/patient00007/study2/1.png"), ["patient00007"] * 2),
        (("files/p10/p10000032/s50/1.png", "files/p10/p10000033/s51/1.png"), ["p10000032", "p10000033"]),
        (("images/id_0a1b2c3d-4e/Study_1/1.png",), ["id_0a1b2c3d-4e"]),
        (("sub-1/IM-0001-0001.png", "sub-2/IM-0001-0001.png"), ["sub-1", "sub-2"]),
    ],
)
def test_a_session_or_study_below_a_folder_that_is_no_class_is_no_patient(tmp_path, places, patients):
    assert in_places(tmp_path, *places) == patients


def test_a_folder_of_a_patient_is_no_class_although_a_class_is_beside_it(tmp_path):
    places = ("normal/7/1.png", "sub-1/ses-1/2.png", "sub-1/ses-2/3.png")
    assert in_places(tmp_path, *places) == ["7", "sub-1", "sub-1"]
    write_image(tmp_path / "other" / "sub-1" / "normal" / "4.png", 4)
    assert scan(tmp_path / "other").records[0].patient_id == "sub-1"


def test_a_folder_of_the_name_of_its_label_is_a_class_for_all_in_it(tmp_path):
    for seed, place in enumerate(("edema/7/1.png", "edema/7/2.png")):
        write_image(tmp_path / place, seed)
    (tmp_path / "labels.csv").write_text("path,label\nedema/7/1.png,Edema\nedema/7/2.png,effusion\n")
    assert [record.patient_id for record in scan(tmp_path)] == ["7", "7"]


def test_folders_that_may_be_those_of_patients_are_one_line(tmp_path):
    for seed, place in enumerate(("ward/0007/1.png", "ward/0007/2.png")):
        write_image(tmp_path / place, seed)
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n1.png,viral\n2.png,viral\n")
    progress = Lines()
    assert [record.patient_id for record in scan(tmp_path, progress=progress)] == [
        "ward/0007/1.png",
        "ward/0007/2.png",
    ]
    (line,) = progress.lines
    assert "states no patient for 2 images in folders such as 'ward/0007'" in line
    table.write_text("path,label,patient_id\n1.png,viral,7\n2.png,viral,7\n")
    scan(tmp_path, progress=(silent := Lines()))
    assert silent.lines == []


def test_one_patient_id_for_all_images_is_one_line_that_names_the_option(tmp_path):
    for number in range(3):
        (tmp_path / "normal").mkdir(exist_ok=True)
        (tmp_path / "normal" / f"{number}.dcm").write_bytes(dicom(ramp(), PatientID="ANONYMOUS"))
    progress = Lines()
    assert {record.patient_id for record in scan(tmp_path, progress=progress)} == {"normal/0.dcm"}
    (line,) = progress.lines
    assert "all 3 images have one Patient ID" in line and "--patients" in line
    (tmp_path / "p.csv").write_text("path,patient_id\n" + "".join(f"{n}.dcm,{n}\n" for n in range(3)))
    stated = scan(tmp_path, patients_csv=tmp_path / "p.csv", progress=(silent := Lines()))
    assert [record.patient_id for record in stated] == ["0", "1", "2"] and silent.lines == []


def test_dicom_files_of_one_study_are_one_patients_where_none_is_stated(tmp_path):
    studies = {"a.dcm": ("1.2.7", None), "b.dcm": ("1.2.8", None), "c.dcm": ("1.2.7", None)}
    studies |= {"d.dcm": ("1.2.9", "X"), "e.dcm": ("1.2.9", "Y")}
    (tmp_path / "normal").mkdir()
    for name, (study, patient) in studies.items():
        header = {"StudyInstanceUID": study, "PatientID": patient}
        (tmp_path / "normal" / name).write_bytes(dicom(ramp(), **header))
    found = [record.patient_id.removeprefix("normal/") for record in scan(tmp_path)]
    assert found == ["a.dcm", "b.dcm", "a.dcm", "d.dcm", "e.dcm"]


def test_a_dicom_file_without_preamble_states_its_patient(tmp_path):
    (tmp_path / "normal").mkdir()
    for name in ("a", "b"):
        header = {"PatientID": "X", "PatientAge": "004Y", "PatientSex": "F", "ViewPosition": "AP"}
        (tmp_path / "normal" / f"{name}.dcm").write_bytes(dicom(ramp(), preamble=False, **header))
    stated = {(one.patient_id, one.age, one.sex, one.view) for one in scan(tmp_path)}
    assert stated == {("normal/a.dcm", 4, "F", "AP")}


@pytest.mark.timeout(20)
def test_a_pipe_that_a_manifest_names_has_no_header(tmp_path):
    os.mkfifo(tmp_path / "x.dcm")
    assert patient_in_header(tmp_path / "x.dcm") is None


def test_original_sizes_may_be_written_as_spreadsheets_do(tmp_path):
    write_image(tmp_path / "normal" / "a.png")
    table = tmp_path / "sizes.csv"
    table.write_text("file,original_width,original_height\na.png,1200.0,1000.0\n")
    assert [(one.width, one.height) for one in scan(tmp_path)] == [(1200, 1000)]
    table.write_text("file,original_width,original_height\na.png,wide,1000\n")
    with pytest.raises(DataError, match=r"sizes\.csv: normal/a\.png: original_width 'wide' is not a whole"):
        scan(tmp_path)
