from __future__ import annotations

import json

import pytest
import yaml

from pneumoscope.cli import main
from pneumoscope.data.phantom import write_phantoms

RECIPE = {
    "name": "tiny",
    "description": "For tests.",
    "input": {"size": 32},
    "network": {"name": "custom-cnn", "channels": 1, "options": {"widths": [4, 8]}},
    "phases": [{"epochs": 2, "lr": 0.01}],
    "batch": 8,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cross")
    write_phantoms(folder / "phantoms", n=36, size=64, seed=1)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    return folder


def run(place, *words):
    with pytest.raises(SystemExit) as left:
        main(
            ["cross-validate", str(place / "tiny.yaml"), "--data", str(place / "phantoms"), *map(str, words)]
        )
    return left.value.code


def test_json_holds_what_the_file_holds(place, capsys):
    assert run(place, "--out", place / "cv2", "--folds", 2, "--epochs", 1, "--json") in (0, None)
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((place / "cv2" / "cross-validation.json").read_text(encoding="utf-8"))
    assert printed == written | {"left_out": 0}
    assert list(printed["parts"]) == ["fold 1 of 2", "fold 2 of 2"]
    assert printed["at_thresholds_of_the_other_folds"].keys() == {"accuracy", "sensitivity", "specificity"}


def test_a_cache_that_is_not_used_is_wrong_use(place, capsys):
    assert run(place, "--out", place / "cv4", "--cache", place / "cache", "--no-cache") == 2
    assert "--cache" in capsys.readouterr().err


def test_a_folder_in_the_data_is_wrong_use(place, capsys):
    assert run(place, "--out", place / "phantoms" / "cv") == 2
    assert "lies in the data" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_an_unknown_source_is_one_line(place, capsys):
    assert run(place, "--out", place / "cv3", "--leave-out", "nowhere") == 4
    err = capsys.readouterr().err.strip().splitlines()
    assert err[-1].startswith("error: ")
    assert "nowhere" in err[-1]


def test_every_fold_is_printed_and_images_that_were_left_out_are_exit_code_3(place, capsys, tmp_path):
    write_phantoms(tmp_path / "set", n=36, size=64, seed=1)
    (tmp_path / "set" / "NORMAL" / "broken.jpeg").write_bytes(b"no image")
    (tmp_path / "set" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")  # one that a scan leaves out
    words = ("--data", tmp_path / "set", "--out", tmp_path / "cv", "--folds", 2, "--epochs", 1)
    assert run(place, *words) == 3
    listed = tmp_path / "cv" / "left-out.csv"
    out, err = capsys.readouterr()
    assert all(part in out for part in ("fold 1 of 2", "fold 2 of 2", "all folds: AUROC"))
    assert str(tmp_path / "cv" / "cross-validation.json") in out
    assert f"2 unreadable images left out: {listed}" in err
    assert len(listed.read_text().splitlines()) == 3
