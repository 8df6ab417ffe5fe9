"""Metrics of the node and the alerts on them: what is absent raises no alert."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest

from pneumoscope.serve.dicom.journal import DELIVERY_STATES, IMAGE_STATES, RESULT_STATES, Journal, now
from pneumoscope.serve.dicom.metrics import NodeMetrics
from pneumoscope.serve.dicom.status import read_status
from pneumoscope.serve.dicom.store import Store

ALERTS = Path(__file__).parents[3] / "deploy" / "alerts.yaml"
PREFIX = "pneumoscope_node_"


def shown(tmp_path: Path, journal: Journal, **known) -> dict[str, float]:
    """Return all metrics by name and labels."""
    metrics = NodeMetrics()
    values = {"datasets_not_stored": 0.0}
    metrics.watch(journal, Store(tmp_path), lambda: values, **known)
    lines = generate_latest(metrics.registry).decode().splitlines()
    return {name: float(value) for name, value in (one.rsplit(" ", 1) for one in lines if one[0] != "#")}


def add(journal: Journal, uid: str, *, caller: str = "XRAY1", state: str = "received", ago: float = 0.0):
    with journal.change() as connection:
        connection.execute(
            "INSERT INTO instances (sop_instance, sop_class, sha256, bytes, file, via, caller, link,"
            " received, state, detail) VALUES (?, '1', ?, 1, ?, 'store', ?, '', ?, ?, 'why')",
            (uid, uid, uid, caller, now() - ago, state),
        )


def test_every_state_is_shown_from_the_first_day(tmp_path, journal):
    found = shown(tmp_path, journal, destinations=["pacs"])
    for name, states in (("instances", IMAGE_STATES), ("results", RESULT_STATES)):
        assert {found[f'{PREFIX}{name}{{state="{state}"}}'] for state in states} == {0.0}
    assert {found[f'{PREFIX}objects{{destination="pacs",state="{one}"}}'] for one in DELIVERY_STATES} == {0.0}


def test_the_alerts_are_on_metrics_and_states_that_there_are(tmp_path, journal):
    add(journal, "1")
    found = shown(tmp_path, journal, destinations=["pacs"])
    names = {name.split("{")[0] for name in found}
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    states = {*IMAGE_STATES, *RESULT_STATES, *DELIVERY_STATES}
    for rule in rules:
        assert set(re.findall(rf"{PREFIX}\w+", rule["expr"])) <= names
        for values in re.findall(r'state=~?"([^"]+)"', rule["expr"]):
            assert set(values.split("|")) <= states
    (left_out,) = [one["expr"] for one in rules if one["alert"].endswith("LeftOut")]
    # Prometheus sees no increase in the first value of a series: it has to be there before, with 0.
    (series,) = re.findall(rf"{PREFIX}received_total\{{(.*)\}}", left_out)
    watched = {
        name: value for name, value in found.items() if name.startswith(f"{PREFIX}received_total{{{series}")
    }
    assert watched == {
        f'{PREFIX}received_total{{how="left_out",via="{via}"}}': 0.0 for via in ("folder", "web")
    }
    (attention,) = [one["expr"] for one in rules if one["alert"].endswith("NeedsAttention")]
    # A vector operation between sums has no value where one of them has none.
    assert "+" not in attention and "unreportable" in attention


def test_prometheus_takes_the_alerts():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is absent: apt-get install prometheus")
    done = subprocess.run(
        [promtool, "check", "rules", str(ALERTS)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    assert f"SUCCESS: {len(rules)} rules found" in done.stdout


def test_an_image_that_cannot_be_reported_needs_attention(journal):
    assert not read_status(journal, 3600).needs_attention
    add(journal, "1.2", state="unreportable")
    status = read_status(journal, 3600)
    assert status.needs_attention
    assert [one["instance"] for one in status.unreportable] == ["1.2"]


def test_an_image_whose_result_failed_waits_for_a_person_and_not_in_the_queue(tmp_path, journal):
    add(journal, "1.2", state="composed", ago=7000)
    assert shown(tmp_path, journal)[f"{PREFIX}queue_length"] == 1
    with journal.change() as connection:
        connection.execute(
            "INSERT INTO results (study_uid, made, revision, bundle, state, destinations, first_received,"
            " last_received) VALUES ('1', '', 0, 'b', 'failed', '[]', 0, 0)"
        )
        connection.execute("INSERT INTO result_images (result, instance) VALUES (1, 1)")
    found = shown(tmp_path, journal)
    assert (found[f"{PREFIX}queue_length"], found[f"{PREFIX}queue_oldest_seconds"]) == (0, 0)
    status = read_status(journal, 3600)
    assert status.needs_attention
    assert (status.oldest_seconds, status.worklist) == (None, [])


def test_silence_is_shown_by_caller(tmp_path, journal):
    add(journal, "1", ago=5000)
    add(journal, "2", ago=7000)
    add(journal, "3", caller="XRAY2", ago=100)
    add(journal, "4", caller="GONE", ago=40 * 86400)

    def silences(**known):
        found = shown(tmp_path, journal, **known)
        return {
            name.split('"')[1]: round(value, -2)
            for name, value in found.items()
            if name.startswith(f"{PREFIX}caller_silent_seconds")
        }

    assert silences() == {"XRAY1": 5000, "XRAY2": 100}
    assert silences(callers=["XRAY1", "NEW", "GONE"]) == {"XRAY1": 5000, "NEW": 0, "GONE": 0}
