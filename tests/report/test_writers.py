from __future__ import annotations

import csv
import json
import sys

import pytest

from pneumoscope.domain import Prediction
from pneumoscope.errors import DataError, MissingExtraError
from pneumoscope.report.rows import columns, to_row
from pneumoscope.report.writers import RESULT_SUFFIXES, open_results, replacing
from predictions import BUNDLES, SUBTYPES, Example


def rows_of(example: Example) -> list[Prediction]:
    return [
        example.prediction("a,b\n.png", example.positive, operating_point="balanced", bundle="b@1"),
        Prediction("=cmd|'/c calc'!A1.png", "unreadable", ("corrupt",), bundle="b@1"),
        Prediction("r\udcffntgen.png", "rejected", ("too_small", "cropped"), bundle="b@1"),
    ]


ROWS = rows_of(SUBTYPES)
any_bundle = pytest.mark.parametrize("example", BUNDLES, ids=lambda example: "-".join(example.classes))


def write(path, rows, example=SUBTYPES):
    with open_results(path, classes=example.classes, target=example.target) as add:
        for row in rows:
            add(row)
    return path


@any_bundle
def test_csv_reads_back_and_cannot_act(tmp_path, example):
    with write(tmp_path / "o.csv", rows_of(example), example).open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert tuple(found[0]) == columns(*example.names)
    assert found[0]["path"] == "a,b\n.png"
    assert {name: float(found[0][name]) for name in example.columns} == example.columns
    assert found[1]["path"].startswith("'=")
    assert found[2]["reasons"] == "too_small;cropped"
    assert found[2][f"p_{example.target}"] == ""


@any_bundle
@pytest.mark.parametrize("count", [3, 0])
def test_json_and_json_lines_hold_the_same_rows(tmp_path, count, example):
    rows = rows_of(example)[:count]
    expected = [to_row(row, *example.names) for row in rows]
    assert json.loads(write(tmp_path / "o.json", rows, example).read_text("utf-8")) == expected
    lines = write(tmp_path / "o.jsonl", rows, example).read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == expected
    assert all(tuple(row) == columns(*example.names) for row in expected)


@any_bundle
@pytest.mark.parametrize("count", [0, 3, 8195])
def test_parquet_reads_back_with_types(tmp_path, count, example):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = (rows_of(example) * (count // 3 + 1))[:count]
    found = parquet.read_table(write(tmp_path / "o.parquet", rows, example))
    assert found.column_names == list(columns(*example.names))
    assert {str(found.schema.field(name).type) for name in example.columns} == {"double"}
    assert found.to_pylist() == [to_row(row, *example.names) for row in rows]


@pytest.mark.parametrize("suffix", RESULT_SUFFIXES)
def test_an_interrupted_run_leaves_the_old_table_and_no_draft(tmp_path, suffix):
    path = tmp_path / f"o{suffix}"
    path.write_text("old")

    def interrupted():
        yield ROWS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, interrupted())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match=r"\.csv, \.json, \.jsonl, \.parquet"):
        open_results(tmp_path / "o.xlsx", classes=SUBTYPES.classes, target=SUBTYPES.target)
    with (
        pytest.raises(DataError, match=r"gone/o\.csv: cannot write there"),
        replacing(tmp_path / "gone" / "o.csv"),
    ):
        pass


def test_parquet_without_its_extra_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pneumoscope\[parquet\]"):
        write(tmp_path / "o.parquet", ROWS)
