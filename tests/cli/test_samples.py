from __future__ import annotations

import json

import pytest

from pneumoscope.cli import main
from pneumoscope.data.samples import read_samples


@pytest.fixture
def samples(capsys):
    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(["samples", *map(str, words)])
        return left.value.code, *capsys.readouterr()

    return run


def test_writes_the_images_and_says_what_each_is(samples, tmp_path):
    code, out, err = samples(tmp_path / "new")
    assert (code, err) == (0, "")
    *lines, last = out.splitlines()
    shipped = read_samples()
    assert [line.split()[0] for line in lines] == [one.path for one in shipped]
    assert all(one.content in line for one, line in zip(shipped, lines, strict=True))
    assert last == f"8 images in {tmp_path / 'new'}; source and licence of each in {tmp_path}/new/samples.csv"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "samples.csv",
        *(one.path for one in shipped),
    }


def test_json_has_source_and_licence(samples, tmp_path):
    code, out, _ = samples(tmp_path, "--json")
    written = json.loads(out)
    assert code == 0
    assert written["folder"] == str(tmp_path)
    assert [one["path"] for one in written["images"]] == [one.path for one in read_samples()]
    assert all(one["source"] and one["licence"] and one["label"] for one in written["images"])


def test_what_was_written_is_predicted(samples, tmp_path, capsys):
    samples(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["predict", str(tmp_path / "samples.csv"), "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert left.value.code == 3, "two are no frontal chest radiographs"
    assert [row["status"] for row in rows] == ["ok"] * 6 + ["rejected"] * 2


def test_a_file_that_is_in_the_way_is_one_line(samples, tmp_path):
    (tmp_path / "hand.jpeg").write_bytes(b"mine")
    code, out, err = samples(tmp_path)
    assert (code, out) == (4, "")
    assert err == f"error: {tmp_path / 'hand.jpeg'}: is another file of that name; choose another folder\n"
    assert (tmp_path / "hand.jpeg").read_bytes() == b"mine"


def test_the_folder_must_be_named(samples):
    code, _, err = samples()
    assert code == 2
    assert "DIR" in err
