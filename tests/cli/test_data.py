"""`pneumoscope data` as a user calls it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from pneumoscope.cli.data import app
from pneumoscope.data import Manifest, load
from pneumoscope.errors import DataError, DownloadError

run = CliRunner()


def call(*words):
    return run.invoke(app, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    result = call("phantom", folder, "--n", 30, "--size", 48, "--seed", 4)
    assert result.exit_code == 0
    assert "30 phantoms of" in result.output
    return folder


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_split_by_patient_then_audit_is_clean(phantoms, tmp_path, suffix):
    out = tmp_path / f"m.{suffix}"
    result = call("split", phantoms, "--out", out, "--fractions", "0.6,0.2,0.2", "--seed", 1)
    assert result.exit_code == 0, result.output
    manifest = Manifest.read(out)
    assert len(manifest) == 30
    assert all(record.width == record.height == 48 and record.split for record in manifest)
    audit = call("audit", out)
    assert audit.exit_code == 0
    assert "no leak found" in audit.output


def test_random_split_leaks(phantoms, tmp_path):
    assert call("split", phantoms, "--out", tmp_path / "m.csv", "--method", "random").exit_code == 0
    result = call("audit", tmp_path / "m.csv", "--json", "--out", tmp_path / "audit.json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found["leaks"] is True
    assert found["leaks_found"][0]["what"] == "patient"
    assert json.loads((tmp_path / "audit.json").read_text()) == found
    assert "LEAK" in call("audit", tmp_path / "m.csv", "--no-near-duplicates").output


def test_unreadable_files_are_left_out_of_a_split_and_listed(phantoms, tmp_path):
    for path in phantoms.rglob("*.jpeg"):
        target = tmp_path / "set" / path.relative_to(phantoms)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "set" / "NORMAL" / "IM-9999-0001.jpeg").write_bytes(b"broken")
    result = call("split", tmp_path / "set", "--out", tmp_path / "m.csv")
    assert result.exit_code == 3
    assert "IM-9999-0001.jpeg" in result.stderr
    assert len(load(tmp_path / "m.csv")) == 30
    audit = call("audit", tmp_path / "set")
    assert audit.exit_code == 3
    assert "IM-9999-0001.jpeg" in audit.stdout


def test_summary_as_table_and_json(phantoms):
    text = call("summary", phantoms).stdout
    assert "split\tpatients\timages\tbacterial\tnormal\tviral" in text
    facts = json.loads(call("summary", phantoms, "--json").stdout)
    assert facts["images"] == 30
    assert f"name\t{facts['description']['name']}" in text
    assert facts["labels"] == {"bacterial": 10, "normal": 10, "viral": 10}
    assert facts["splits"]["unsplit"]["images"] == 30
    assert facts["fingerprint"] == load(phantoms).fingerprint()


def test_summary_shows_the_description(phantoms, tmp_path):
    for path in phantoms.rglob("*.jpeg"):
        copy = tmp_path / "set" / path.relative_to(phantoms)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert "no description" in call("summary", tmp_path / "set").stdout
    (tmp_path / "set" / "dataset.yaml").write_text(
        "name: A set\npopulation: {name: children, ages: [1, 5], views: [AP]}\nlicence: CC BY 4.0\n"
    )
    text = call("summary", tmp_path / "set").stdout
    for line in ("name\tA set", "population\tchildren, 1 to 5 years, AP view", "licence\tCC BY 4.0"):
        assert line in text.splitlines()
    assert "hospital" not in text


def test_labels_and_patients_from_tables(phantoms, tmp_path):
    names = sorted(path.relative_to(phantoms).as_posix() for path in phantoms.rglob("*.jpeg"))
    (tmp_path / "l.csv").write_text("path,label\n" + "".join(f"{name},edema\n" for name in names))
    (tmp_path / "p.csv").write_text("path,patient_id\n" + "".join(f"{name},one\n" for name in names))
    result = call(
        "summary", phantoms, "--labels", tmp_path / "l.csv", "--patients", tmp_path / "p.csv", "--json"
    )
    facts = json.loads(result.stdout)
    assert facts["labels"] == {"edema": 30}
    assert facts["patients"] == 1


@pytest.mark.parametrize(
    "words",
    [
        ("split", "{p}", "--out", "m.csv", "--fractions", "a,b"),
        ("split", "{p}", "--out", "m.csv", "--method", "file"),
        ("split", "{p}"),
        ("fetch", "chexpert", "out"),
        ("phantom", "out", "--n", "0"),
        ("audit",),
    ],
)
def test_wrong_use_is_code_2(phantoms, words):
    assert call(*(word.format(p=phantoms) for word in words)).exit_code == 2


def test_errors_are_ours_and_reach_the_top(phantoms, tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        call("audit", tmp_path / "nothing")
    with pytest.raises(DataError, match="three shares"):
        call("split", phantoms, "--out", tmp_path / "m.csv", "--fractions", "1,1,1")
    with pytest.raises(DownloadError, match="--from FILE"):
        call("fetch", "pneumoniamnist", tmp_path, "--base-url", "nowhere://127.0.0.1")


def test_fetch_from_a_local_archive(tmp_path, monkeypatch, phantoms):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in phantoms.rglob("*.jpeg"):
            archive.write(path, f"chest_xray/train/{path.relative_to(phantoms)}")
    result = call("fetch", "kermany", tmp_path / "out", "--from", tmp_path / "a.zip")
    assert result.exit_code == 0, result.output
    assert "30 images" in result.output
    assert "CC BY 4.0" in result.output
    assert len(load(tmp_path / "out" / "manifest.csv")) == 30


def test_table_on_a_terminal(phantoms, monkeypatch, capsys):
    from pneumoscope.cli import data

    monkeypatch.setattr(data.sys.stdout, "isatty", lambda: True, raising=False)
    data._table("Balance", ("split", "n"), [("train", "3"), ("[red]", "4")])
    text = capsys.readouterr().out
    assert "Balance" in text
    assert "[red]" in text
    assert np.char.count(text, "\t") == 0
