from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from images import write_image
from pneumoscope.errors import DataError
from pneumoscope.parallel import Progress
from pneumoscope.report.overlay import write_png
from pneumoscope.serve.batch import listing
from pneumoscope.serve.batch.listing import list_entries
from pneumoscope.serve.batch.plan import prepare, read_entries
from pneumoscope.serve.batch.store import filesystem, open_store


def test_a_folder_is_listed_as_predict_lists_it(folder):
    (folder / "gone.dcm").symlink_to(folder / "nothing")
    (folder / "DICOMDIR").write_bytes(b"")
    entries = list(list_entries(str(folder)))
    assert [Path(entry.path).name for entry in entries if not entry.reason] == [
        *(f"{number:02}.png" for number in range(11)),
        *(["gone.dcm"] if any("gone" in entry.path for entry in entries) else []),
        "11.png",
    ]
    (problem,) = [entry for entry in entries if entry.reason]
    assert (problem.path, problem.reason) == (str(folder / "DICOMDIR"), "no_pixels")


def test_a_manifest_gives_age_view_and_root(folder):
    (folder / "m.csv").write_text("path;root;age;view\n11.png;sub;042Y;PA\ns3://b/x y.png;;;\n")
    first, second = list_entries(str(folder / "m.csv"))
    assert (first.path, first.age, first.view) == (str(folder / "sub" / "11.png"), 42.0, "PA")
    assert (second.path, second.age) == ("s3://b/x y.png", None)


def test_a_manifest_that_is_none_is_an_error(folder):
    (folder / "m.csv").write_text("name\n00.png\n")
    with pytest.raises(DataError, match="no column 'path'"):
        list(list_entries(str(folder / "m.csv")))


def test_a_manifest_may_have_the_names_of_columns_of_a_public_data_set(folder):
    (folder / "m.csv").write_text("Image Index,Patient Age,View Position\n00.png,045Y,PA\n01.png,18M,AP\n")
    first, second = list_entries(str(folder / "m.csv"))
    assert (first.path, first.age, first.view) == (str(folder / "00.png"), 45.0, "PA")
    assert (second.age, second.view) == (1.5, "AP")


def test_rows_that_are_file_uris_are_paths_and_those_of_unknown_stores_have_the_reason(folder):
    rows = (f"file://{folder}/0%30.png", "ftp://host/x.png", "file://otherhost/x.png", "s3://b/x.png")
    (folder / "m.csv").write_text("path\n" + "\n".join(rows) + "\n")
    here, ftp, other, store = list_entries(str(folder / "m.csv"))
    assert (here.path, here.reason) == (str(folder / "00.png"), "")
    assert here.stamp
    for entry in (ftp, other):
        assert entry.reason == "not_found"
        assert entry.detail.startswith("unknown kind of store; give a path")
    assert (store.path, store.reason) == ("s3://b/x.png", "")
    for start in ("s3://key:secret", "s3a://key:secret", "https://user:secret", "s3://key:sec/secret"):
        (folder / "m.csv").write_text(f"path\n{start}@b/x.png\n")
        with pytest.raises(DataError, match="leave credentials out") as raised:
            list(list_entries(str(folder / "m.csv")))
        assert "secret" not in str(raised.value)


def test_objects_that_are_no_images_are_left_out(store_options):
    bucket = filesystem("s3", "xrays", store_options)
    for name in (
        "b.JPG",
        "a.png",
        "1.2.840.1",
        "IM0001",
        "notes.txt",
        ".hidden.png",
        "sub/c.dcm",
        "_tmp/d.png",
    ):
        with bucket.open_output_stream(f"xrays/listing/{name}") as file:
            file.write(b"x")
    found = [entry.path for entry in list_entries(f"s3://xrays/listing?{store_options}")]
    names = [path.removeprefix("s3://xrays/listing/") for path in found]
    assert names == ["1.2.840.1", "IM0001", "a.png", "b.JPG", "_tmp/d.png", "sub/c.dcm"]
    with pytest.raises(DataError, match="cannot be listed"):
        list(list_entries(f"s3://no-such-bucket/x?{store_options}"))


class Lines(Progress):
    """Collects messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, line: str) -> None:
        self.lines.append(line)


def test_a_store_is_searched_by_the_rules_of_a_folder(store_options, tmp_path):
    heat_map = tmp_path / "drawn.png"
    write_png(np.zeros((8, 8, 3), np.uint8), heat_map)
    files = dict.fromkeys(
        (
            "_001.jpeg",
            "_SUCCESS",
            "notes.txt",
            "a.heic",
            "b.avif",
            "c.nii",
            "d.nii.gz",
            "e.HEATMAP.png",
            "DICOMDIR",
            "Thumbs.db",
            ".git/f.png",
            "NORMAL/images/g.png",
            "NORMAL/infection masks/g.png",
            "NORMAL/infection masks/left/h.png",
            "masks/COVID/images/i.png",
            "masks/COVID/lung_masks/i.png",
            "rsna-masked/j.png",
        ),
        b"x",
    ) | {"f.heatmap.png": heat_map.read_bytes()}
    bucket = filesystem("s3", "xrays", store_options)
    for name, content in files.items():
        with bucket.open_output_stream(f"xrays/rules/{name}") as file:
            file.write(content)
    progress = Lines()
    entries = list(list_entries(f"s3://xrays/rules?{store_options}", progress))
    found = {entry.path.removeprefix("s3://xrays/rules/"): entry.reason for entry in entries}
    assert found == {
        "DICOMDIR": "no_pixels",
        "_001.jpeg": "",
        "a.heic": "",
        "b.avif": "",
        "c.nii": "",
        "d.nii.gz": "",
        "e.HEATMAP.png": "",
        "NORMAL/images/g.png": "",
        "masks/COVID/images/i.png": "",
        "rsna-masked/j.png": "",
    }
    place = "s3://xrays/rules"
    assert progress.lines == [
        f"{place}: 1 image drawn by Pneumoscope left out",
        f"{place}: 3 masks left out, not radiographs (in NORMAL/infection masks, masks/COVID/lung_masks)",
        f"{place}: 2 objects left out, not named like an image",
    ]


@pytest.mark.parametrize("masks", ["NORMAL/GT_mask", "masks/NORMAL/masks"])
def test_a_store_and_a_folder_give_the_same_images_and_lines(store_options, tmp_path, masks):
    bucket = filesystem("s3", "xrays", store_options)
    images = f"{masks.rpartition('/')[0]}/images"
    for name in (f"{images}/1.png", f"{images}/2.png", f"{masks}/1.png", "other/3.png"):
        path = write_image(tmp_path / "in" / name)
        with bucket.open_output_stream(f"xrays/same-{masks[:1]}/{name}") as file:
            file.write(path.read_bytes())
    listed = []
    for place, options in ((str(tmp_path / "in"), ""), (f"s3://xrays/same-{masks[:1]}", f"?{store_options}")):
        progress = Lines()
        names = [one.path.removeprefix(f"{place}/") for one in list_entries(place + options, progress)]
        listed.append((names, [line.removeprefix(place) for line in progress.lines]))
    assert listed[0] == listed[1]
    assert sorted(listed[0][0]) == sorted([f"{images}/1.png", f"{images}/2.png", "other/3.png"])
    assert listed[0][1] == [f": 1 mask left out, not radiographs (in {masks})"]


def test_a_name_that_is_no_text_can_still_be_opened(tmp_path, tiny):
    source = tmp_path / "in"
    path = write_image(source / "a.png")
    odd = os.fsdecode(os.fsencode(source) + b"/\xff.png")
    try:
        path.rename(odd)
    except OSError:
        pytest.skip("this file system takes only names that are text")
    store = open_store(str(tmp_path / "out"))
    plan = prepare(store, str(source), tiny, part_size=2)
    from pyarrow import parquet

    with parquet.ParquetFile(store.open("manifest.parquet")) as manifest:
        (entry,) = read_entries(manifest, 0)
        assert "\\xff" in manifest.read().to_pylist()[0]["path"] or "\\udcff" in repr(manifest.read())
    assert entry.path == odd
    assert (plan.entries, plan.parts) == (1, 1)


class Waiting:
    """A store in which objects are opened only once two of them are being opened at the same time."""

    def __init__(self, folder: Path) -> None:
        self._files = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
        self._two = threading.Barrier(2, timeout=30)

    def get_file_info(self, selector):
        return self._files.get_file_info(selector)

    def open_input_file(self, path):
        self._two.wait()
        return self._files.open_input_file(path)


def test_heat_maps_of_a_store_are_opened_several_at_a_time(tmp_path, monkeypatch):
    """Each of them takes as long as the store takes to respond; the order stays that of the names."""
    for number in range(8):
        path = tmp_path / "bucket" / "in" / f"{number}.heatmap.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 3:
            write_png(np.zeros((8, 8, 3), np.uint8), path)
        else:
            path.write_bytes(b"of another program")
        write_image(path.with_name(f"{number}.png"))
    monkeypatch.setattr(listing, "filesystem", lambda *_: Waiting(tmp_path))
    progress = Lines()
    names = [one.path.removeprefix("s3://bucket/in/") for one in list_entries("s3://bucket/in", progress)]
    assert names == [
        *("0.heatmap.png", "0.png", "1.png", "2.png", "3.heatmap.png", "3.png", "4.png", "5.png"),
        *("6.heatmap.png", "6.png", "7.png"),
    ]
    assert progress.lines == ["s3://bucket/in: 5 images drawn by Pneumoscope left out"]
