from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest

from bundles import make_bundle
from images import write_image
from pneumoscope.cli import main


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        write_image(tmp_path / "in" / f"{number}.png", seed=number)
    return tmp_path / "in"


@pytest.fixture
def predict(bundle, capsys):
    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(["predict", "--bundle", str(bundle.path), *map(str, words)])
        return left.value.code, *capsys.readouterr()

    return run


def test_lines_for_programs_have_a_header_and_a_row_a_image(predict, folder):
    code, out, err = predict(folder)
    header, *rows = [line.split("\t") for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert header[:2] == ["path", "status"]
    assert [row[0] for row in rows] == [str(folder / f"{number}.png") for number in range(4)]


def test_a_bad_file_is_a_row_and_a_line_and_exit_code_3(predict, folder):
    (folder / "1.png").write_bytes(b"")
    code, out, err = predict(folder, "--json")
    rows = json.loads(out)
    assert code == 3
    assert [row["status"] for row in rows] == ["ok", "unreadable", "ok", "ok"]
    (line,) = err.splitlines()
    assert line.startswith(str(folder / "1.png"))
    assert line.endswith("[empty_file]")


def test_nothing_that_could_be_predicted_is_exit_code_4(predict, tmp_path):
    code, out, err = predict(tmp_path / "gone.png", tmp_path, "--json")
    assert code == 4
    assert [row["reasons"] for row in json.loads(out)] == [["not_found"], ["not_found"]]
    (tmp_path / "empty.csv").write_text("path\n")
    code, _, err = predict(tmp_path / "empty.csv")
    assert code == 4
    assert err.startswith("error: there is no image")


def test_a_manifest_goes_in_and_a_table_comes_out(predict, folder, tmp_path):
    manifest, out = folder / "m.csv", tmp_path / "results.csv"
    manifest.write_text("path\n2.png\n0.png\n")
    code, printed, err = predict(manifest, "--out", out)
    assert (code, printed) == (0, "")
    assert str(out) in err
    with out.open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(folder / "2.png"), str(folder / "0.png")]


def test_heat_maps_are_drawn_for_what_was_read_and_names_do_not_collide(predict, folder, tmp_path):
    write_image(folder / "sub" / "0.png", seed=9)
    write_image(folder / "0-2.png", seed=8)
    write_image(folder / "small.png", height=20, width=20)
    (folder / "bad.png").write_bytes(b"")
    code, _, _ = predict(folder, "--heatmaps", tmp_path / "maps" / "deep")
    drawn = sorted(path.name for path in (tmp_path / "maps" / "deep").iterdir())
    expected = ["0-2", "0-3", "0", "1", "2", "3", "small"]
    assert code == 3
    assert drawn == [f"{name}.heatmap.png" for name in expected]


def test_force_predicts_and_still_warns(predict, folder):
    write_image(folder / "small.png", height=20, width=20)
    assert predict(folder / "small.png")[0] == 4
    code, out, err = predict(folder / "small.png", "--force", "--json")
    assert code == 0
    assert json.loads(out)[0]["reasons"] == ["too_small"]
    assert "too_small" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--out", "o.xlsx"], ".csv, .json, .jsonl, .parquet"),
        (["--operating-point", "never"], "it has balanced"),
        (["--workers", "0"], "equal to 1"),
    ],
)
def test_wrong_use_is_exit_code_2_and_says_what_there_is(predict, folder, words, told):
    code, out, err = predict(folder, *words)
    assert (code, out) == (2, "")
    assert told in " ".join(err.split())


def test_what_cannot_be_made_is_said_before_any_image_is_read(predict, folder, tmp_path):
    (tmp_path / "file").write_text("")
    for words in (["--out", tmp_path / "gone" / "o.csv"], ["--heatmaps", tmp_path / "file"]):
        code, _, err = predict(folder, *words)
        assert code == 4
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1


def test_a_missing_bundle_is_one_line(capsys, folder, tmp_path):
    with pytest.raises(SystemExit) as left:
        main(["predict", str(folder), "--bundle", str(tmp_path / "none")])
    assert left.value.code == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "none" in line


def test_a_terminal_gets_a_table_and_a_bar(predict, folder, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    code, out, _ = predict(folder)
    assert code == 0
    assert "answer" in out
    assert "\t" not in out


def test_the_bar_changes_no_answer(predict, folder, monkeypatch):
    for number in range(30):
        write_image(folder / f"more-{number:02}.png", seed=number)
    _, plain, _ = predict(folder)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    _, with_bar, err = predict(folder)
    assert with_bar == plain
    assert "34 images: 34 ok" in err


def test_predicting_loads_no_training_stack_and_a_closed_pipe_is_quiet(bundle, folder):
    code = (
        "import sys\nfrom pneumoscope.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    assert not {'torch', 'sklearn', 'pydicom', 'matplotlib'} & set(sys.modules)\n"
    )
    words = [sys.executable, "-c", code, "predict", str(folder), "--bundle", str(bundle.path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    closed = f"{' '.join(map(repr, [sys.executable, '-m', 'pneumoscope', *words[3:]]))} | head -c 1"
    done = subprocess.run(closed, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_a_report_is_one_page_signed_by_the_model(predict, bundle, folder, tmp_path):
    (folder / "bad.png").write_bytes(b"")
    code, _, err = predict(folder, "--report", tmp_path / "r.html", "--operating-point", "balanced")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert code == 3
    assert str(tmp_path / "r.html") in err
    assert page.count("<article") == 5
    assert page.count("<img") == 8
    for digest in (bundle.identity, *bundle.manifest.files.values()):
        assert digest in page


def test_maps_by_occlusion_are_others_and_need_somewhere_to_go(predict, folder, tmp_path):
    by_cam, by_occlusion = tmp_path / "cam", tmp_path / "occlusion"
    assert predict(folder / "0.png", "--heatmaps", by_cam)[0] == 0
    assert predict(folder / "0.png", "--heatmaps", by_occlusion, "--method", "occlusion")[0] == 0
    (one,), (other,) = by_cam.iterdir(), by_occlusion.iterdir()
    assert one.read_bytes() != other.read_bytes()
    code, _, err = predict(folder, "--method", "occlusion")
    assert code == 2
    assert "--heatmaps or --report" in " ".join(err.split())
    assert predict(folder, "--report", tmp_path / "r.pdf")[0] == 2
