"""The command `batch` as a process of its own, with its own Ray; runs are in tests/serve/batch."""

from __future__ import annotations

import builtins
import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from pneumoscope.cli import main

pytest.importorskip("ray", reason="batch needs more packages: in a clone, pip install '.[batch]'")

SAMPLES = Path(str(resources.files("pneumoscope") / "samples"))


def run(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pneumoscope", "batch", *map(str, words)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=folder) as process:
        out, err = process.communicate(timeout=240)
    assert list(Path("/tmp").glob(f"pneumoscope-ray-{process.pid}-*")) == [], "Ray's files are removed"
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.slow
def test_the_samples_from_end_to_end(tmp_path):
    done = run(SAMPLES, "out", "--part-size", 3, "--json", folder=tmp_path)
    assert done.returncode == 3, done.stderr
    summary = json.loads(done.stdout)
    assert summary["adds_up"] is True
    assert summary["entries"] == summary["rows"] == 8
    assert (summary["rejected"], summary["unreadable"]) == (2, 0)
    progress = re.compile(
        r"(starting Ray|predicting|listing images|checking the results).*|.* a second, . workers"
    )
    assert [line for line in done.stderr.splitlines() if not progress.fullmatch(line)] == []
    parts = sorted(path.name for path in (tmp_path / "out" / "parts").iterdir())
    assert parts == [f"part-000000{number}.parquet" for number in range(3)]


def summary_of(**counts):
    """What a run of eight images returns."""
    from pneumoscope.serve.batch.reconcile import Summary

    none = dict.fromkeys(("rejected", "unreadable", "missing", "repeated", "foreign", "same_content"), 0)
    return Summary(entries=8, rows=8, reasons={}, bundle="b@1", **none | {"ok": 8} | counts)


@pytest.mark.parametrize(
    ("counts", "words", "code", "line"),
    [
        ({}, (), 0, "8 images: 8 ok, 0 rejected, 0 unreadable; results in out"),
        (
            {"ok": 6, "rejected": 2},
            (),
            3,
            "8 images: 6 ok, 2 rejected, 0 unreadable; results in out",
        ),
        (
            {"foreign_parts": ["part-0000007.parquet"]},
            ("-q",),
            4,
            "error: out: 8 images but 8 rows (0 missing, 0 repeated, 0 of no image, 1 files of no part); "
            "see summary.json",
        ),
    ],
)
def test_the_last_line_and_the_exit_code_are_those_of_the_summary(
    counts, words, code, line, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pneumoscope.serve.batch.run_batch", lambda *_, **__: summary_of(**counts))
    with pytest.raises(SystemExit) as left:
        main(["batch", str(SAMPLES), "out", *words])
    lines = capsys.readouterr().err.splitlines()
    assert left.value.code == code
    assert line in lines
    assert not words or lines == [line]


def test_what_ray_prints_does_not_mix_with_the_result(tmp_path, monkeypatch, capsys):
    def noisy(*_arguments, **_options):
        sys.stdout.write("(raylet) A worker died or was killed\n")
        return summary_of()

    monkeypatch.setattr("pneumoscope.serve.batch.run_batch", noisy)
    with pytest.raises(SystemExit):
        main(["batch", str(SAMPLES), str(tmp_path / "out"), "--json"])
    assert json.loads(capsys.readouterr().out)["rows"] == 8


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["gone", "out"], 4, "gone: there is no such folder or manifest"),
        ([SAMPLES, "ftp://host/x"], 4, "unknown kind of store"),
        ([SAMPLES, "out", "--operating-point", "never"], 2, "it has"),
        ([SAMPLES, "out", "--workers", "0"], 2, "--workers"),
        ([SAMPLES, "out", "--bundle", "gone"], 4, "not a bundle"),
    ],
)
def test_what_cannot_be_done_is_one_line(words, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["batch", *map(str, words)])
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (code, "")
    assert message in " ".join(err.split())
    assert code == 2 or len(err.splitlines()) == 1


def test_without_ray_the_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    found = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SystemExit) as left:
        main(["batch", str(tmp_path), str(tmp_path / "out")])
    assert left.value.code == 4
    assert "pip install '.[batch]'" in capsys.readouterr().err
