"""Runs on a real Ray: rows, options, errors, object stores."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from pathlib import Path

import pytest
from pyarrow import dataset, parquet

from images import write_image
from pneumoscope import Predictor
from pneumoscope.errors import DataError, MissingExtraError, Reason, UnreadableImageError
from pneumoscope.report.rows import to_row
from pneumoscope.serve.batch import BatchSettings, run_batch
from pneumoscope.serve.batch.run import _check_reachable, _plain
from pneumoscope.serve.batch.store import filesystem, open_store

# Ray starts a process for each worker, which takes minutes on a busy machine.
pytestmark = [pytest.mark.usefixtures("ray_address"), pytest.mark.timeout(600)]


def rows_of(output: Path) -> list[dict]:
    return sorted(dataset.dataset(output / "parts").to_table().to_pylist(), key=lambda row: row["id"])


def expected_rows(bundle, paths) -> list[dict]:
    manifest = bundle.manifest
    made = Predictor(bundle, workers=1).predict(paths)
    return [to_row(one, manifest.classes, manifest.target.name) for one in made]


@pytest.mark.parametrize(
    "cause",
    [
        DataError("a row"),
        UnreadableImageError("a.png", Reason.CORRUPT, "damaged"),
        MissingExtraError("Prediction", "serve"),
    ],
)
def test_an_error_of_a_worker_is_raised_as_it_was(cause):
    try:
        raise RuntimeError("ray::task() raised") from cause
    except RuntimeError as error:
        found = _plain(error)
    assert (type(found), str(found)) == (type(cause), str(cause))


def test_the_rows_are_those_of_predict_with_id_and_hash(tiny, folder, tmp_path):
    (folder / "03.png").write_bytes(b"no image")
    write_image(folder / "05.png", height=20, width=20)
    summary = run_batch(str(folder), str(tmp_path / "out"), tiny, part_size=5)
    rows = rows_of(tmp_path / "out")
    assert [row.pop("id") for row in rows] == list(range(12))
    for row in rows:
        assert row.pop("sha256") == hashlib.sha256(Path(row["path"]).read_bytes()).hexdigest()
    assert rows == expected_rows(tiny, folder)
    assert (summary.ok, summary.rejected, summary.unreadable) == (10, 1, 1)
    assert summary.adds_up
    stored = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert stored["adds_up"] is True
    assert stored["reasons"] == {"not_an_image": 1, "too_small": 1}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "bundle",
        "manifest.parquet",
        "parts",
        "run.json",
        "summary.json",
    ]


def test_input_output_and_rows_may_be_file_uris(tiny, folder, tmp_path):
    source = folder.rename(tmp_path / "in x")
    (source / "m.csv").write_text(f"path\n{(source / '00.png').as_uri()}\n{(source / '01.png').as_uri()}\n")
    output = tmp_path / "out x"
    summary = run_batch((source / "m.csv").as_uri(), output.as_uri(), tiny)
    assert (summary.ok, summary.adds_up) == (2, True)
    assert [row["path"] for row in rows_of(output)] == [str(source / "00.png"), str(source / "01.png")]
    # The same folder, written as a path: the run that is there is found finished.
    again = run_batch(str(source / "m.csv"), str(output), tiny)
    assert (again.rows, again.images_predicted) == (2, 0)


def test_missing_and_repeated_images_of_a_manifest_are_rows(tiny, folder, tmp_path):
    (folder / "copy.png").write_bytes((folder / "00.png").read_bytes())
    (folder / "m.csv").write_text("path,age\n00.png,3\ngone.png,\n00.png,\ncopy.png,\n")
    summary = run_batch(str(folder / "m.csv"), str(tmp_path / "out"), tiny)
    rows = rows_of(tmp_path / "out")
    names = [Path(row["path"]).name for row in rows]
    assert names == ["00.png", "gone.png", "00.png", "copy.png"]
    assert [row["sha256"] is None for row in rows] == [False, True, False, False]
    assert rows[1]["reasons"] == ["not_found"]
    assert (summary.rows, summary.unreadable, summary.same_content) == (4, 1, 2)
    assert summary.adds_up


def test_a_second_start_does_nothing_and_one_after_a_loss_does_what_is_lost(tiny, folder, tmp_path):
    output = tmp_path / "out"
    run_batch(str(folder), str(output), tiny, part_size=3)
    before = rows_of(output)
    times = {path.name: path.stat().st_mtime_ns for path in (output / "parts").iterdir()}
    assert run_batch(str(folder), str(output), tiny).images_predicted == 0
    assert {path.name: path.stat().st_mtime_ns for path in (output / "parts").iterdir()} == times
    (output / "parts" / "part-0000001.parquet").unlink()
    whole = (output / "parts" / "part-0000002.parquet").read_bytes()
    (output / "parts" / "part-0000002.parquet").write_bytes(whole[:-20])
    (output / "parts" / "part-0000003.parquet").write_bytes(whole)  # the part of another name
    (output / "parts" / ".part-0000001.parquet.1234.draft").write_bytes(whole[:100])
    summary = run_batch(str(folder), str(output), tiny)
    assert summary.images_predicted == 9
    assert summary.adds_up
    assert rows_of(output) == before
    assert not list((output / "parts").glob(".*"))


def test_other_inputs_bundles_and_options_are_rejected_in_one_line(tiny, folder, tmp_path, monkeypatch):
    from bundles import make_bundle

    output = str(tmp_path / "out")
    run_batch(str(folder), output, tiny, part_size=12)
    other = make_bundle(tmp_path / "other", seed=1)
    for change, words in (
        ({"bundle": other}, "another bundle"),
        ({"operating_point": "balanced"}, "another --operating-point"),
        ({"force": True}, "another --force"),
        ({"part_size": 4}, "another --part-size"),
    ):
        with pytest.raises(DataError, match=words):
            run_batch(str(folder), output, **({"bundle": tiny} | change))
    monkeypatch.chdir(folder.parent)
    with pytest.raises(
        DataError, match=r"or INPUT written another way; give it as before, or name another folder"
    ):
        run_batch(folder.name, output, tiny)
    write_image(folder / "new.png", seed=40)
    with pytest.raises(DataError, match=r"other inputs \(12 images, now 13\).*name another folder") as raised:
        run_batch(str(folder), output, tiny)
    assert "\n" not in str(raised.value)


def test_parts_of_no_run_are_found_at_the_end(tiny, folder, tmp_path):
    output = tmp_path / "out"
    run_batch(str(folder), str(output), tiny, part_size=6)
    (output / "parts" / "part-0000009.parquet").write_bytes(
        (output / "parts" / "part-0000001.parquet").read_bytes()
    )
    summary = run_batch(str(folder), str(output), tiny)
    assert not summary.adds_up
    assert summary.foreign_parts == ["part-0000009.parquet"]


def test_what_cannot_begin_is_one_line(tiny, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "gone", tmp_path / "empty"):
        with pytest.raises(DataError, match=source.name):
            run_batch(str(source), str(tmp_path / "out"), tiny)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be"):
        run_batch(str(folder), str(tmp_path / "file"), tiny)
    with pytest.raises(DataError, match="no GPU"):
        run_batch(str(folder), str(tmp_path / "gpu"), tiny, settings=BatchSettings(device="cuda"))


def test_a_worker_that_cannot_begin_is_one_line(tiny, folder, tmp_path):
    output = tmp_path / "out"
    run_batch(str(folder), str(output), tiny)
    (output / "parts" / "part-0000000.parquet").unlink()
    (output / "bundle" / "model.onnx").write_bytes(b"changed")
    with pytest.raises(DataError, match=r"model\.onnx") as raised:
        run_batch(str(folder), str(output), tiny)
    assert "\n" not in str(raised.value)


def test_an_object_store_is_input_and_output(tiny, folder, tmp_path, store_options):
    bucket = filesystem("s3", "xrays", store_options)
    (folder / "04.png").write_bytes(b"")
    for path in sorted(folder.rglob("*.png")):
        with bucket.open_output_stream(f"xrays/in/{path.relative_to(folder)}") as file:
            file.write(path.read_bytes())
    with bucket.open_output_stream("xrays/in/odd name #1.png") as file:
        file.write((folder / "00.png").read_bytes())
    with bucket.open_output_stream("xrays/in/notes.txt") as file:
        file.write(b"no image")
    source, output = f"s3://xrays/in?{store_options}", f"s3://xrays/out?{store_options}"
    summary = run_batch(source, output, tiny, part_size=5)
    assert summary.adds_up
    assert (summary.entries, summary.ok, summary.unreadable) == (13, 12, 1)
    # By name: some stores cannot say whether a prefix is a folder.
    found = [f"xrays/out/parts/{name}" for name in open_store(output).names("parts")]
    table = parquet.read_table(found, filesystem=bucket)
    rows = sorted(table.to_pylist(), key=lambda row: row["id"])
    by_name = {row["path"].rpartition("/")[2]: row for row in rows}
    assert by_name["04.png"]["reasons"] == ["empty_file"]
    assert by_name["odd name #1.png"]["sha256"] == by_name["00.png"]["sha256"]
    assert rows[-1]["path"] == "s3://xrays/in/sub/11.png"
    expected = {Path(row["path"]).name: row["p_pneumonia"] for row in expected_rows(tiny, folder)}
    assert {name: by_name[name]["p_pneumonia"] for name in expected} == expected
    bucket.delete_file("xrays/out/parts/part-0000001.parquet")
    assert run_batch(source, output, tiny).images_predicted == 5
    stored = json.loads(bucket.open_input_stream("xrays/out/summary.json").read())
    assert stored["adds_up"] is True


def test_a_manifest_in_an_object_store_names_objects_relative_to_it(tiny, folder, tmp_path, store_options):
    bucket = filesystem("s3", "xrays", store_options)
    with bucket.open_output_stream("xrays/table/a/0.png") as file:
        file.write((folder / "00.png").read_bytes())
    with bucket.open_output_stream("xrays/table/m.csv") as file:
        file.write(b"path,view\na/0.png,PA\na/gone.png,\ns3://xrays/table/a/0.png,\n")
    summary = run_batch(f"s3://xrays/table/m.csv?{store_options}", str(tmp_path / "out"), tiny)
    rows = rows_of(tmp_path / "out")
    assert [row["status"] for row in rows] == ["ok", "unreadable", "ok"]
    assert [row["path"] for row in rows][:2] == ["s3://xrays/table/a/0.png", "s3://xrays/table/a/gone.png"]
    assert summary.same_content == 1


def test_a_cluster_that_is_not_there_is_one_line_before_ray_waits_for_it():
    for address in ("127.0.0.1:1", "ray://[::1]:1"):
        with pytest.raises(DataError, match=rf"--address {re.escape(address)}: Ray cannot be reached \("):
            _check_reachable(address)
    with socket.create_server(("127.0.0.1", 0)) as server:
        for address in (f"127.0.0.1:{server.getsockname()[1]}", "auto", "ray://cluster"):
            _check_reachable(address)


def test_a_store_that_cannot_be_reached_is_one_line(tiny, tmp_path):
    with pytest.raises(DataError, match="cannot be listed"):
        run_batch("s3://xrays/in?endpoint_override=http://127.0.0.1:9", str(tmp_path / "out"), tiny)
