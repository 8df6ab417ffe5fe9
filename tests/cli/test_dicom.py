"""`pneumoscope dicom`: its help, and what it says without a node. The rest is in tests/serve/dicom."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import typer
from click.testing import CliRunner

from pneumoscope.cli import dicom, main

REPOSITORY = Path(__file__).parents[2]


def run(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["dicom", *words])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def commands() -> list[str]:
    return sorted(typer.main.get_command(dicom.app).commands)


def test_every_command_is_documented():
    page = (REPOSITORY / "docs" / "reference" / "node.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `dicom (\w+)", page, re.MULTILINE)) == set(commands())


def test_every_key_of_the_configuration_is_documented():
    config = pytest.importorskip("pneumoscope.serve.dicom.config")
    page = (REPOSITORY / "docs" / "reference" / "node.md").read_text(encoding="utf-8")
    for model in (config.NodeConfig, *config.Strict.__subclasses__()):
        for name in model.model_fields:
            assert f"| `{name}` |" in page, f"{model.__name__}.{name}"


@pytest.mark.parametrize("command", commands())
def test_help(command):
    done = CliRunner().invoke(typer.main.get_command(dicom.app), [command, "--help"])
    assert done.exit_code == 0
    assert "--config" in done.output
    assert ("--json" in done.output) is (command != "serve")


def test_no_node_yet(tmp_path, capsys):
    config = tmp_path / "node.yaml"
    config.write_text(f"folder: {tmp_path / 'node'}\n")
    code, _, err = run(capsys, "status", "--config", str(config))
    assert code == 4
    assert "there is no journal; start the node once" in err
    assert run(capsys, "status", "--config", str(tmp_path / "none.yaml"))[0] == 4
    assert run(capsys, "retry", "--config", str(config))[0] == 2


def test_json(tmp_path, capsys):
    config = tmp_path / "node.yaml"
    with socket.socket() as none:
        none.bind(("127.0.0.1", 0))  # not listening
        peer = f"host: 127.0.0.1, port: {none.getsockname()[1]}, aet: PACS"
        config.write_text(f"folder: node\ndestinations: [{{name: pacs, {peer}}}]\n")
        code, out, _ = run(capsys, "echo", "--config", str(config), "--json")
    assert code == 3
    assert json.loads(out)["pacs"]["responds"] is False
    assert json.loads(out)["pacs"]["reason"]
    code, out, _ = run(capsys, "rebuild", "--config", str(config), "--json")
    assert (code, json.loads(out)) == (0, {"images": 0, "skipped": 0, "old_journal": None})
    code, out, _ = run(capsys, "retry", "--dead", "--config", str(config), "--json")
    assert (code, json.loads(out)) == (0, {"dead": 0})
    code, out, err = run(capsys, "retract", "1.2", "--reason", "x", "--config", str(config), "--json")
    assert (code, out) == (4, "")
    assert "no result of this study" in err


def test_a_rule_for_nobody_keeps_the_node_from_starting_and_no_other_command(tmp_path, capsys):
    """A caller that was removed, while what it had sent is to be looked at, sent and exported."""
    config = tmp_path / "node.yaml"
    config.write_text("folder: node\ncallers: [{aet: CR1}]\nrules: [{calling_aet: [CR2*]}]\n")
    assert run(capsys, "rebuild", "--config", str(config))[0] == 0
    for words in (["retry", "--dead"], ["audit"], ["purge", "--older-than", "1d"]):
        assert run(capsys, *words, "--config", str(config))[0] == 0
    code, out, _ = run(capsys, "status", "--config", str(config))
    assert (code, out.splitlines()[0]) == (3, "node: not running")
    code, _, err = run(capsys, "serve", "--config", str(config))
    assert (code, err) == (
        4,
        f"error: {config}: rules.0.calling_aet: no sender has the calling AE title CR2*; those that may send "
        "are CR1\n",
    )


def test_one_of_anything_is_no_plural(tmp_path, capsys, monkeypatch):
    audit, maintenance, monthly, purging, retracting = (
        pytest.importorskip(f"pneumoscope.serve.dicom.{name}")
        for name in ("audit", "maintenance", "monthly", "purging", "retracting")
    )
    config = tmp_path / "node.yaml"
    config.write_text("folder: node\n")
    assert run(capsys, "rebuild", "--config", str(config))[1] == (
        "0 images taken into a new journal, 0 files skipped\n"
    )

    def printed(*words: str) -> str:
        code, out, _ = run(capsys, *words, "--config", str(config))
        assert code == 0
        return out

    monkeypatch.setattr(purging, "purge", lambda *_: purging.Purged(1, 1, 10**6))
    monkeypatch.setattr(purging, "sweep", lambda *_: purging.Swept(1, 10**5))
    assert printed("purge", "--older-than", "1d") == (
        "1 image and 1 result object removed, 1.0 MB; and 1 file that nothing refers to, 0.1 MB\n"
    )
    monkeypatch.setattr(audit, "verify", lambda *_: audit.AuditCheck(1, "ab"))
    assert printed("audit", "--verify") == "1 entry, last hash ab\n"
    monkeypatch.setattr(retracting, "retract", lambda *_, **__: 1)
    assert printed("retract", "1.2", "--reason", "x") == "1 result retracted\n"
    monkeypatch.setattr(maintenance, "rebuild", lambda *_: maintenance.Rebuilt(None, 1, 1))
    assert printed("rebuild") == "1 image taken into a new journal, 1 file skipped\n"
    drift = [monthly.Drift("x", "y", 1, None)]
    empty = {key: {} for key in ("callers", "states", "statuses", "reasons", "positives", "seconds")}
    made = monthly.MonthlyReport("2026-11", "b", 1, 1, 1, drift=drift, unmatched=1, other_bundles=1, **empty)
    monkeypatch.setattr(monthly, "monthly_report", lambda *_, **__: made)
    shown = printed("report", "--month", "2026-11")
    for line in (
        "2026-11: 1 image received, 1 study reported in 1 result, bundle b",
        "  x: too few images (1 image, against y)",
        "not in shares, drift and verdicts: 1 prediction of other bundles",
        "without a prediction in this month: 1 verdict",
    ):
        assert line in shown.splitlines()


def test_a_port_in_use(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = tmp_path / "node.yaml"
        port = taken.getsockname()[1]
        config.write_text(
            f"folder: node\nmetrics: {{port: {port}}}\nlisten: {{port: 0}}\nprocess: {{workers: 1}}\n"
        )
        code, _, err = run(capsys, "serve", "--config", str(config))
    assert code == 4
    assert "set metrics.port" in err
