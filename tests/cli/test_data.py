"""`pneumoscope data` as a user calls it."""

from __future__ import annotations

import json
import os

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from images import write_image
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


def test_one_image_is_not_several(phantoms, tmp_path):
    source = next(phantoms.rglob("*.jpeg"))
    (tmp_path / source.parent.name).mkdir()
    (tmp_path / source.parent.name / source.name).write_bytes(source.read_bytes())
    assert "\n1 image of 1 patient, width 48 to 48, height 48 to 48\n" in call("audit", tmp_path).stdout


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
        ("split", "{p}", "--out", "m.csv", "--fractions", "1,1,1"),
        ("split", "{p}", "--out", "m.csv", "--fractions", "1.5,-0.5,0"),
        ("split", "{p}", "--out", "m.csv", "--fractions", "nan,0.5,0.5"),
        ("split", "{p}", "--out", "m.csv", "--method", "file"),
        ("split", "{p}"),
        ("fetch", "chexpert", "out"),
        ("fetch", "kermany", "out", "--base-url", "mirror/"),
        ("phantom", "out", "--n", "0"),
        ("audit",),
    ],
)
def test_wrong_use_is_code_2(phantoms, words):
    assert call(*(word.format(p=phantoms) for word in words)).exit_code == 2


def test_errors_are_ours_and_reach_the_top(phantoms, tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        call("audit", tmp_path / "nothing")
    with pytest.raises(DownloadError, match="--from FILE"):
        call("fetch", "pneumoniamnist", tmp_path, "--base-url", "http://")


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
    from pneumoscope.cli import data_output

    monkeypatch.setattr(data_output.sys.stdout, "isatty", lambda: True, raising=False)
    data_output._table("Balance", ("split", "n"), [("train", "3"), ("[red]", "4")])
    text = capsys.readouterr().out
    assert "Balance" in text
    assert "[red]" in text
    assert np.char.count(text, "\t") == 0


@pytest.fixture
def hard(tmp_path):
    """A folder with a DICOMDIR, a pipe, masks, an image of a telephone and two images."""
    for name in ("NORMAL/images/a.png", "NORMAL/masks/a.png", "Viral Pneumonia/images/b.png"):
        write_image(tmp_path / "set" / name, seed=len(name))
    (tmp_path / "set" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "set" / "NORMAL" / "images" / "c.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(300))
    os.mkfifo(tmp_path / "set" / "NORMAL" / "images" / "d.png")
    return tmp_path / "set"


def test_summary_lists_what_cannot_be_read_and_does_the_rest(hard):
    result = call("summary", hard, "--json")
    facts = json.loads(result.stdout)
    assert result.exit_code == 3
    assert facts["labels"] == {"normal": 1, "viral": 1}
    assert facts["patients"] == 2
    reasons = {one["path"].rpartition("/")[2]: one["reason"] for one in facts["left_out"]}
    assert reasons == {"DICOMDIR": "no_pixels", "c.heic": "unsupported_encoding", "d.png": "not_an_image"}
    assert result.stderr.count("left out: ") == 3
    assert "1 mask left out" in result.stderr
    assert call("summary", hard).exit_code == 3


def test_audit_and_split_list_it_too_and_once(hard, tmp_path):
    result = call("audit", hard)
    assert result.exit_code == 3
    assert "unreadable files\t3" in result.stdout
    assert result.stderr.count("c.heic") == 1
    result = call(
        "split", hard, "--out", tmp_path / "m.csv", "--method", "random", "--fractions", "0.5,0.5,0"
    )
    assert result.exit_code == 3
    assert len(load(tmp_path / "m.csv")) == 2


def test_out_never_replaces_an_input(hard, tmp_path):
    table = "path;label\na.png;Normal\n"
    (hard / "labels.csv").write_text(table)
    (tmp_path / "m.csv").write_text("path,label,patient_id\nset/NORMAL/images/a.png,normal,1\n")
    before = (tmp_path / "m.csv").read_text()
    for words in (
        ("split", tmp_path / "m.csv", "--out", tmp_path / "m.csv"),
        ("split", hard, "--out", hard / "labels.csv"),
    ):
        result = call(*words)
        assert result.exit_code == 2
        assert "one of the inputs" in " ".join(result.stderr.replace("│", " ").split())
    assert (hard / "labels.csv").read_text() == table
    assert (tmp_path / "m.csv").read_text() == before


def test_findings_never_replace_an_xray(hard):
    image = next(hard.rglob("*.png"))
    before = image.read_bytes()
    result = call("audit", hard, "--out", image)
    assert result.exit_code == 2
    assert "end the name with .json" in " ".join(result.stderr.replace("│", " ").split())
    assert image.read_bytes() == before


def test_a_table_of_another_suffix_is_rejected_before_an_image_is_read(phantoms, tmp_path, monkeypatch):
    from pneumoscope.data import folder

    monkeypatch.setattr(folder, "load", lambda *_, **__: pytest.fail("read the images first"))
    for words in (("split", phantoms), ("join", phantoms)):
        with pytest.raises(DataError, match=r"m\.txt: not a table; name a \.csv or a \.parquet file"):
            call(*words, "--out", tmp_path / "m.txt")


def split_set(folder, name="ward"):
    for place in ("train/normal/a.png", "test/normal/b.png"):
        write_image(folder / place, seed=len(place))
    (folder / "dataset.yaml").write_text(f"name: {name}\npopulation: {{name: adults, ages: [18, null]}}\n")


def test_join_keeps_the_description_of_a_data_set(tmp_path):
    split_set(tmp_path / "ward")
    before = (tmp_path / "ward" / "dataset.yaml").read_text()
    result = call("join", tmp_path / "ward", "--out", tmp_path / "ward" / "all.csv")
    assert result.exit_code == 2
    line = " ".join(result.stderr.replace("│", " ").split())
    assert "describes another data set and would be overwritten; name a file in a folder of its own" in line
    assert (tmp_path / "ward" / "dataset.yaml").read_text() == before
    assert not (tmp_path / "ward" / "all.csv").exists()
    split_set(tmp_path / "other", name="other")
    for sets in (["ward"], ["ward", "other"]):  # its own description is replaced
        out = tmp_path / "joined" / "all.csv"
        assert call("join", *(tmp_path / name for name in sets), "--out", out).exit_code == 0
        assert load(out).description.name == " + ".join(sets)


def test_join_writes_what_its_sets_state_and_nothing_of_others(tmp_path):
    for name, stated in (("named", "name: A\nhospital: H\n"), ("hospital", "hospital: B\n"), ("nothing", "")):
        split_set(tmp_path / name)
        (tmp_path / name / "dataset.yaml").write_text(stated)
        if not stated:
            (tmp_path / name / "dataset.yaml").unlink()
    out = tmp_path / "joined" / "all.csv"
    for sets, name, hospital in (
        (("named", "hospital"), "A", "H; B"),
        (("hospital", "nothing"), "nothing", "B; not stated"),
        (("nothing",), "", None),
    ):
        assert call("join", *(tmp_path / one for one in sets), "--out", out).exit_code == 0
        described = load(out).description
        assert (described and described.hospital) == hospital
        assert (described.name if described else "") == name


def test_join_says_what_it_left_out(tmp_path):
    split_set(tmp_path / "ward")
    (tmp_path / "ward" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    result = call("join", tmp_path / "ward", "--out", tmp_path / "joined" / "all.csv", "--json")
    assert result.exit_code == 3
    assert [one["reason"] for one in json.loads(result.stdout)["left_out"]] == ["no_pixels"]


def test_join_holds_out_a_copy_that_was_saved_anew(phantoms, tmp_path):
    for name in ("a", "b"):
        split_set(tmp_path / name, name=name)
    pixels = cv2.imread(str(min(phantoms.rglob("*.jpeg"))), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "a" / "test" / "normal" / "b.png"), pixels)
    copy = tmp_path / "b" / "train" / "normal" / "copy.jpeg"
    cv2.imwrite(str(copy), pixels, [cv2.IMWRITE_JPEG_QUALITY, 70])
    (tmp_path / "b" / "train" / "normal" / "lost.png").write_bytes(b"no image")
    out = tmp_path / "joined" / "all.csv"
    for words, split in (((), "test"), (("--no-near-duplicates",), "train")):
        result = call("join", f"A={tmp_path / 'a'}", tmp_path / "b", "--out", out, *words)
        assert result.exit_code == 0
        assert "not compared: b/train/normal/lost.png: " in result.stderr
        assert {one.path: one.split for one in load(out)}["b/train/normal/copy.jpeg"] == split


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=j/x=1/s.csv", ("A", "j/x=1/s.csv")),
        ("j/x=1/s.csv", ("", "j/x=1/s.csv")),
        ("nih=a.csv", ("nih", "a.csv")),
        ("a.csv", ("", "a.csv")),
    ],
)
def test_the_name_of_a_set_ends_at_the_first_equals_sign(text, expected):
    from pneumoscope.cli.data import _named

    assert _named(text) == expected


def test_near_duplicates_play_no_part_in_a_random_split(phantoms, tmp_path):
    words = ("split", phantoms, "--out", tmp_path / "m.csv", "--no-near-duplicates")
    result = call(*words, "--method", "random")
    assert result.exit_code == 2
    assert "--no-near-duplicates" in result.output
    assert call(*words).exit_code == 0


def test_a_split_keeps_the_sizes_that_images_had_before_they_were_reduced(phantoms, tmp_path):
    paths = sorted(phantoms.rglob("*.jpeg"))
    for path in paths:
        copy = tmp_path / "set" / path.relative_to(phantoms)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "set" / "sizes.csv").write_text(
        f"file,original_width,original_height\n{paths[0].name},2090,1858\n"
    )
    assert call("split", tmp_path / "set", "--out", tmp_path / "m.csv").exit_code == 0
    found = {
        record.path.rpartition("/")[2]: (record.width, record.height) for record in load(tmp_path / "m.csv")
    }
    assert (found[paths[0].name], found[paths[1].name]) == ((2090, 1858), (48, 48))
    sizes = json.loads(call("audit", tmp_path / "m.csv", "--json").stdout)["sizes"]
    assert (sizes["width_max"], sizes["height_max"]) == (48, 48)


def test_a_mirror_has_no_part_where_the_archive_is_given(tmp_path):
    words = ("fetch", "kermany", tmp_path, "--from", tmp_path / "a.zip")
    result = call(*words, "--base-url", "http://127.0.0.1")
    assert result.exit_code == 2
    assert "--base-url" in result.output


def test_join_of_sets_without_a_description_into_a_folder_that_exists(tmp_path):
    split_set(tmp_path / "ward")
    (tmp_path / "ward" / "dataset.yaml").unlink(missing_ok=True)
    (tmp_path / "joined").mkdir()
    result = call("join", tmp_path / "ward", "--out", tmp_path / "joined" / "all.csv")
    assert result.exit_code == 0, result.output


def test_join_says_that_two_sets_have_equal_identifiers(tmp_path):
    for seed, place in enumerate(("a/train/normal/7/1.png", "b/test/normal/7/2.png")):
        write_image(tmp_path / place, seed)
    out = tmp_path / "joined" / "all.csv"
    line = "1 patient identifier in several sets, taken for the same person; 1 image moved"
    result = call("join", tmp_path / "a", tmp_path / "b", "--out", out)
    assert result.exit_code == 0 and line in result.stderr and "NAME=FILE" in result.stderr
    assert "several sets" not in call("join", f"A={tmp_path / 'a'}", tmp_path / "b", "--out", out).stderr


def test_a_split_is_not_written_onto_the_manifest_of_an_unpacked_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 28, 28), dtype=np.uint8)
    parts = {
        f"{split}_{what}": pixels if what == "images" else np.arange(8)[:, None] % 2
        for split in ("train", "val", "test")
        for what in ("images", "labels")
    }
    np.savez(tmp_path / "pneumoniamnist.npz", **parts)
    load(tmp_path / "pneumoniamnist.npz")
    result = call(
        "split", tmp_path / "pneumoniamnist.npz", "--out", tmp_path / "pneumoniamnist" / "manifest.csv"
    )
    assert result.exit_code == 2
    assert "one of the inputs" in " ".join(result.stderr.replace("│", " ").split())
