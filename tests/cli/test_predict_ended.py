"""Runs of `pneumoscope predict` that end early: what was finished is kept."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pneumoscope.errors import DataError


def test_an_error_midway_keeps_the_finished_rows(predict, folder, tmp_path, monkeypatch):
    from pneumoscope.report import overlay

    write = overlay.write_png

    def full(image, path):
        if path.name.startswith("2"):
            raise DataError(f"{path}: cannot write there (No space left on device); name another folder")
        write(image, path)

    monkeypatch.setattr(overlay, "write_png", full)
    out = tmp_path / "o.csv"
    code, _, err = predict(folder, "--heatmaps", tmp_path, "--out", out)
    assert code == 4
    assert f"ended early; the finished rows are in {out}" in err
    with out.open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(folder / f"{n}.png") for n in range(3)]


@pytest.mark.parametrize(("number", "suffix"), [(signal.SIGINT, ".csv"), (signal.SIGTERM, ".json")])
def test_an_interrupted_run_leaves_a_readable_file(bundle, folder, tmp_path, number, suffix):
    for name in range(400):
        os.link(folder / "0.png", folder / f"more-{name:03}.png")
    out = tmp_path / f"o{suffix}"
    # Slowed down, so that the signal comes between two rows.
    code = (
        "import sys, time\nfrom pneumoscope.cli import main\n"
        "from pneumoscope.predict import pipeline as module\nread = module.read_radiograph\n"
        "def slow(*words, **options):\n    time.sleep(0.02)\n    return read(*words, **options)\n"
        "module.read_radiograph = slow\nmain(sys.argv[1:])\n"
    )
    words = ["predict", str(folder), "--bundle", str(bundle.path), "--out", str(out), "--json"]
    run = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout.read(200)  # rows are coming
    time.sleep(0.2)
    run.send_signal(number)
    rest, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in err
    assert f"the finished rows are in {out}" in err
    text = out.read_text()
    rows = list(csv.DictReader(text.splitlines())) if suffix == ".csv" else json.loads(text)
    assert 0 < len(rows) < 404
    assert rest.endswith("\n]\n")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
