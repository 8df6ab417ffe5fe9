from __future__ import annotations

import csv
import errno
import json
import sys
from pathlib import Path

import pytest

from pneumoscope.domain import Prediction
from pneumoscope.errors import DataError, MissingExtraError
from pneumoscope.report.rows import columns, to_row
from pneumoscope.report.writers import RESULT_SUFFIXES, open_results, replacing, unfinished_path
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


@pytest.fixture
def small_files():
    """No file may grow beyond 16 kB, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_a_full_disk_is_one_clear_error_and_finished_rows_are_kept(tmp_path, suffix):
    path = tmp_path / f"o{suffix}"
    with pytest.raises(DataError, match=r"cannot be written \(File too large\); free some space"):
        write(path, ROWS * 1000)
    assert path.stat().st_size == 16_384
    assert "a,b" in path.read_text("utf-8")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("small_files")
def test_a_file_that_does_not_fit_replaces_nothing(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("before")
    with pytest.raises(DataError, match="cannot be written"), replacing(path) as file:
        file.write("x" * 100_000)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


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


def finished(path) -> list[str]:
    """Return the paths of the rows in a table of results."""
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path)["path"].to_pylist()
    text = path.read_text("utf-8")
    if path.suffix == ".csv":
        return [row["path"] for row in csv.DictReader(text.splitlines())]
    rows = json.loads(text) if path.suffix == ".json" else map(json.loads, text.splitlines())
    return [row["path"] for row in rows]


def stopped(count, error):
    yield from [SUBTYPES.prediction(f"{n}.png", SUBTYPES.positive) for n in range(count)]
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("elsewhere")])
@pytest.mark.parametrize("suffix", RESULT_SUFFIXES)
def test_an_interrupted_run_leaves_what_was_finished_and_no_draft(tmp_path, suffix, error):
    path = tmp_path / f"o{suffix}"
    with pytest.raises(type(error)):
        write(path, stopped(3, error))
    assert finished(path) == ["0.png", "1.png", "2.png"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", RESULT_SUFFIXES)
def test_an_interrupted_run_leaves_the_old_table(tmp_path, suffix):
    path = tmp_path / f"o{suffix}"
    path.write_text("old")
    partial = unfinished_path(path)
    with pytest.raises(KeyboardInterrupt):
        write(path, stopped(0, KeyboardInterrupt()))
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt):
        write(path, stopped(1, KeyboardInterrupt()))
    assert path.read_text() == "old"
    assert finished(partial) == ["0.png"]
    assert sorted(tmp_path.iterdir()) == sorted([path, partial])


def test_what_cannot_take_its_name_is_kept_under_another(tmp_path, monkeypatch):
    path = tmp_path / "o.csv"
    replace = Path.replace

    def in_use(draft, target):
        if target == path:
            raise PermissionError(13, "Permission denied")
        return replace(draft, target)

    monkeypatch.setattr(Path, "replace", in_use)
    with pytest.raises(DataError, match=r"o\.partial\.csv"):
        write(path, ROWS)
    assert len(finished(tmp_path / "o.partial.csv")) == 3


def test_a_folder_is_no_file_to_write(tmp_path):
    (tmp_path / "o.csv").mkdir()
    with pytest.raises(DataError, match="this is a folder"):
        write(tmp_path / "o.csv", ROWS)


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
    with pytest.raises(MissingExtraError, match=r"\.\[parquet\]"):
        write(tmp_path / "o.parquet", ROWS)


@pytest.mark.parametrize("suffix", RESULT_SUFFIXES)
def test_an_error_of_another_file_is_not_blamed_on_the_table(tmp_path, suffix):
    path = tmp_path / f"o{suffix}"
    with pytest.raises(BrokenPipeError):
        write(path, stopped(2, BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert finished(path) == ["0.png", "1.png"]
