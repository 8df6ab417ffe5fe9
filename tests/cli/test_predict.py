from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys

import pytest

from bundles import make_bundle
from images import write_image
from pneumoscope.cli import main
from pneumoscope.domain import Target
from predictions import BUNDLES, Example


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
    code, out, _ = predict(tmp_path / "gone.png", tmp_path, "--json")
    assert code == 4
    assert [row["reasons"] for row in json.loads(out)] == [["not_found"], ["not_found"]]


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
    ("words", "message"),
    [
        (["--out", "o.xlsx"], ".csv, .json, .jsonl, .parquet"),
        (["--operating-point", "never"], "it has balanced"),
        (["--population", "adults"], "it has any"),
        (["--workers", "0"], "equal to 1"),
    ],
)
def test_wrong_use_is_exit_code_2_and_lists_what_there_is(predict, folder, words, message):
    code, out, err = predict(folder, *words)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


@pytest.mark.parametrize("option", ["--heatmaps", "--report"])
def test_standard_output_is_empty_where_images_cannot_be_written(predict, folder, tmp_path, option):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" if option == "--heatmaps" else tmp_path / "none" / "r.html"
    for words in ((), ("--json",)):
        code, out, err = predict(folder, option, place, *words)
        assert (code, out) == (4, "")
        assert err.startswith(f"error: {place}")


def test_wrong_use_makes_no_folder(predict, folder, tmp_path):
    code, _, _ = predict(folder, "--out", "o.xlsx", "--heatmaps", tmp_path / "maps")
    assert code == 2
    assert not (tmp_path / "maps").exists()


def test_one_image_is_counted_as_one(predict, folder, tmp_path):
    _, _, err = predict(folder / "0.png", "--out", tmp_path / "o.csv")
    assert err.startswith("1 image: ")


def test_what_cannot_be_written_is_an_error_before_any_image_is_read(predict, folder, tmp_path):
    (tmp_path / "file").write_text("")
    for words in (["--out", tmp_path / "gone" / "o.csv"], ["--heatmaps", tmp_path / "file"]):
        code, _, err = predict(folder, *words)
        assert code == 4
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1


def test_a_prevalence_changes_probabilities_and_no_decision(capsys, folder, tmp_path):
    calibration = {
        "prevalence": 0.7,
        "conformal": (0.2, 0.3, 0.3),
        "operating_points": [{"name": "balanced", "threshold": 0.6}],
    }
    bundle = make_bundle(tmp_path / "bundle", calibration=calibration)

    def predicted(*words):
        with pytest.raises(SystemExit) as left:
            main(["predict", "--json", "--bundle", str(bundle.path), str(folder), *words])
        assert left.value.code == 0
        return json.loads(capsys.readouterr().out)

    as_fitted, rare = predicted(), predicted("--prevalence", "0.05")
    for before, after in zip(as_fitted, rare, strict=True):
        assert after["p_pneumonia"] < before["p_pneumonia"]
        kept = ("path", "status", "decision", "prediction_set", "uncertain", "population")
        assert [after[name] for name in kept] == [before[name] for name in kept]
        assert after["bundle"].startswith(before["bundle"] + "+")


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
    assert "result" in out
    assert "\t" not in out


def test_a_terminal_gets_each_reason_once_with_its_images(predict, folder, monkeypatch):
    for name in ("bad", "worse", "worst", "lost"):
        (folder / f"{name}.png").write_bytes(b"")
    plain = predict(folder)[2].splitlines()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    code, _, err = predict(folder)
    assert code == 3
    assert len(plain) == 4
    message = plain[0].partition(": ")[2].partition(" [")[0]
    assert err.count(message) == 1
    assert "bad.png, lost.png, worse.png and 1 more" in err
    assert str(folder) not in err


def test_a_table_on_a_terminal_has_the_folder_once(predict, folder, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = predict(folder)
    assert out.count(str(folder)) == 1
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["0.png", "1.png", "2.png", "3.png"]


def test_the_bar_changes_no_result(predict, folder, monkeypatch):
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
    assert done.stdout
    assert "Traceback" not in done.stderr


def test_a_report_is_one_page_signed_by_the_model(predict, bundle, folder, tmp_path):
    (folder / "bad.png").write_bytes(b"")
    code, _, err = predict(folder, "--report", tmp_path / "r.html", "--operating-point", "balanced")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert code == 3
    assert str(tmp_path / "r.html") in err
    assert page.count("<article") == 5
    assert page.count("<img") == 3 * 4  # thumbnail, image and heat map of each that could be read
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


def test_a_folder_is_walked_once_on_a_terminal(predict, folder, monkeypatch):
    for number in range(30):
        write_image(folder / f"more-{number:02}.png", seed=number)
    walked, scandir = [], os.scandir

    def counting(top):
        walked.append(str(top))
        return scandir(top)

    monkeypatch.setattr(os, "scandir", counting)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    code, out, err = predict(folder)
    assert (code, len(out.splitlines())) == (0, 35)
    assert "34 images: 34 ok" in err
    assert walked == [str(folder)]


def test_more_images_than_are_listed_ahead_are_predicted_too(predict, folder, monkeypatch):
    from pneumoscope.cli import predict as module

    _, expected, _ = predict(folder)
    monkeypatch.setattr(module, "LIST_AHEAD", 2)
    code, out, _ = predict(folder)
    assert code == 0
    assert out == expected


def test_a_draft_is_an_error_that_names_the_fix(capsys, folder, tmp_path):
    make_bundle(tmp_path / "draft", state="draft")
    with pytest.raises(SystemExit) as left:
        main(["predict", str(folder), "--bundle", str(tmp_path / "draft")])
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (4, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'draft'}")
    assert "--resume" in line


@pytest.mark.parametrize("example", BUNDLES, ids=lambda example: "-".join(example.classes))
def test_any_classes_go_into_every_output(capsys, folder, tmp_path, example: Example):
    target = Target(example.target, example.target_classes)
    bundle = make_bundle(tmp_path / "bundle", classes=example.classes, target=target)
    words = ["predict", str(folder), "--bundle", str(bundle.path), "--json"]
    words += [
        "--out",
        str(tmp_path / "o.csv"),
        "--heatmaps",
        str(tmp_path),
        "--report",
        str(tmp_path / "r.html"),
    ]
    with pytest.raises(SystemExit) as left:
        main(words)
    rows = json.loads(capsys.readouterr().out)
    with (tmp_path / "o.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    names = list(example.columns)
    assert left.value.code == 0
    assert [name for name in rows[0] if name.startswith("p_")] == names
    assert [name for name in cells[0] if name.startswith("p_")] == names
    for row in rows:
        assert sum(row[f"p_{name}"] for name in example.classes) == pytest.approx(1, abs=1e-5)
        assert row[f"p_{example.target}"] == pytest.approx(
            sum(row[f"p_{name}"] for name in example.target_classes), abs=1e-5
        )
        assert row["decision"] in {example.target, f"no {example.target}"}
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert f"Evidence for {example.target}" in page
    assert len(list(tmp_path.glob("*.heatmap.png"))) == 4


def test_a_folder_may_be_predicted_again_with_its_heat_maps_in_it(predict, folder):
    assert predict(folder, "--heatmaps", folder)[0] == 0
    code, out, err = predict(folder, "--heatmaps", folder, "--json")
    assert code == 0
    assert [row["path"] for row in json.loads(out)] == [str(folder / f"{n}.png") for n in range(4)]
    assert err.splitlines() == [f"{folder}: 4 images drawn by Pneumoscope left out"]
    assert len(list(folder.iterdir())) == 8
    code, out, err = predict(folder / "0.heatmap.png", "--json")
    (row,) = json.loads(out)
    assert (code, row["status"], row["reasons"]) == (4, "rejected", ["not_a_chest_radiograph"])
    assert "give the X-ray that it was drawn from" in err


def test_a_heat_map_replaces_no_radiograph(predict, folder):
    kept = write_image(folder / "0.heatmap.png", seed=7).read_bytes()
    assert predict(folder / "0.png", "--heatmaps", folder)[0] == 0
    assert (folder / "0.heatmap.png").read_bytes() == kept
    assert (folder / "0-2.heatmap.png").exists()


def test_names_too_long_for_a_heat_map_are_shortened(predict, folder, tmp_path):
    for name in ("n" * 250 + ".png", "n" * 249 + "m.png", "ö" * 125 + ".png"):
        write_image(folder / name)
    code, out, _ = predict(folder, "--heatmaps", tmp_path / "maps", "--json")
    assert code == 0
    assert len(json.loads(out)) == len(list((tmp_path / "maps").iterdir())) == 7


@pytest.mark.parametrize("name", ["m.csv", "link.csv"])
def test_results_never_replace_an_input(predict, folder, name):
    (folder / "m.csv").write_text("path\n0.png\n")
    if name != "m.csv":
        (folder / name).symlink_to(folder / "m.csv")
    code, _, err = predict(folder / "m.csv", "--out", folder / name)
    assert code == 2
    assert "one of the inputs" in " ".join(err.split())
    assert (folder / "m.csv").read_text() == "path\n0.png\n"


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_path_is_wrong_use_and_not_the_current_folder(predict, folder, monkeypatch, empty):
    monkeypatch.chdir(folder)
    code, out, err = predict(empty)
    assert (code, out) == (2, "")
    assert "an argument is empty" in err


class Piped(io.TextIOWrapper):
    """Standard input from a pipe."""


def test_an_image_may_come_from_standard_input(predict, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Piped(io.BytesIO((folder / "0.png").read_bytes())))
    code, out, _ = predict("-", folder / "0.png", "--json")
    first, second = json.loads(out)
    assert (code, first["path"]) == (0, "<stdin>")
    assert first | {"path": ""} == second | {"path": ""}


def test_nothing_on_standard_input_is_a_reason_and_a_terminal_is_wrong_use(predict, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Piped(io.BytesIO()))
    code, out, _ = predict("-", "--json")
    assert (code, json.loads(out)[0]["reasons"]) == (4, ["empty_file"])
    monkeypatch.setattr(Piped, "isatty", lambda _: True)
    assert predict("-")[0] == 2


def test_a_table_that_is_no_manifest_and_a_pipe_stop_nothing(predict, folder):
    (folder / "no.csv").write_text("name;label\nx;y\n")
    os.mkfifo(folder / "9.png")
    code, out, err = predict(folder / "no.csv", folder, "--json")
    rows = json.loads(out)
    assert code == 3
    assert [row["reasons"] for row in rows] == [["not_an_image"], [], [], [], [], ["not_an_image"]]
    assert "no column 'path'; found name, label" in err
    assert "a named pipe" in err
