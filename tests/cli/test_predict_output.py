"""Where the results of `pneumoscope predict` go: names of heat maps, the report, errors of other files."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys

import pytest

from bundles import make_bundle
from images import write_image
from pneumoscope.cli import main


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "in" / "0.png")
    return tmp_path / "in"


def test_heat_maps_have_the_whole_name_of_a_file_without_suffix(predict, folder, tmp_path, monkeypatch):
    names = ["1.2.840.5", "1.2.840.6", "x/A.png", "y/a.png"]
    for name in names:
        (tmp_path / "uids" / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(folder / "0.png", tmp_path / "uids" / name)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((folder / "0.png").read_bytes())))
    code, _, _ = predict(tmp_path / "uids", "-", "--heatmaps", tmp_path / "maps")
    drawn = sorted(path.name.removesuffix(".heatmap.png") for path in (tmp_path / "maps").iterdir())
    assert (code, drawn) == (0, ["1.2.840.5", "1.2.840.6", "A", "a-2", "stdin"])


def test_a_report_says_which_prevalence_the_probabilities_are_for(folder, tmp_path):
    calibration = {"prevalence": 0.7, "operating_points": [{"name": "balanced", "threshold": 0.6}]}
    bundle = make_bundle(tmp_path / "bundle", calibration=calibration)
    words = ["predict", str(folder), "--bundle", str(bundle.path), "--report", str(tmp_path / "r.html")]
    pages = []
    for prevalence in ([], ["--prevalence", "0.0001"]):
        with pytest.raises(SystemExit):
            main([*words, *prevalence])
        pages.append((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "shifted to a prevalence" not in pages[0]
    assert "shifted to a prevalence of 0.0001" in pages[1]
    assert "pneumonia at 0.0064% or more" in pages[1]


def test_a_closed_pipe_is_not_blamed_on_the_results(bundle, folder, tmp_path):
    for name in range(400):
        os.link(folder / "0.png", folder / f"more-{name:03}.png")
    words = [sys.executable, "-m", "pneumoscope", "predict", folder, "--bundle", bundle.path]
    words += ["--out", tmp_path / "o.csv", "--json"]
    closed = f"{shlex.join(map(str, words))} | head -c 1"
    done = subprocess.run(closed, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout == "["
    assert "error" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_output_hinders_no_results(bundle, folder, tmp_path, closed):
    words = [sys.executable, "-m", "pneumoscope", "predict", folder, "--bundle", bundle.path]
    command = f"{shlex.join(map(str, [*words, '--out', tmp_path / 'o.csv']))} {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 2


def test_a_closed_standard_input_is_wrong_use(predict, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert predict("-")[0] == 2
