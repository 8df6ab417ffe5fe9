from __future__ import annotations

import csv
import json
import sys

import pytest

from pneumoscope.domain import Prediction
from pneumoscope.errors import DataError, MissingExtraError
from pneumoscope.report.rows import COLUMNS, to_row
from pneumoscope.report.writers import RESULT_SUFFIXES, open_results, replacing

ROWS = [
    Prediction(
        "a,b\n.png", "ok", (), 0.25, 0.5, 0.25, 0.75, "bacterial", "pneumonia", "balanced", ("viral",), "b@1"
    ),
    Prediction("=cmd|'/c calc'!A1.png", "unreadable", ("corrupt",), bundle="b@1"),
    Prediction("r\udcffntgen.png", "rejected", ("too_small", "cropped"), bundle="b@1"),
]


def write(path, rows):
    with open_results(path) as add:
        for row in rows:
            add(row)
    return path


def test_csv_reads_back_and_cannot_act(tmp_path):
    with write(tmp_path / "o.csv", ROWS).open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert tuple(found[0]) == COLUMNS
    assert found[0]["path"] == "a,b\n.png"
    assert float(found[0]["p_pneumonia"]) == 0.75
    assert found[1]["path"].startswith("'=")
    assert found[2]["reasons"] == "too_small;cropped"


@pytest.mark.parametrize("rows", [ROWS, []])
def test_json_and_json_lines_hold_the_same_rows(tmp_path, rows):
    expected = [dict(to_row(row)) for row in rows]
    assert json.loads(write(tmp_path / "o.json", rows).read_text("utf-8")) == expected
    lines = write(tmp_path / "o.jsonl", rows).read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == expected


@pytest.mark.parametrize("count", [0, 3, 8195])
def test_parquet_reads_back_with_types(tmp_path, count):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = (ROWS * (count // 3 + 1))[:count]
    found = parquet.read_table(write(tmp_path / "o.parquet", rows))
    assert found.column_names == list(COLUMNS)
    assert found.to_pylist() == [dict(to_row(row)) for row in rows]


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
        open_results(tmp_path / "o.xlsx")
    with (
        pytest.raises(DataError, match=r"gone/o\.csv: cannot write there"),
        replacing(tmp_path / "gone" / "o.csv"),
    ):
        pass


def test_parquet_without_its_extra_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pneumoscope\[parquet\]"):
        write(tmp_path / "o.parquet", ROWS)
