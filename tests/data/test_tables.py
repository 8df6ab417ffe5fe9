"""Tables: rows in CSV and Parquet, and cells with age, sex and view."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.data.tables import (
    parse_age,
    parse_sex,
    parse_view,
    read_rows,
    require_columns,
    write_rows,
)
from pneumoscope.errors import DataError


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("42", 42),
        ("042Y", 42),
        (" 3 ", 3),
        ("006M", 0.5),
        ("0", 0),
        (36, 36),
        (3.5, 3.5),
        ("003 Y", 3),
        ("42 years", 42),
    ],
)
def test_ages(text, years):
    assert parse_age(text) == pytest.approx(years)


@pytest.mark.parametrize("text", ["", None, "old", "-3", "411", "nan", "1e3", "12Q", "126"])
def test_other_text_is_no_age(text):
    assert parse_age(text) is None


def test_sex_and_view():
    assert [parse_sex(text) for text in ("F", "male", " o ", "", None, "?")] == ["F", "M", "O", "", "", ""]
    assert [parse_view(text) for text in ("pa", "AP", "Lateral", "", None, "x")] == [
        "PA",
        "AP",
        "LL",
        "",
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("text", "view"),
    [("P.A.", "PA"), ("PERFIL", "LL"), ("AP LORDOTIC", ""), ("PA OBLIQUE", ""), ("postero-anterior", "PA")],
)
def test_views_are_read_as_those_of_a_header(text, view):
    assert parse_view(text) == view


def test_a_name_that_is_no_text_is_one_clear_line(tmp_path):
    with pytest.raises(
        DataError, match=r"m\.csv: cannot hold a file name .*r\\udcffntgen.*; rename the file"
    ):
        write_rows(tmp_path / "m.csv", [{"path": "r\udcffntgen.png"}], ("path",))


@given(st.text(max_size=10))
def test_any_text_gives_a_valid_value_or_none(text):
    age = parse_age(text)
    assert age is None or 0 <= age <= 125
    assert parse_sex(text) in {"F", "M", "O", ""}
    assert parse_view(text) in {"AP", "PA", "LL", ""}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_are_read_as_written_in_order(tmp_path, suffix):
    path = tmp_path / "new" / f"t{suffix}"
    rows = [{"path": f"{i}.png", "width": i, "age": None if i % 2 else i / 2} for i in range(10_000)]
    write_rows(path, rows, ("path", "width", "age"), types={"width": int, "age": float})
    columns, found = read_rows(path)
    assert columns == ["path", "width", "age"]
    text = suffix == ".csv"
    expected = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows] if text else rows
    assert list(found) == expected


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_may_be_left_half_read(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    write_rows(path, [{"a": "1", "b": "2"}] * 3, ("a", "b"))
    _, rows = read_rows(path, only=["a"])
    assert next(rows)["a"] == "1"
    del rows
    path.unlink()


def test_only_the_chosen_columns_of_parquet_are_read(tmp_path):
    path = tmp_path / "t.parquet"
    write_rows(path, [{"a": "1", "b": "2"}], ("a", "b"))
    columns, rows = read_rows(path, only=["b", "c"])
    assert columns == ["a", "b"]
    assert list(rows) == [{"b": "2"}]


def test_cells_beyond_the_header_are_left_out_and_missing_ones_are_none(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\ufeffa,b\n1,2,3\n4\n", encoding="utf-8")
    assert list(read_rows(path)[1]) == [{"a": "1", "b": "2"}, {"a": "4", "b": None}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", None, "cannot be read"),
        ("t.parquet", None, "cannot be read"),
        ("t.parquet", b"PAR1 no", "cannot be read"),
        ("t.csv", b"a,b\n\xff,1\n", "UTF-8"),
        ("t.csv", b'a,b\n"1,2\n', "no CSV table"),
        ("t.xlsx", b"a", "a .csv or a .parquet"),
    ],
)
def test_a_wrong_table_is_one_line_that_names_it(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_rows(path)[1])
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_table_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_rows(tmp_path / "file" / "t.csv", [], ("a",))
    with pytest.raises(DataError, match=r"name a \.csv"):
        write_rows(tmp_path / "t.txt", [], ("a",))


@pytest.mark.parametrize("text", ["XTABLE LATERAL", "LL", "L", "LEFT LATERAL", "LATERAL", "lat", "RL"])
def test_words_for_a_lateral_view(text):
    assert parse_view(text) == "LL"


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("PA ERECT", "PA"),
        ("AP_SUPINE", "AP"),
        ("antero-posterior", "AP"),
        ("POSTEROANTERIOR", "PA"),
        ("AP AND LATERAL", ""),
        ("LATERAL DECUBITUS", ""),
    ],
)
def test_views_in_several_words(text, view):
    assert parse_view(text) == view


ROWS = [
    {"path": "x/a.png", "label": "Normal", "patient_id": "1"},
    {"path": "x/b.png", "label": "", "patient_id": ""},
]


@pytest.mark.parametrize(
    "content",
    [
        b"path,label,patient_id\nx/a.png,Normal,1\nx/b.png,,\n",
        b"path;label;patient_id\nx/a.png;Normal;1\nx/b.png;;\n",
        b"path\tlabel\tpatient_id\nx/a.png\tNormal\t1\nx/b.png\t\t\n",
        b"path|label|patient_id\nx/a.png|Normal|1\nx/b.png||\n",
        b"sep=;\r\npath;label;patient_id\r\nx/a.png;Normal;1\r\nx/b.png;;\r\n",
        b"path,label,patient_id\r\nx\\a.png,Normal,1\r\nx\\b.png,,\r\n",
        b"path,label,patient_id\rx/a.png,Normal,1\rx/b.png,,\r",
        b"Path, Label ,Patient ID\n x/a.png , Normal, 1\nx/b.png, ,\n",
        b'"path", "label", "patient-id"\n"x/a.png", "Normal", "1"\n"x/b.png", "", ""\n',
        b"\xef\xbb\xbfpath,label,patient_id\nx/a.png,Normal,1\nx/b.png,,\n",
        b"\n,,\npath,label,patient_id\n,,\nx/a.png,Normal,1\n\n  ,,\nx/b.png,,\n,,\n",
        "path;label;patient_id\nx/a.png;Normal;1\nx/b.png;;\n".encode("utf-16"),
        "\ufeffpath\tlabel\tpatient_id\nx/a.png\tNormal\t1\nx/b.png\t\t\n".encode("utf-16-be"),
        "path,label,patient_id\nx/a.png,Normal,1\nx/b.png,,\n".encode("utf-16-le"),
    ],
)
def test_one_table_in_many_dialects(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    columns, rows = read_rows(path)
    assert (columns, list(rows)) == (["path", "label", "patient_id"], ROWS)


def test_quoted_cells_keep_the_delimiter_and_the_header_decides(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('path;"note, of the, reader"\na.png;"one; two, three"\n')
    columns, rows = read_rows(path)
    assert columns == ["path", "note,_of_the,_reader"]
    assert list(rows) == [{"path": "a.png", "note,_of_the,_reader": "one; two, three"}]


def test_parquet_follows_the_same_rules(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"Path": ["x\\a.png ", None], "Patient ID": ["1", ""], "AGE": [3, None]})
    parquet.write_table(table, tmp_path / "t.parquet")
    columns, rows = read_rows(tmp_path / "t.parquet", only=["path", "age"])
    assert columns == ["path", "patient_id", "age"]
    assert list(rows) == [{"path": "x/a.png", "age": 3}]


def test_a_cell_of_parquet_that_python_cannot_hold_is_one_line(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    late = pa.array([3 * 10**11], pa.timestamp("s"))
    text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff.png"]).buffers())
    for cells in (late, text):
        parquet.write_table(pa.table({"path": cells}), path)
        with pytest.raises(DataError, match="cannot be read"):
            list(read_rows(path)[1])


def test_other_names_of_columns_count_where_the_caller_allows_them(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("Image Index,Finding Labels,Patient ID,image,age,Patient Age\na.png,Normal,1,b.png,3,4\n")
    columns, rows = read_rows(path, aliases=True)
    assert columns == ["image_index", "label", "patient_id", "path", "age", "patient_age"]
    assert next(rows)["path"] == "b.png"
    assert "path" not in read_rows(path)[0]


def test_columns_that_are_missing_are_one_message(tmp_path):
    with pytest.raises(DataError) as caught:
        require_columns(tmp_path / "t.csv", ["file", "label"], ("path", "label", "patient_id"))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 't.csv'}: no column 'path', 'patient_id'; found file, label;")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("last", "error"), [("r\udcffntgen.png", DataError), (None, KeyboardInterrupt)], ids=["name", "stopped"]
)
def test_a_table_that_cannot_be_finished_leaves_the_old_one(tmp_path, suffix, last, error):
    path = tmp_path / f"t{suffix}"
    write_rows(path, [{"path": "old.png"}], ("path",))

    def rows():
        yield from ({"path": f"{number}.png"} for number in range(10_000))
        if last is None:
            raise KeyboardInterrupt
        yield {"path": last}

    with pytest.raises(error):
        write_rows(path, rows(), ("path",))
    assert list(read_rows(path)[1]) == [{"path": "old.png"}]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("column", ["decision", "bundle", "p_viral"])
def test_the_finding_of_a_table_of_predictions_is_no_label(tmp_path, column):
    table = tmp_path / "results.csv"
    table.write_text(f"path,finding,{column}\na.png,viral,x\n")
    columns, rows = read_rows(table, aliases=True)
    assert [row["path"] for row in rows] == ["a.png"], "a list of images all the same"
    with pytest.raises(DataError, match=r"results\.csv: a table of predictions, not of labels"):
        require_columns(table, columns, ("path", "label"))
    table.write_text(f"path,label,finding,{column}\na.png,normal,viral,x\n")
    assert [row["label"] for row in read_rows(table, aliases=True)[1]] == ["normal"]
    table.write_text("path,finding\na.png,viral\n")
    assert [row["label"] for row in read_rows(table, aliases=True)[1]] == ["viral"]
