"""Parts, their footers and the reconciliation, without Ray."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from images import write_image
from pneumoscope.errors import DataError
from pneumoscope.serve.batch import scorer as scorer_module
from pneumoscope.serve.batch.listing import Entry
from pneumoscope.serve.batch.parts import fault_of, part_name
from pneumoscope.serve.batch.plan import PLAN, prepare, read_plan
from pneumoscope.serve.batch.reconcile import reconcile
from pneumoscope.serve.batch.scorer import Scorer
from pneumoscope.serve.batch.store import filesystem, open_store


@pytest.fixture
def begun(folder, tmp_path, tiny):
    """A run of four parts that a worker in this process does."""
    store = open_store(str(tmp_path / "out"))
    plan = prepare(store, str(folder), tiny, part_size=3)
    return store, plan, Scorer(store.location, plan, "test", threads=2, device="cpu")


def test_a_worker_does_parts_in_any_order_and_twice(begun):
    store, plan, worker = begun
    for part in (3, 0, 2, 1):
        worker.score(part)
    first = store.read(part_name(2))
    worker.score(2)
    store.remove(part_name(2))
    worker.score(2)
    assert store.read(part_name(2)) == first
    assert reconcile(store, plan).adds_up
    assert worker({"part": [1]})["images"].tolist() == [3]


def test_what_does_not_add_up_is_counted(begun):
    store, plan, worker = begun
    for part in (0, 1, 2):
        worker.score(part)
    summary = reconcile(store, plan)
    assert (summary.missing, summary.rows, summary.adds_up) == (3, 9, False)
    store.put(part_name(3), store.read(part_name(0)))
    summary = reconcile(store, plan)
    assert (summary.missing, summary.repeated, summary.rows) == (3, 3, 12)
    assert not summary.adds_up


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -9])
def test_a_part_that_was_cut_off_is_not_there(begun, keep):
    store, plan, worker = begun
    worker.score(0)
    assert fault_of(store, plan, 0) is None
    store.put(part_name(0), store.read(part_name(0))[:keep])
    assert "not a complete Parquet file" in fault_of(store, plan, 0)
    if keep:
        with pytest.raises(DataError, match="damaged"):
            reconcile(store, plan)


def test_a_part_of_another_place_is_not_this_one(begun):
    store, plan, worker = begun
    worker.score(0)
    store.put(part_name(1), store.read(part_name(0)))
    assert fault_of(store, plan, 1) == "belongs to another run"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400))
def test_run_json_of_any_content_is_read_or_one_line(tmp_path, data):
    store = open_store(str(tmp_path / "any"))
    store.put(PLAN, data)
    with pytest.raises(DataError, match=r"run\.json: not a run of this version"):
        read_plan(store)


def test_a_later_format_is_rejected(begun):
    store, plan, _ = begun
    store.put(PLAN, plan.model_copy(update={"format": 2}).model_dump_json().encode())
    with pytest.raises(DataError, match="format 2"):
        read_plan(store)


def test_parts_without_a_run_are_not_continued(folder, tmp_path, tiny):
    store = open_store(str(tmp_path / "out"))
    store.put("parts/part-0000000.parquet", b"")
    with pytest.raises(DataError, match=r"no run\.json"):
        prepare(store, str(folder), tiny)


def test_another_folder_with_the_same_names_is_another_input(tmp_path, tiny, monkeypatch):
    store = open_store(str(tmp_path / "out"))
    for seed, ward in enumerate(("w1", "w2")):
        path = write_image(tmp_path / ward / "in" / "a.png", seed)
        os.utime(path, (10**9, 10**9))
        (path.parent / "m.csv").write_text("path\na.png\n")
    monkeypatch.chdir(tmp_path / "w1")
    prepare(store, "in", tiny)
    prepare(store, "in", tiny)
    monkeypatch.chdir(tmp_path / "w2")
    with pytest.raises(DataError, match=r"another INPUT \(\S+/w1/in, now \S+/w2/in\); name another folder"):
        prepare(store, "in", tiny)
    other = open_store(str(tmp_path / "other"))
    prepare(other, "in/m.csv", tiny)
    monkeypatch.chdir(tmp_path / "w1")
    with pytest.raises(DataError, match="another INPUT"):
        prepare(other, "in/m.csv", tiny)


def test_images_that_were_replaced_are_noticed(begun, folder, tiny):
    store, plan, _ = begun
    assert prepare(store, str(folder), tiny) == plan
    time = (folder / "03.png").stat().st_mtime
    os.utime(folder / "03.png", (time, time + 60))
    with pytest.raises(DataError, match="replaced or changed since"):
        prepare(store, str(folder), tiny)


def test_a_run_of_an_older_version_is_continued(begun, folder, tiny):
    store, plan, worker = begun
    worker.score(0)
    older = plan.model_dump(exclude={"source", "stamps"})
    store.put(PLAN, json.dumps(older).encode())
    again = prepare(store, str(folder), tiny)
    assert again == plan == read_plan(store)
    assert fault_of(store, again, 0) is None


def test_objects_are_known_by_size_and_time(store_options, tmp_path, tiny):
    bucket = filesystem("s3", "xrays", store_options)
    source = f"s3://xrays/stamped?{store_options}"
    store = open_store(str(tmp_path / "out"))

    def write(content):
        with bucket.open_output_stream("xrays/stamped/a.png") as file:
            file.write(content)

    write(b"x")
    plan = prepare(store, source, tiny)
    assert plan.source == "s3://xrays/stamped"
    assert prepare(store, source, tiny) == plan
    write(b"longer")
    with pytest.raises(DataError, match="replaced or changed since"):
        prepare(store, source, tiny)


def test_one_object_is_a_row_but_a_store_that_is_gone_ends_the_part(begun, monkeypatch):
    _, _, worker = begun
    monkeypatch.setattr(scorer_module, "FETCH_PAUSE", 0)

    class Files:
        def __init__(self, reachable: bool) -> None:
            self.reachable, self.tries = reachable, 0

        def open_input_file(self, path: str) -> None:
            self.tries += 1
            raise OSError("timeout\nmore")

        def get_file_info(self, path: str) -> None:
            if not self.reachable:
                raise OSError("no route to host")

    files = Files(reachable=True)
    monkeypatch.setattr(scorer_module, "filesystem", lambda *_: files)
    ((row, digest),) = worker._predict([Entry("s3://b/x.png")])
    assert (row.status, row.reasons, digest) == ("unreadable", ("not_found",), None)
    assert "(timeout)" in row.message
    assert files.tries == scorer_module.FETCH_TRIES
    files.reachable = False
    with pytest.raises(DataError, match="s3://b: cannot be reached"):
        worker._predict([Entry("s3://b/x.png")])
