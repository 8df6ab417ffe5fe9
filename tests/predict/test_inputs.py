from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images import write_image
from pneumoscope.errors import Reason, UnreadableImageError
from pneumoscope.parallel import Progress
from pneumoscope.predict.inputs import InputItem, expand, local_path


def names(paths) -> list[str]:
    return [Path(str(item.source)).name for item in expand(paths)]


def sources(paths) -> list[object]:
    return [item.source for item in expand(paths)]


def test_a_folder_gives_its_images_by_suffix_and_by_content_in_order(tmp_path):
    for name in ("b.png", "a.jpeg", "sub/z.PNG", ".hidden.png", ".git/c.png"):
        write_image(tmp_path / name)
    write_image(tmp_path / "noext.png").rename(tmp_path / "noext")
    (tmp_path / "notes.txt").write_text("no image")
    assert names(tmp_path) == ["a.jpeg", "b.png", "noext", "z.PNG"]


def test_files_are_given_as_they_were_named_even_where_they_do_not_exist(tmp_path):
    assert sources(["b.png", Path("a.png"), "b.png"]) == ["b.png", "a.png", "b.png"]
    assert sources("missing.csv") == ["missing.csv"]
    assert sources("x" * 5000) == ["x" * 5000]


def test_an_empty_folder_is_a_reason_and_not_silence(tmp_path):
    (item,) = expand(tmp_path)
    assert isinstance(item.source, UnreadableImageError)
    assert item.source.reason is Reason.NOT_FOUND
    assert item.label == item.source.path == str(tmp_path)


def test_a_csv_manifest_is_relative_to_its_folder_or_to_its_root(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "m.csv").write_text("label,path\nnormal,a.png\nviral,/b.png\nviral,\n", encoding="utf-8-sig")
    assert sources(tmp_path / "m.csv") == [str(tmp_path / "a.png"), "/b.png"]
    (tmp_path / "r.csv").write_text(f"path,root\na.png,{tmp_path / 'images'}\nb.png,gone\n")
    assert sources(tmp_path / "r.csv") == [
        str(tmp_path / "images" / "a.png"),
        str(tmp_path / "b.png"),
    ]


def test_a_manifest_gives_age_and_view_where_it_has_them(tmp_path):
    (tmp_path / "m.csv").write_text("path,age,view\na.png,034Y,pa\nb.png,old,oblique\n")
    first, second = expand(tmp_path / "m.csv")
    assert (first.age, first.view) == (34.0, "PA")
    assert (second.age, second.view) == (None, "unknown")


@pytest.mark.parametrize(
    ("header", "age", "view"),
    [
        ("path,Patient Age,View Position", "045Y", "PA"),
        ("file,patient_age,view_position", "45", "pa"),
        ("Image Index,PatientAge,ViewPosition", "540M", "PA ERECT"),
        ("filename,age,view", "45", "PA"),
    ],
)
def test_columns_of_a_manifest_may_have_the_names_of_public_data_sets(tmp_path, header, age, view):
    (tmp_path / "m.csv").write_text(f"{header}\na.png,{age},{view}\n")
    (item,) = expand(tmp_path / "m.csv")
    assert (item.source, item.age, item.view) == (str(tmp_path / "a.png"), 45.0, "PA")


def test_parquet_may_have_these_names_too(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"Image Index": ["a.png"], "Patient Age": [45], "View Position": ["PA"]})
    parquet.write_table(table, tmp_path / "m.parquet")
    (item,) = expand(tmp_path / "m.parquet")
    assert (item.source, item.age, item.view) == (str(tmp_path / "a.png"), 45.0, "PA")


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("file:///xrays/a.png", "/xrays/a.png"),
        ("file://localhost/xrays/a.png", "/xrays/a.png"),
        ("FILE:/xrays/a%20b%25.png", "/xrays/a b%.png"),
        ("file:///r%C3%B6ntgen/%FF.png", os.fsdecode(b"/r\xc3\xb6ntgen/\xff.png")),
        ("file:///a?b#c", "/a?b#c"),
        ("file://otherhost/a.png", "file://otherhost/a.png"),
        ("s3://bucket/a%20b.png", "s3://bucket/a%20b.png"),
        ("/xrays/a%20b.png", "/xrays/a%20b.png"),
        ("file.png", "file.png"),
    ],
)
def test_a_file_uri_is_a_path(location, path):
    assert local_path(location) == path


def test_files_folders_and_rows_may_be_file_uris(tmp_path):
    image = write_image(tmp_path / "in x" / "a b.png")
    uri = (tmp_path / "in x").as_uri()
    (tmp_path / "m.csv").write_text(f"path\n{image.as_uri()}\n")
    given = [uri, image.as_uri(), Path(uri), (tmp_path / "m.csv").as_uri()]
    assert sources(given) == [str(image)] * 4


def test_a_parquet_manifest_is_read_alike(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pa.table({"label": ["normal", "viral"], "path": ["a.png", None]}), tmp_path / "m.parquet"
    )
    assert sources([tmp_path / "m.parquet"]) == [str(tmp_path / "a.png")]
    parquet.write_table(pa.table({"label": ["normal"]}), tmp_path / "n.parquet")
    (item,) = expand(tmp_path / "n.parquet")
    assert item.label == str(tmp_path / "n.parquet")
    assert "no column 'path'" in item.source.detail


def test_a_root_that_is_a_number_is_read_as_text(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "7").mkdir()
    table = pa.table({"path": ["a.png", "b.png", "c.png"], "root": [7, 8, None]})
    parquet.write_table(table, tmp_path / "m.parquet")
    names = ("7/a.png", "b.png", "c.png")
    assert sources(tmp_path / "m.parquet") == [str(tmp_path / name) for name in names]


def is_row(item: InputItem, path: Path) -> bool:
    """Return whether an item is an image, or the reason why the table is none."""
    if isinstance(item.source, UnreadableImageError):
        return item.source.path.startswith(str(path)) and "\n" not in str(item.source)
    return isinstance(item.source, str)


@given(content=st.binary(max_size=300), suffix=st.sampled_from([".csv", ".parquet"]))
def test_any_bytes_as_a_manifest_give_rows_or_one_clear_error(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"fuzzed{suffix}"
    path.write_bytes(content)
    assert all(is_row(item, path) for item in expand(path))


@given(st.lists(st.sampled_from(["a.png", "", "b,c", '"', "\n", "\0", "é"]), max_size=6))
def test_any_table_with_a_path_column_gives_rows_or_one_clear_error(tmp_path_factory, cells):
    path = tmp_path_factory.getbasetemp() / "fuzzed-rows.csv"
    path.write_text("path,label\n" + "\n".join(cells), encoding="utf-8")
    assert all(is_row(item, path) for item in expand(path))


def test_nothing_stops_the_others(tmp_path):
    image = str(write_image(tmp_path / "a.png"))
    (tmp_path / "no.csv").write_text("name;label\nx;y\n")
    (tmp_path / "bad.csv").write_bytes(b"path\nb.png\n\xff\n")
    os.mkfifo(tmp_path / "pipe")
    given = [tmp_path / "no.csv", tmp_path / "pipe", "", tmp_path / "bad.csv", "/dev/null", image]
    items = list(expand(given))
    assert [item.label for item in items if isinstance(item.source, str)] == [image]
    reasons = [item.source.reason for item in items if isinstance(item.source, UnreadableImageError)]
    assert reasons == [
        Reason.NOT_AN_IMAGE,
        Reason.NOT_AN_IMAGE,
        Reason.NOT_FOUND,
        Reason.NOT_AN_IMAGE,
        Reason.NOT_AN_IMAGE,
    ]
    assert "found name, label" in items[0].source.detail


def test_a_row_of_a_manifest_that_is_a_pipe_is_a_reason(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "m.csv").write_text("path\npipe.png\na.png\n")
    first, second = expand(tmp_path / "m.csv")
    assert (first.source.reason, first.label) == (Reason.NOT_AN_IMAGE, str(tmp_path / "pipe.png"))
    assert second.source == str(tmp_path / "a.png")


def test_a_manifest_from_a_spreadsheet_is_read(tmp_path):
    (tmp_path / "m.csv").write_bytes(
        "Path;Age; View\r\nsub\\a.png;34;XTABLE LATERAL\r\n;;\r\n".encode("utf-16")
    )
    (item,) = expand(tmp_path / "m.csv")
    assert (item.source, item.age, item.view) == (str(tmp_path / "sub" / "a.png"), 34.0, "LL")


def test_what_is_left_out_of_a_folder_is_said(tmp_path):
    for name in ("images/a.png", "masks/a.png"):
        write_image(tmp_path / name)
    lines: list[str] = []

    class Said(Progress):
        def message(self, line: str) -> None:
            lines.append(line)

    assert [Path(item.label).parent.name for item in expand(tmp_path, progress=Said())] == ["images"]
    assert len(lines) == 1


def test_rows_without_a_path_are_counted_in_a_line(tmp_path, caplog):
    (tmp_path / "m.csv").write_text("path,label\na.png,normal\n,viral\n,normal\n,\n")
    assert names(tmp_path / "m.csv") == ["a.png"]
    assert caplog.messages == [f"{tmp_path / 'm.csv'}: 2 rows without a path left out"]


@pytest.mark.parametrize("text", ["path\n", "path,label\n,normal\n"])
def test_a_manifest_that_names_no_image_is_a_reason_among_the_others(tmp_path, text):
    (tmp_path / "m.csv").write_text(text)
    none, image = expand([tmp_path / "m.csv", write_image(tmp_path / "a.png")])
    assert (none.label, none.source.reason) == (str(tmp_path / "m.csv"), Reason.NOT_FOUND)
    assert image.source == str(tmp_path / "a.png")
