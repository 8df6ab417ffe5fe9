"""What an operator lets the node try again, and what is exported."""

from __future__ import annotations

import csv
import datetime
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dicom_peers import RunningNode, write_config
from pneumoscope.errors import DataError
from pneumoscope.serve.dicom import maintenance
from pneumoscope.serve.dicom.journal import Journal, now
from pneumoscope.serve.dicom.maintenance import export
from pneumoscope.serve.dicom.purging import purge
from pneumoscope.serve.dicom.queue import BuiltObject, Queue, enter_objects
from pneumoscope.serve.dicom.store import Store

ANY_AGE = datetime.timedelta(seconds=-10)


@pytest.fixture
def node(tmp_path, tiny) -> RunningNode:
    """The folder of a node that does not run, and its commands."""
    return RunningNode(None, write_config(tmp_path, tiny.path))


@pytest.fixture
def store(node) -> Store:
    return Store(node.folder)


@pytest.fixture
def journal(store):
    journal = Journal(store.folder, create=True)
    yield journal
    journal.close()


def add(store: Store, journal: Journal, count: int, state: str = "received") -> list[str]:
    """Enter images of study 1.2, with their files; return their UIDs."""
    uids = [f"1.2.{number}" for number in range(count)]
    for uid in uids:
        name = store.image_name(uid)
        store.write(name, b"image")
        with journal.change() as connection:
            connection.execute(
                "INSERT INTO instances (sop_instance, sop_class, sha256, bytes, file, via, caller, link,"
                " received, state, study_uid, prediction, destinations) VALUES (?, '1', '', 1, ?, 'store',"
                " 'A', '1', ?, ?, '1.2', '{}', '[]')",
                (uid, name, now(), state),
            )
            connection.execute(
                "INSERT INTO artefacts (instance, region) VALUES (last_insert_rowid(), 'null')"
            )
    return uids


def report(store: Store, journal: Journal) -> None:
    """Enter a result of all images, with one object that was sent."""
    one = BuiltObject("1.9", "1", "1.3", "1.2", store.result_name("1.9"))
    store.write(one.file, b"result")
    with journal.change() as connection:
        result = connection.execute(
            "INSERT INTO results (study_uid, made, revision, bundle, state, destinations, first_received,"
            " last_received) VALUES ('1.2', '', 0, 'b', 'built', '[]', 0, 0)"
        ).lastrowid
        connection.execute("INSERT INTO result_images SELECT ?, id FROM instances", (result,))
        enter_objects(connection, result, [one], {"pacs": "sent"})


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_parked_images_are_tried_again(node, store, journal):
    add(store, journal, 2)
    queue = Queue(journal, 60)
    for image in (queue.next_image(()), queue.next_image({1})):
        assert queue.stopped(image, "it took more than 30 s", most_tries=1)
    assert queue.next_image(()) is None
    assert node.command("retry", "--failed", "--dead", "--json").out == '{\n  "failed": 0,\n  "dead": 0\n}\n'
    assert queue.next_image(()) is None
    assert [one["why"] for one in json.loads(node.command("status", "--json").out)["parked"]] == [
        "it took more than 30 s"
    ] * 2
    assert node.command("retry", "--parked") == (0, "2 parked\n", "")
    assert queue.next_image(()).tries == 0, "as many tries as at first"
    assert json.loads(node.command("status", "--json").out)["parked"] == []
    assert node.command("retry", "--parked").out == "0 parked\n"
    events = [json.loads(line) for line in node.command("audit").out.splitlines()]
    assert [one["parked"] for one in events if one["event"] == "retry" and "parked" in one] == [2, 0]


def test_failed_results_are_built_again(node, store, journal):
    add(store, journal, 1, state="predicted")
    queue = Queue(journal, 60)
    queue.compose("1.2", "b", 0)
    result = queue.next_result(())
    assert queue.not_built(replace(result, tries=2), "no memory", most_tries=3, final=False)
    assert queue.next_result(()) is None
    assert node.command("retry", "--parked").out == "0 parked\n"
    assert queue.next_result(()) is None
    assert node.command("retry", "--failed") == (0, "1 failed\n", "")
    again = queue.next_result(())
    assert (again.id, again.tries) == (result.id, 0)
    assert json.loads(node.command("status", "--json").out)["failed"] == []


def test_an_export_beside_a_purge(store, journal, tmp_path, monkeypatch):
    """Files that a purge removes while others are copied are absent; the tables are complete."""
    uids, out = add(store, journal, 3, state="reported"), tmp_path / "out"
    report(store, journal)
    calls, copyfile = [], shutil.copyfile

    def copy(source, target):
        calls.append(source)
        if len(calls) == 2:
            assert purge(journal, store, ANY_AGE).images == 3
        copyfile(source, target)

    monkeypatch.setattr(maintenance.shutil, "copyfile", copy)
    assert export(journal, store, out, images=True) == 3
    first = f"images/{Path(store.image_name(uids[0])).name}"
    images, (result,) = table(out / "images.csv"), table(out / "objects.csv")
    assert [(one["sop_instance"], one["file"]) for one in images] == [
        (uids[0], first), (uids[1], ""), (uids[2], "")
    ]  # fmt: skip
    assert len(calls) == 4
    assert (result["sop_instance"], result["file"]) == ("1.9", "")
    assert result["source_images"] == " ".join(uids)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        "images.csv", "objects.csv", first
    }  # fmt: skip


def test_an_export_names_both_tables(node, store, journal, tmp_path):
    add(store, journal, 1, state="reported")
    report(store, journal)
    out = tmp_path / "out"
    line = f"1 image in {out / 'images.csv'}, their results in {out / 'objects.csv'}\n"
    assert node.command("export", "--out", str(out)) == (0, line, "")
    made = json.loads(node.command("export", "--out", str(out), "--json").out)
    assert made == {
        "images": 1, "table": str(out / "images.csv"), "objects_table": str(out / "objects.csv")
    }  # fmt: skip
    assert Path(made["objects_table"]).is_file()
    described = " ".join(node.command("export", "--help").out.split())
    for what in ("images.csv", "objects.csv", "results/", "images/"):
        assert what in described


@pytest.mark.parametrize("inside", [".", "export", "images/aa", "../node", ".."])
def test_no_export_into_the_folder_of_the_node(tmp_path, inside):
    """A purge would remove files of the export, and the export write among those of the node."""
    store = Store(tmp_path / "images" if inside == ".." else tmp_path / "node")
    out = store.folder / inside
    journal = Journal(store.folder, create=True)
    before = sorted(store.folder.rglob("*"))
    with pytest.raises(DataError) as error:
        export(journal, store, out)
    assert str(error.value).startswith(f"{out}: the export would be in the node's own folder")
    assert sorted(store.folder.rglob("*")) == before
    (tmp_path / "link").symlink_to(store.folder)
    with pytest.raises(DataError, match="own folder"):
        export(journal, store, tmp_path / "link" / "x")
    assert export(journal, store, tmp_path / "beside") == 0
    journal.close()
