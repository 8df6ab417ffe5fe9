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
