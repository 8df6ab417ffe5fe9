from __future__ import annotations

import os
from pathlib import Path

import pytest

from images import write_image
from pneumoscope.errors import DataError
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
    (folder / "m.csv").write_text("file\n00.png\n")
    with pytest.raises(DataError, match="no column 'path'"):
        list(list_entries(str(folder / "m.csv")))


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
