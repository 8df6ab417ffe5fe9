"""The manifest: reading, writing, scanning."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pneumoscope.data import Manifest, Record, load, scan
from pneumoscope.data.labels import class_name
from pneumoscope.errors import DataError, PneumoscopeError

TEXT = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)
RECORDS = st.builds(
    Record,
    path=TEXT.map(lambda text: text.replace("\\", "_").replace("/", "_").strip(".") or "x"),
    label=TEXT.map(class_name).filter(lambda text: text == class_name(text)),  # as records have them
    patient_id=TEXT,
    split=st.sampled_from(["", "train", "val", "test"]),
    sha256=st.sampled_from(["", "ab" * 32]),
    width=st.integers(0, 5000),
    height=st.integers(0, 5000),
    source=st.sampled_from(["", "IM", 'site, "two"']),
    age=st.none() | st.sampled_from([0.0, 0.5, 3.0, 88.0]),
    sex=st.sampled_from(["", "F", "M", "O"]),
    view=st.sampled_from(["", "AP", "PA", "LL"]),
)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORDS, unique_by=lambda record: record.path, min_size=1, max_size=5))
def test_what_is_written_is_read(tmp_path, suffix, records):
    manifest = Manifest(tuple(records), tmp_path)
    manifest.write(tmp_path / f"manifest{suffix}")
    assert Manifest.read(tmp_path / f"manifest{suffix}") == manifest


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_manifest_that_lies_elsewhere_keeps_the_root(tmp_path, suffix):
    images = tmp_path / "images"
    touch(images, "normal/a.png", "pneumonia/b.png")
    manifest = scan(images)
    manifest.write(tmp_path / "run" / f"split{suffix}")
    again = load(tmp_path / "run" / f"split{suffix}")
    assert again.records == manifest.records
    assert all(again.resolve(record).is_file() for record in again)
    assert again.fingerprint() == manifest.fingerprint()


def test_columns_about_the_patient_are_written_where_one_is_known(tmp_path):
    plain = Record("a.png", "normal", "p")
    Manifest((plain,), tmp_path).write(tmp_path / "plain.csv")
    assert (tmp_path / "plain.csv").read_text().splitlines()[0].endswith(",source")
    Manifest((plain, replace(plain, path="b.png", age=0.0)), tmp_path).write(tmp_path / "aged.csv")
    assert (tmp_path / "aged.csv").read_text().splitlines()[0].endswith(",source,age")


def test_a_folder_takes_age_sex_view_and_original_size_from_its_tables(tmp_path):
    touch(tmp_path, "normal/a.png", "normal/b.png")
    (tmp_path / "labels.csv").write_text(
        "file,label,Patient Age,Patient Gender,View Position\na.png,normal,058Y,F,PA\nb.png,normal,old,?,x\n"
    )
    (tmp_path / "sizes.csv").write_text("file,original_width,original_height\na.png,2090,1858\nb.png,,\n")
    first, second = scan(tmp_path)
    assert (first.age, first.sex, first.view, first.width, first.height) == (58.0, "F", "PA", 2090, 1858)
    assert (second.age, second.sex, second.view, second.width, second.height) == (None, "", "", 0, 0)


def test_absolute_paths_and_unknown_columns(tmp_path):
    touch(tmp_path, "here/a.png")
    file = tmp_path / "m.csv"
    file.write_text(f"path,label,patient_id,colour\n{tmp_path}/here/a.png,Normal,p1,blue\n")
    manifest = Manifest.read(file)
    assert manifest.resolve(manifest.records[0]).is_file()
    assert manifest.records[0].label == "normal"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,normal\n", "no column 'patient_id'"),
        ("", "no column 'path'"),
        ("path,label,patient_id\na.png,,p\n", "row 1: a.png: its label is empty"),
        ("path,label,patient_id\na.png,normal,p\na.png,normal,p\n", "listed twice"),
        ("path,label,patient_id,split\na.png,normal,p,middle\n", "split 'middle'"),
        ("path,label,patient_id,width\na.png,normal,p,wide\n", "width 'wide'"),
        ("path,label,patient_id,width\na.png,normal,p,-1\n", "negative"),
        ('path,label,patient_id\n"a.png,normal,p\n', "no CSV"),
    ],
)
def test_wrong_tables_are_named(tmp_path, text, message):
    file = tmp_path / "m.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        Manifest.read(file)
    assert "m.csv" in str(caught.value) or "listed twice" in str(caught.value)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".csv", ".parquet", ".npz"]))
def test_any_bytes_give_a_manifest_or_one_error(tmp_path, content, suffix):
    file = tmp_path / f"m{suffix}"
    file.write_bytes(content)
    try:
        load(file)
    except PneumoscopeError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_table_of_a_public_data_set_is_a_manifest(tmp_path, suffix):
    """The columns are those of NIH ChestX-ray14."""
    header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID"]
    header += ["Patient Age", "Patient Gender", "View Position"]
    rows = [
        ["a.png", "No Finding", "0", "1", "058Y", "M", "PA"],
        ["b.png", "Pneumonia", "1", "1", "18M", "F", "AP"],
    ]
    file = tmp_path / f"m{suffix}"
    if suffix == ".csv":
        with file.open("w", newline="") as out:
            csv.writer(out).writerows([header, *rows])
    else:
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
        parquet.write_table(pa.table(columns), file)
    first, second = Manifest.read(file)
    assert (first.path, first.label, first.patient_id) == ("a.png", "normal", "1")
    assert (first.age, first.sex, first.view) == (58.0, "M", "PA")
    assert (second.label, second.age, second.view) == ("pneumonia", 1.5, "AP")


def test_a_column_that_is_not_known_is_not_read(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    late = pa.array([3 * 10**11], pa.timestamp("s"))  # beyond the year 9999, which Python cannot hold
    cells = {"path": ["a.png"], "label": ["normal"], "patient_id": ["1"], "study_date": late}
    parquet.write_table(pa.table(cells), tmp_path / "m.parquet")
    assert [record.path for record in Manifest.read(tmp_path / "m.parquet")] == ["a.png"]


def test_a_table_that_a_spreadsheet_saved_again_is_read(tmp_path):
    text = "path,label,patient_id,split,width,height\na.png,normal,1,Train,224.0,\nb.png,normal,2,VAL,,96.0\n"
    (tmp_path / "m.csv").write_text(text)
    first, second = Manifest.read(tmp_path / "m.csv")
    assert (first.split, first.width, first.height) == ("train", 224, 0)
    assert (second.split, second.width, second.height) == ("val", 0, 96)
    (tmp_path / "m.csv").write_text(text.replace("224.0", "224.5"))
    with pytest.raises(DataError, match=r"width '224\.5' is not a whole number"):
        Manifest.read(tmp_path / "m.csv")


def test_a_width_without_bounds_is_one_line(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    cells = {"path": ["a.png"], "label": ["normal"], "patient_id": ["1"], "width": [float("inf")]}
    parquet.write_table(pa.table(cells), tmp_path / "m.parquet")
    with pytest.raises(DataError, match="width 'inf' is not a whole number"):
        Manifest.read(tmp_path / "m.parquet")


def test_absent_and_strange_paths(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        load(tmp_path / "nothing")
    with pytest.raises(DataError, match="no image"):
        load(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match="not a data set"):
        load(tmp_path / "a.txt")
    with pytest.raises(DataError, match="cannot be read"):
        Manifest.read(tmp_path / "gone.csv")


def test_kermany_folder_with_official_splits(tmp_path):
    touch(
        tmp_path,
        "train/PNEUMONIA/person1_bacteria_1.jpeg",
        "train/PNEUMONIA/person1_virus_6.jpeg",
        "test/PNEUMONIA/person1_virus_6.jpeg",
        "train/NORMAL/IM-0115-0001.jpeg",
        "train/NORMAL/.DS_Store",
        "__MACOSX/train/NORMAL/._IM-0115-0001.jpeg",
    )
    found = {record.path: (record.label, record.patient_id, record.split) for record in scan(tmp_path)}
    assert found == {
        "train/PNEUMONIA/person1_bacteria_1.jpeg": ("bacterial", "person1", "train"),
        "train/PNEUMONIA/person1_virus_6.jpeg": ("viral", "person1", "train"),
        "test/PNEUMONIA/person1_virus_6.jpeg": ("viral", "test-person1", "test"),
        "train/NORMAL/IM-0115-0001.jpeg": ("normal", "IM-0115", "train"),
    }


def test_class_folders_at_any_depth(tmp_path):
    touch(
        tmp_path,
        "Normal/a.png",
        "Viral Pneumonia/b.png",
        "site_a/bacteria/patient7/images/c.png",
        "train/covid/d.png",
        "images/edema/e.dcm",
    )
    found = {record.path: (record.label, record.patient_id, record.source) for record in scan(tmp_path)}
    here = tmp_path.name
    assert found == {
        "Normal/a.png": ("normal", "Normal/a.png", here),
        "Viral Pneumonia/b.png": ("viral", "Viral Pneumonia/b.png", here),
        "site_a/bacteria/patient7/images/c.png": ("bacterial", "patient7", "site_a"),
        "train/covid/d.png": ("covid", "train/covid/d.png", here),
        "images/edema/e.dcm": ("edema", "images/edema/e.dcm", here),
    }


def test_an_image_sorted_by_hand_keeps_the_label_of_its_folder(tmp_path):
    touch(tmp_path, "NORMAL/person1_bacteria_1.jpeg", "PNEUMONIA/person2_virus_1.jpeg")
    assert [record.label for record in scan(tmp_path)] == ["normal", "viral"]


def test_dicom_files_without_a_suffix_are_found(tmp_path):
    touch(tmp_path, "normal/notes", "normal/README.7")
    (tmp_path / "normal" / "1.2.840.10008.7").write_bytes(bytes(128) + b"DICM" + bytes(8))
    assert [record.path for record in scan(tmp_path)] == ["normal/1.2.840.10008.7"]


def test_unlabelled_image_is_named(tmp_path):
    touch(tmp_path, "images/a.png")
    with pytest.raises(DataError, match=r"images/a\.png: no label"):
        scan(tmp_path)


def test_tables_of_labels_and_patients(tmp_path):
    touch(tmp_path, "images/a.png", "images/b.png", "images/unlisted.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label,patient,split\na.png,Bacteria,7,validation\nimages/b.png,NORMAL,8,\n")
    first, second = scan(tmp_path)
    assert (first.label, first.patient_id, first.split) == ("bacterial", "7", "val")
    assert (second.label, second.patient_id, second.split) == ("normal", "8", "")
    patients = tmp_path / "p.csv"
    patients.write_text("path,patient_id\na.png,one\nb.png,one\n")
    assert {record.patient_id for record in scan(tmp_path, patients_csv=patients)} == {"one"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nz.png,normal\n", "'z.png' is not in the folder"),
        ("file,label\na.png,normal\n", "ambiguous"),
        ("file,label\nx/a.png,normal\nx/a.png,viral\n", "listed twice"),
        ("file,colour\nx/a.png,normal\n", "no column 'label'"),
        ("name,label\nx/a.png,normal\n", "no column 'path'"),
        ("file,label\nx/a.png,\n", "no label"),
    ],
)
def test_wrong_tables_of_labels_are_named(tmp_path, text, message):
    touch(tmp_path, "x/a.png", "y/a.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        scan(tmp_path)


def test_fingerprint_follows_the_content_and_nothing_else(tmp_path):
    touch(tmp_path, "normal/a.png", "viral/b.png")
    manifest = scan(tmp_path)
    turned = manifest.with_records(replace(record, split="test") for record in reversed(manifest.records))
    assert turned.fingerprint() == manifest.fingerprint()
    (tmp_path / "normal/a.png").write_bytes(b"other")
    assert scan(tmp_path).fingerprint() != manifest.fingerprint()
    assert not any(record.sha256 for record in scan(tmp_path, hash_files=False))


def test_subset_labels_and_length(tmp_path):
    records = tuple(
        Record(f"{i}.png", label, str(i), split)
        for i, (label, split) in enumerate([("viral", "train"), ("normal", "test"), ("viral", "test")])
    )
    manifest = Manifest(records, tmp_path)
    assert len(manifest) == 3
    assert manifest.labels() == ["normal", "viral"]
    assert [record.path for record in manifest.subset("test")] == ["1.png", "2.png"]


def test_written_csv_has_the_columns_of_the_contract(tmp_path):
    Manifest((Record("a.png", "normal", "p"),), tmp_path).write(tmp_path / "m.csv")
    with (tmp_path / "m.csv").open() as file:
        header = next(csv.reader(file))
    assert header == ["path", "label", "patient_id", "split", "sha256", "width", "height", "source"]


def test_real_folders(shared_data):
    kermany = scan(shared_data / "kermany-224", hash_files=False)
    labels = np.array([record.label for record in kermany])
    assert [(labels == name).sum() for name in ("normal", "bacterial", "viral")] == [1349, 2538, 1345]
    adults = scan(shared_data / "nih-adult", hash_files=False)
    assert len(adults) == 516
    assert len({record.patient_id for record in adults}) < 516


@pytest.mark.parametrize("label", ["Viral Pneumonia", "viral_pneumonia", "VIRUS", "viral"])
def test_a_manifest_may_spell_labels_as_folders_do(tmp_path, label):
    (tmp_path / "m.csv").write_text(f"path;Label;Patient ID\nx\\a.png;{label};1\n\n;;\n")
    (record,) = Manifest.read(tmp_path / "m.csv")
    assert (record.path, record.label, record.patient_id) == ("x/a.png", "viral", "1")


def test_a_row_of_labels_may_be_repeated_unchanged(tmp_path):
    touch(tmp_path, "x/a.png")
    (tmp_path / "labels.csv").write_text("file,label,x\na.png,Normal,1\na.png,Normal,2\n")
    assert [record.label for record in scan(tmp_path)] == ["normal"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("name", ["a\\b.png", " a.png", "normal/a.png "])
def test_a_name_that_would_be_read_as_another_is_not_written(tmp_path, name, suffix):
    path = tmp_path / f"m{suffix}"
    with pytest.raises(DataError, match="with its backslash or space at an end; rename the file") as caught:
        Manifest((Record(name, "normal", "p"),), tmp_path).write(path)
    assert str(caught.value).startswith(f"{path}: cannot hold the name ")
    assert not path.exists()


def test_a_manifest_has_one_root(tmp_path):
    for name in ("a", "b"):
        touch(tmp_path, f"{name}/x.png")
    (tmp_path / "m.csv").write_text("path,label,patient_id,root\nx.png,normal,1,a\ny.png,normal,2,b\n")
    with pytest.raises(DataError, match=r"m\.csv, row 2: root 'b' differs from 'a' in row 1"):
        Manifest.read(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_text("path,label,patient_id,root\nx.png,normal,1,a\ny.png,normal,2,a\n")
    assert Manifest.read(tmp_path / "m.csv").root == tmp_path / "a"
