from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from images import write_image
from pneumoscope.errors import DataError, Reason, UnreadableImageError
from pneumoscope.predict.inputs import expand


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


def test_a_parquet_manifest_is_read_alike(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pa.table({"label": ["normal", "viral"], "path": ["a.png", None]}), tmp_path / "m.parquet"
    )
    assert sources([tmp_path / "m.parquet"]) == [str(tmp_path / "a.png")]
    parquet.write_table(pa.table({"label": ["normal"]}), tmp_path / "n.parquet")
    with pytest.raises(DataError, match=r"n\.parquet: no column 'path'"):
        list(expand(tmp_path / "n.parquet"))


@given(content=st.binary(max_size=300), suffix=st.sampled_from([".csv", ".parquet"]))
def test_any_bytes_as_a_manifest_give_rows_or_one_clear_error(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"fuzzed{suffix}"
    path.write_bytes(content)
    try:
        assert all(isinstance(item.source, str) for item in expand(path))
    except DataError as error:
        assert str(error).startswith(str(path))


@given(st.lists(st.sampled_from(["a.png", "", "b,c", '"', "\n", "\0", "é"]), max_size=6))
def test_any_table_with_a_path_column_gives_rows_or_one_clear_error(tmp_path_factory, cells):
    path = tmp_path_factory.getbasetemp() / "fuzzed-rows.csv"
    path.write_text("path,label\n" + "\n".join(cells), encoding="utf-8")
    try:
        assert all(isinstance(item.source, str) for item in expand(path))
    except DataError as error:
        assert str(error).startswith(str(path))
