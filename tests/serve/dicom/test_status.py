"""What `dicom status` shows beside states: the process, removed destinations, files left out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dicom_peers import RunningNode, write_config
from pneumoscope.serve.dicom import audit
from pneumoscope.serve.dicom.intake import Intake, Origin
from pneumoscope.serve.dicom.journal import Journal
from pneumoscope.serve.dicom.queue import BuiltObject, Queue, enter_objects
from pneumoscope.serve.dicom.running import lock_folder, mark_ready, read_running
from pneumoscope.serve.dicom.store import Store


@pytest.fixture
def node(tmp_path, tiny) -> RunningNode:
    """The folder of a node that does not run, and its commands."""
    destination = {"name": "pacs", "host": "x"}
    config = write_config(tmp_path, tiny.path, mode="live", destinations=[destination])
    return RunningNode(None, config)


@pytest.fixture
def journal(node):
    Store(node.folder)
    journal = Journal(node.folder, create=True)
    yield journal
    journal.close()


def add(journal: Journal, **states: str) -> None:
    """Enter a result with an object of its own for each state, sent to each destination of that name."""
    with journal.change() as connection:
        connection.execute(
            "INSERT INTO results (study_uid, made, revision, bundle, state, destinations, first_received,"
            " last_received) VALUES ('1', '', 0, 'b', 'built', '[]', 0, 0)"
        )
        for number, (name, state) in enumerate(states.items()):
            one = BuiltObject(f"1.{number}", "1", "1", "1", f"f{number}")
            enter_objects(connection, 1, [one], {name.split("_")[0]: state})


@pytest.fixture
def running(node, journal):
    """The lock of a node that was started in mode shadow."""
    with lock_folder(node.folder, "shadow") as file:
        mark_ready(file)
        yield file


def test_a_removed_destination_is_shown_and_dropped(node, journal, running):
    add(journal, old="pending", old_1="sending", old_2="dead", old_3="held", old_4="sent", pacs="pending",
        done="sent")  # fmt: skip
    shown = node.command("status")
    assert shown.code == 3, "a person has to decide"
    assert "not in node.yaml any more: old, 4 objects not sent" in shown.out
    assert json.loads(node.command("status", "--json").out)["removed"] == {"old": 4}
    assert node.command("retry", "--drop", "pacs").code == 2, "it is still a destination"
    unknown = node.command("retry", "--drop", "elsewhere")
    assert unknown.code == 4 and unknown.err.startswith("error: elsewhere: nothing is left to send")
    with journal.change() as connection:
        connection.execute("UPDATE deliveries SET state = 'sent' WHERE state IN ('sending', 'dead', 'held')")
    assert (
        "not in node.yaml any more: old, 1 object not sent; enter it again, or give up what is for it by"
        in node.command("status").out
    )
    assert node.command("retry", "--drop", "old") == (0, "1 dropped\n", "")
    after = json.loads(node.command("status", "--json").out)
    assert after["removed"] == {}
    assert after["deliveries"] == {
        "done": {"sent": 1}, "old": {"sent": 4, "withdrawn": 1}, "pacs": {"pending": 1}
    }  # fmt: skip
    assert node.command("status").code == 0
    *_, event = [json.loads(line) for line in node.command("audit").out.splitlines()]
    assert (event["event"], event["destination"], event["objects"]) == ("dropped", "old", 1)
    assert audit.verify(journal).fault == ""


def test_a_node_that_does_not_run_is_not_shown_as_running(node, journal, running):
    at = read_running(journal).since
    shown = node.command("status")
    expected = f"node: running since {at} (mode shadow; node.yaml has mode live: restart the node)"
    assert (shown.code, shown.out.splitlines()[0]) == (0, expected)
    assert json.loads(node.command("status", "--json").out)["running"] == {
        "since": at, "mode": "shadow", "ready": True
    }  # fmt: skip
    running.close()
    shown = node.command("status")
    assert (shown.code, shown.out.splitlines()[0]) == (3, "node: not running")
    ended = node.command("status", "--json")
    assert (ended.code, json.loads(ended.out)["running"]) == (3, None)


def test_held_objects_are_not_released_in_mode_shadow(node, journal, running):
    """The mode of the process counts, and that of node.yaml where there is none."""
    add(journal, pacs="held")
    held = "SELECT state FROM deliveries"
    done = node.command("retry", "--held", "--dead")
    assert (done.code, done.out) == (2, "")
    assert "in mode shadow nothing is sent; set mode: live in " in " ".join(done.err.split())
    assert journal.value(held) == "held"
    running.close()
    assert node.command("retry", "--held").out == "1 held\n"
    assert journal.value(held) == "pending"
    node.config.write_text(node.config.read_text().replace("mode: live", "mode: shadow"))
    assert node.command("retry", "--held").code == 2
    assert node.command("retry", "--dead").code == 0


def test_dropping_and_trying_again_in_one_command(node, journal):
    add(journal, old="pending", pacs="dead")
    done = node.command("retry", "--drop", "old", "--dead", "--json")
    assert json.loads(done.out) == {"dropped": 1, "dead": 1}


def test_what_was_left_out_or_split_is_shown(node, journal, running):
    assert "left out" not in node.command("status").out
    assert "split" not in node.command("status").out
    Intake(Store(node.folder), journal).left_out(Origin("folder", "IN", "1"), "it is no DICOM file", "1.2.9")
    with journal.change() as connection:
        for number in (1, 2):
            connection.execute(
                "INSERT INTO instances (sop_instance, sop_class, sha256, bytes, file, via, caller, link,"
                " received, state, prediction) VALUES (?, '1', '', 1, 'f', 'store', 'A', '1', 5,"
                " 'predicted', '{}')",
                (f"1.2.{number}",),
            )
            connection.execute("UPDATE instances SET study_uid = '1.2', destinations = '[]'")
            connection.execute(
                "INSERT INTO artefacts (instance, region) VALUES (last_insert_rowid(), 'null')"
            )
    queue = Queue(journal, 60)
    queue.compose("1.2", "b", 0)
    result = queue.next_result(())
    queue.not_built(replace(result, tries=0), "two patients", most_tries=3, final=True)
    shown = node.command("status")
    assert shown.code == 0, "nothing waits for a person"
    lines = [" ".join(line.split()[1:]) for line in shown.out.splitlines() if line.startswith("  ")]
    assert lines[-2:] == ["1.2.9 IN it is no DICOM file", "1.2 two patients"]
    found = json.loads(node.command("status", "--json").out)
    assert [(one["instance"], one["why"]) for one in found["left_out"]] == [("1.2.9", "it is no DICOM file")]
    assert [(one["study"], one["why"]) for one in found["split"]] == [("1.2", "two patients")]
